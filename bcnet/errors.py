"""The one exception for what a user got wrong."""


class UserError(ValueError):
    """A mistake in what was asked for: the message says what, where, and what would be right, in one line.

    The command line prints it without a traceback and exits with code 2.
    """
