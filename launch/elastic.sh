#!/usr/bin/env bash
# A run that goes on without the hosts that it loses, and with them again when it is started the next time:
#
#     launch/elastic.sh HOSTFILE [options of deepspeed] launch/train.py --config run.yaml --output_dir /shared/run
#
# Every start takes those hosts of HOSTFILE that answer ssh, and goes on with --resume auto. It is over when the run has
# ended or was stopped, at exit code 2, which another start would not change, and after three starts in a row that
# failed within a minute. PAUSE=10 are the seconds between two starts. To stop the run, stop one of its ranks
# (docs/clusters.md), or press Ctrl-C here: a signal to this script alone leaves deepspeed running.
set -u
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
hostfile=$1 failed=0
shift
there=$(mktemp)
trap 'rm -f "$there"' EXIT
trap 'exit 130' INT # once deepspeed has ended, with whatever code
# Without this pdsh would wait for a host that is gone
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=5 -o ServerAliveCountMax=3"

while true; do
    grep -v '^ *\(#\|$\)' "$hostfile" | while read -r host slots; do
        ssh -n -o BatchMode=yes -o ConnectTimeout=10 "$host" true < /dev/null && echo "$host $slots"
    done > "$there"
    echo "elastic.sh: a start on $(cut -d ' ' -f 1 "$there" | xargs)"
    begin=$SECONDS
    deepspeed --hostfile "$there" --force_multi "$@" --resume auto
    code=$?
    case $code in 0 | 2 | 130) exit $code ;; esac
    [ $((SECONDS - begin)) -lt 60 ] && failed=$((failed + 1)) || failed=0
    [ $failed -lt 3 ] || exit $code
    echo "elastic.sh: exit code $code, another start in ${PAUSE:-10} s"
    sleep "${PAUSE:-10}"
done
