"""A disk, a file server or a process out of handles that fails for now, told from files that are gone or damaged."""

import errno

from ffc_ds.data.bounds import CorruptImage

NAMES = """EIO ESTALE ETIMEDOUT EMFILE ENFILE ENOMEM ENOTCONN ESHUTDOWN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH
ECONNREFUSED ECONNRESET ECONNABORTED"""
FAILURES = {getattr(errno, name) for name in NAMES.split()}


class FailingDisk(CorruptImage):
    """An image that may be whole, but could not be read now.

    Training replaces it, as a damaged one; what would leave it out for good stops.
    """


def is_failing(error: Exception) -> bool:
    """Whether what raised it may work later, with the same file."""
    return isinstance(error, OSError) and error.errno in FAILURES
