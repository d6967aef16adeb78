"""Two hosts on one machine, for tests: network namespaces that a cable joins, each with a name that means itself to it.

What runs in them sees the files of this machine, its own interfaces, its own host name and its own /etc/hosts, in
which, as on many machines, the host's own name is a loopback address. Nothing of it outlives the test.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.warm import ROOT

INTERFACE, NAMES, ADDRESSES = "cable", ("north", "south"), ("10.213.7.1", "10.213.7.2")
SETUP = 'hostname "$1" && mount --make-rprivate / && mount --bind "$2" /etc/hosts && ip link set lo up && echo up; cat'


class Hosts:
    """Two hosts, 0 and 1, that reach each other through `INTERFACE`. pids: of a process on each."""

    def __init__(self, pids: list[int]):
        self.pids = pids

    def command(self, host: int, *line: str) -> list[str]:
        """What runs a line on a host."""
        enter = ["nsenter", "-t", str(self.pids[host]), "--net", "--uts", "--mount"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT), *line]  # elsewhere the folder would be /

    def cut(self) -> None:
        self._cable("down")

    def mend(self) -> None:
        self._cable("up")

    def _cable(self, state: str) -> None:
        _run(*self.command(1, "ip", "link", "set", INTERFACE, state))


def lacking() -> str | None:
    """Why there can be no such hosts here, or None."""
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "hostname") if shutil.which(tool) is None]:
        return f"there is no {missing[0]} here"
    for words in (["ip", "link", "add", INTERFACE, "type", "veth"], ["mount", "--make-rprivate", "/"]):
        line = ["unshare", "--net", "--uts", "--mount", *words]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            return f"no right to make network namespaces: {' '.join(words)}: {done.stderr.strip()}"
    return None


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """folder: for the hosts' own files."""
    processes = []
    try:
        for name, other, address in zip(NAMES, NAMES[::-1], ADDRESSES[::-1], strict=True):
            names = folder / f"hosts of {name}"
            names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{address} {other}\n")
            # It ends with this process, and its namespaces with it.
            line = ["unshare", "--net", "--uts", "--mount", "sh", "-c", SETUP, "sh", name, str(names)]
            process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.append(process)
            assert process.stdout.readline() == "up\n"
        hosts = Hosts([process.pid for process in processes])
        ends = "peer", "name", INTERFACE, "netns", str(hosts.pids[1])
        _run(*hosts.command(0, "ip", "link", "add", INTERFACE, "type", "veth", *ends))
        for host, address in enumerate(ADDRESSES):
            _run(*hosts.command(host, "ip", "address", "add", f"{address}/30", "dev", INTERFACE))
            _run(*hosts.command(host, "ip", "link", "set", INTERFACE, "up"))
        yield hosts
    finally:
        for process in processes:
            with suppress(BrokenPipeError):
                process.communicate(timeout=10)


def move_to(pid: int) -> None:
    """Go on, in this process, on the host of another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("net", "uts", "mnt"):
        with open(f"/proc/{pid}/ns/{kind}") as namespace:
            assert libc.setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    os.chdir(ROOT)


def _run(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(line)}: {done.stderr}"
