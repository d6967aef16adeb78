"""Whether what is written can be read by whom the umask allows it."""

import os
from pathlib import Path


def more_private_than_the_umask(folder: Path) -> list[Path]:
    """Files and folders below that somebody cannot read who could read a new file of this process."""
    umask = os.umask(0)
    os.umask(umask)
    return [path for path in folder.rglob("*") if not path.is_symlink() and 0o444 & ~umask & ~path.stat().st_mode]
