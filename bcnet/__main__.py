"""``python -m bcnet``, and the ``bcnet`` command."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def main() -> None:
    """Run the command line; Ctrl-C is one line also while libraries are still being imported."""
    signal.signal(signal.SIGINT, _stop)
    try:
        from bcnet.cli import main as run

        run()
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        sys.exit(130)


_STOPPED = "bcnet: stopped by SIGINT"


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise, or end at once within an import: libraries swallow exceptions there, and C++ that is being loaded aborts on them."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            sys.stdout.flush()
            print(_STOPPED, file=sys.stderr, flush=True)
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _forget_working_directory() -> None:
    """Take away what ``python -m`` puts first: a file there must not stand in for an installed package."""
    here = Path.cwd()
    if sys.path and sys.path[0] == str(here) and not (here / "bcnet").is_dir():
        del sys.path[0]


if __name__ == "__main__":
    _forget_working_directory()
    main()
