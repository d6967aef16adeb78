"""The one error that is written for the person who runs the program."""


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    The launch scripts print the message alone, without a traceback, and exit with code 2 on every rank.
    """
