"""Files that grow line by line, each line written at once; what a kill left of a line is ended before the next one."""

import os
from pathlib import Path

from bcnet.errors import UserError


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which appears with the first one.

    Raises:
        UserError: it cannot be written, as on a full disk; the lines before stay, and no part of this one does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
            is_cut = size > 0 and file.read(1) != b"\n"
            _write(file.fileno(), (b"\n" if is_cut else b"") + f"{line}\n".encode(), size)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); what stands there stays") from error


def _write(handle: int, content: bytes, size: int) -> None:
    left = content
    try:
        while left:
            left = left[os.write(handle, left) :]
    except OSError:
        os.ftruncate(handle, size)
        raise
