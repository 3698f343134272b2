"""Exceptions whose message is written for the user."""


class UserError(Exception):
    """Bad input: the message names the file or value, what is wrong and how to fix it.

    The command line prints it as one sentence on stderr and exits with code 2.
    """


class ResumableError(UserError):
    """Not the input but the machine failed (memory, disk): what is done stays, and the same command continues.

    The command line exits with code 75, which Unix calls a temporary failure.
    """
