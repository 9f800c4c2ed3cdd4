"""``python -m bcnet``, and the ``bcnet`` command."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any

from bcnet.errors import Interrupted, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_SECONDS = 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a signal is one line whenever it comes, also while libraries are still being imported."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    before, sys.unraisablehook = sys.unraisablehook, _stop_again
    try:
        try:
            from bcnet.cli import main as run

            run(arguments)
        finally:
            _ignore_signals()  # a stop that comes before this is done is caught below
    except SystemExit as end:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        from bcnet.processes import leave

        leave(int(end.code or 0))
    except KeyboardInterrupt as stop:
        _ignore_signals()
        stopped = Interrupted.by(stop)
        print(f"bcnet: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    finally:
        sys.unraisablehook = before


def _ignore_signals() -> None:
    """Nothing is left that could be stopped."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise, or end at once within an import: libraries swallow exceptions there, and C++ that is being loaded aborts on them."""
    stop = Stopped(number)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, f"bcnet: {Interrupted.by(stop)}\n".encode())  # print may be what was interrupted
            os._exit(128 + number)
        frame = frame.f_back
    raise stop


def _stop_again(ignored: Any) -> None:
    """Where exceptions are ignored, as in destructors, a stop would be lost: the signal comes again a little later."""
    if not isinstance(ignored.exc_value, Stopped):
        sys.__unraisablehook__(ignored)
        return
    again = Timer(AGAIN_SECONDS, _signal_again, (ignored.exc_value.signal,))
    again.daemon = True
    again.start()


def _signal_again(number: int) -> None:
    if os.name == "nt":  # where kill ends a process without asking it
        signal.raise_signal(number)
    else:  # wakes the main thread, too, from what it waits for
        os.kill(os.getpid(), number)


def _forget_working_directory() -> None:
    """Take away what ``python -m`` puts first: a file there must not stand in for an installed package."""
    here = Path.cwd()
    if sys.path and sys.path[0] == str(here) and not (here / "bcnet").is_dir():
        del sys.path[0]


if __name__ == "__main__":
    _forget_working_directory()
    main()
