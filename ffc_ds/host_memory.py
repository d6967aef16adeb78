"""What a host lets a run have of its memory."""

from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def free_memory() -> int:
    """Bytes that are free on this host, or in this container, where less is."""
    return min([psutil.virtual_memory().available, *_left_by_cgroup()])


def _left_by_cgroup() -> list[int]:
    """What a container's limit leaves, where there is one; pages of files do not count, they can be dropped."""
    for limit, used in LIMITS:
        with suppress(OSError, ValueError):
            most, now = (int(Path(CGROUP, name).read_text()) for name in (limit, used))
            about = Path(CGROUP, limit).with_name("memory.stat").read_text().split()
            return [most - now + int(about[about.index("inactive_file") + 1])]
    return []
