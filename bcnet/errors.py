"""The exceptions that the command line knows, and how an error becomes one line."""

import signal
from typing import ClassVar

MOST = 1500  # characters of a message


class UserError(ValueError):
    """A mistake in what was asked for: the message says what, where, and what would be right, in one line.

    The command line prints it without a traceback and exits with code 2. What was asked for stands in it, if it is not too long.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= MOST else f"{message[: MOST // 2]} ... {message[-MOST // 2 :]}")


class Interrupted(Exception):
    """A signal (Ctrl-C, SIGTERM) asked to stop, and what was finished is saved.

    The command line prints the message and exits with 128 plus the signal's number.

    Args:
        message: what was stopped, and how to go on.
        signal_number: of the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number

    @classmethod
    def by(cls, stop: KeyboardInterrupt, then: str = "") -> "Interrupted":
        """What a `Stopped` or a plain Ctrl-C becomes once what was finished is saved.

        Args:
            stop: what was raised.
            then: how to go on, if that is needed.
        """
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        return cls(f"stopped by {signal.Signals(number).name}{f'; {then}' if then else ''}", number)


class Stopped(KeyboardInterrupt):
    """A signal asks to stop: raised where the work was, as Python does for Ctrl-C.

    Args:
        signal_number: of the signal.

    Attributes:
        last: the newest of this command.
    """

    last: ClassVar["Stopped | None"] = None

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal = signal_number
        Stopped.last = self


def stop_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The stop that an error is, or that a library made into it: compiled code that calls Python makes any exception one of its own."""
    if isinstance(error, KeyboardInterrupt):
        return error
    return Stopped.last if isinstance(error, Exception) else None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object) -> str:
    """A value as it was given, for a message of one line: not more than its beginning."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."
