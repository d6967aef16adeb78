"""Start a launcher so that a signal to stop reaches the ranks and leaves them the time that they need.

python launch/preemptible.py [--code N] deepspeed launch/train.py --config launch/recipes/lfw.yaml [...]

DeepSpeed's own launcher is two processes. The first passes nothing on; the second gives ranks half a minute, kills what
is left, and reports an error. Here neither sees the signal: SIGTERM, SIGUSR1 and Ctrl-C go to the ranks alone, and so
does SIGTERM if the terminal is closed. The exit code is theirs; with --code N it is N where a run was stopped and has
saved itself, for what starts it again.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil


def ranks() -> list[psutil.Process]:
    """The processes to which a launcher has given a rank, and their data workers, which do not heed signals."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(part.startswith("--local_rank") for part in process.cmdline()):
                found.append(process)
    return found


def main(command: list[str], saved: int) -> int:
    """Run `command` to its end. Returns its exit code, or `saved` if it was asked to stop and ended well. Signals are
    then what they were, but for SIGUSR1, which is ignored."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the launcher inherits this; the ranks see to it themselves
    early, asked = [], []

    def pass_on(number: int, _) -> None:
        asked.append(number)
        there = ranks()
        for process in there:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
        if not there:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGTERM)

    numbers = [signal.SIGTERM, signal.SIGINT]
    numbers += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)  # as nohup has it
    # Ending here while the launcher starts would leave it behind.
    before = {number: signal.signal(number, lambda number, _: early.append(number)) for number in numbers}
    try:
        # A session of its own, because Ctrl-C reaches all processes of that of the terminal.
        launcher = subprocess.Popen(command, start_new_session=True)
        for number in [*numbers, signal.SIGUSR1]:
            signal.signal(number, pass_on)
        for number in early:
            pass_on(number, None)
        code = launcher.wait()
    finally:
        for number, handler in (before | {signal.SIGUSR1: signal.SIG_IGN}).items():
            signal.signal(number, handler)
    if code == 0 and asked:
        return saved
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = int(words[1]) if words[:1] == ["--code"] and words[1:2] and words[1].isdecimal() else None
    command = words if chosen is None else words[2:]
    if not command or command[0].startswith("-"):
        sys.exit(__doc__)
    try:
        sys.exit(main(command, chosen or 0))
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        sys.exit(127)
