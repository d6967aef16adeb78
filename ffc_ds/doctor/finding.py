"""What a check found, and the table of what all of them found."""

import shutil
import textwrap
from typing import Literal, NamedTuple

FIRST_COLUMNS = 24  # characters
DEFAULT_WIDTH = 130  # where there is no terminal


class Finding(NamedTuple):
    """One row: whether all is well, what was measured, and what to do about it."""

    state: Literal["ok", "warning", "problem"]
    measured: str
    advice: str = ""


def table(findings: dict[str, Finding]) -> str:
    """The rows by the names of their checks, as wide as the terminal."""
    width = max(FIRST_COLUMNS + 40, shutil.get_terminal_size((DEFAULT_WIDTH, 0)).columns)
    margin = " " * FIRST_COLUMNS
    lines = []
    for name, (state, measured, advice) in findings.items():
        head = f"{state:<8} {name:<{FIRST_COLUMNS - 10}} "
        lines += _wrapped(measured, width, head, margin)
        lines += _wrapped(advice, width, f"{margin}-> ", f"{margin}   ") if advice else []
    return "\n".join(lines)


def amount(size: float) -> str:
    """A number of bytes."""
    units = ["TB", "GB", "MB", "kB", "B"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop()
    return f"{size:.3g} {units[-1]}"


def duration(seconds: float) -> str:
    """A time, in seconds or in ms."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:,.1f} s"


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
