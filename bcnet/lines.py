"""Files that grow line by line, each line written at once; what a kill left of a line is cut off before the next one."""

import os
from pathlib import Path

from bcnet.errors import UserError
from bcnet.locks import hold

_BLOCK = 1 << 16


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which appears with the first one; several processes may do so at once.

    Raises:
        UserError: it cannot be written, as on a full disk; the lines before stay, and no part of this one does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            hold(file.fileno(), wait=True)
            end = _end_of_lines(file.fileno())
            if end < os.fstat(file.fileno()).st_size:
                os.ftruncate(file.fileno(), end)
            _write(file.fileno(), f"{line}\n".encode(), end)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); what stands there stays") from error


def _end_of_lines(handle: int) -> int:
    """Bytes up to the end of the last whole line."""
    place = os.lseek(handle, 0, os.SEEK_END)
    while place:
        start = max(0, place - _BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        newline = os.read(handle, place - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        place = start
    return 0


def _write(handle: int, content: bytes, size: int) -> None:
    try:
        while content:
            content = content[os.write(handle, content) :]
    except OSError:
        os.ftruncate(handle, size)
        raise
