"""What every benchmark writes: Markdown tables, and how they were made."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
import torch


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The rows (texts, as many as the heading has) below their heading."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def how_it_was_made(commands: Iterable[str], versions: dict[str, str], machine: str | None = None) -> str:
    """The closing lines of a page of results; `versions` of the run, `machine` by default this one."""
    lines = "\n".join(f"python {command}" for command in commands)
    parts = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "device")
    return f"```\n{lines}\n```\n\n{parts}, on {machine or this_machine()}."


def this_command() -> str:
    """What was typed after `python`."""
    return shlex.join(["launch/benchmark.py", *sys.argv[1:]])


def this_machine(device: str | None = None) -> str:
    """The device ("cpu" or "cuda", by default what there is) that sets the pace, and its memory."""
    if device == "cuda" or device is None and torch.cuda.is_available():
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    kind = f"{model[1] if model else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{kind}, {cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
