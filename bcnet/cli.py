"""The ``bcnet`` command: runs one of the commands and turns every mistake into one line."""

import errno
import os
import sys
from collections.abc import Sequence

from bcnet.commands import configs, dense, doctor, fit, latency, models, networks, profile, quickstart, rank, score, train, truth
from bcnet.commands.app import app
from bcnet.errors import Interrupted, UserError

__all__ = [
    "app",
    "configs",
    "dense",
    "doctor",
    "fit",
    "latency",
    "main",
    "models",
    "networks",
    "profile",
    "quickstart",
    "rank",
    "score",
    "train",
    "truth",
]


_OF_THE_SYSTEM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),  # files where folders should be, and the other way round
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes of the user are one line on stderr and exit code 2."""
    from typer.main import get_command

    try:
        code = get_command(app).main(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="bcnet", standalone_mode=True)
    except UserError as error:
        code = _complain(str(error))
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # one line, however many processes torchrun started
            print(f"bcnet: {error}", file=sys.stderr)
        code = 128 + error.signal
    except SystemExit as error:  # how typer ends
        code = error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        code = _complain(f"{error.filename or 'output'}: {error.strerror}")
    sys.exit(code)


def _complain(message: str) -> int:
    print(f"bcnet: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
