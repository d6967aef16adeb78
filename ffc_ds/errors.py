"""The one error that is written for the person who runs the program."""


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    The launch scripts print the message alone, without a traceback, and exit with code 2. `shared` says that every
    rank raises it, so that one of them is enough to print it.
    """

    shared = False


def shared(message: str) -> UserError:
    """A UserError that every rank raises alike."""
    error = UserError(message)
    error.shared = True
    return error
