"""Writing files so that each is either whole or absent, and reading them without trusting them."""

import csv
import errno
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from bcnet.errors import UserError
from bcnet.locks import TEMPORARY, hold_new, leftovers
from bcnet.trees import parse_json

_PATIENCE = 40  # tries, of 50 ms


def shipped(name: str) -> Path:
    """Where a file or folder that ships with the package is; in a checkout it stands beside the package."""
    installed = Path(str(resources.files("bcnet"))) / name
    return installed if installed.exists() else Path(__file__).parent.parent / name


def cache_folder() -> Path:
    """Where decoded images and compiled kernels are kept: ``BCNET_CACHE``, else ``~/.cache/bcnet``."""
    return Path(os.environ.get("BCNET_CACHE") or Path.home() / ".cache" / "bcnet")


def write_atomic(path: Path, write: Callable[[Path], object], *, new: bool = False) -> None:
    """Call ``write`` with a temporary name beside ``path``, flush to disk, rename; what killed processes left there is removed.

    Args:
        path: the file.
        write: writes it.
        new: there must be no such file yet, also if another process writes it at the same time.

    Raises:
        UserError: the folder cannot be written or the disk is full; what stood at ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        leftovers(path.parent, remove=True)
        handle, temporary = _temporary(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        write(temporary)
        with temporary.open("rb+") as file:  # Windows flushes no file that is open for reading only
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        if new:
            _claim(path, temporary)
        else:
            _replace(path, temporary)
    except FileExistsError as error:
        raise UserError(f"{path}: another process has just written it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); this file is as it was") from error
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _claim(path: Path, temporary: Path) -> None:
    """Give a new file its name, if nobody has taken it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # exFAT knows no links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        _replace(path, temporary)


def _replace(path: Path, temporary: Path) -> None:
    """Give a file its name; on Windows whoever reads what stands there is waited for."""
    for _ in range(_PATIENCE if os.name == "nt" else 0):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(0.05)
    temporary.replace(path)


def _temporary(path: Path) -> tuple[int | None, Path]:
    """A new file beside ``path``, held while it is open where that is possible."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        if os.name == "nt":  # a file that is open cannot be renamed there
            os.close(handle)
            return None, Path(name)
        if hold_new(handle):
            return handle, Path(name)
        os.close(handle)


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing or empty, but for what a killed process left of the first file that it was writing.

    Raises:
        UserError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is wanted")
    leftovers(folder, remove=True)
    return not folder.exists() or not any(folder.iterdir())


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a UTF-8 text file atomically; ``new`` as of `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), new=new)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, one space of indent."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def is_file(path: Path) -> bool:
    """Whether there is such a regular file; of a name that no file can have, no."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)


MOST_BYTES = 1 << 28  # of a text that is read whole


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        UserError: missing, not a regular file (a pipe would never end), unreadable, larger than `MOST_BYTES`, or not UTF-8.
    """
    return decoded(path, read_bytes(path, what), what)


def decoded(path: Path, content: bytes, what: str) -> str:
    """A file's content as text; raises as `read_text` does."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start}); expected {what}") from error


def read_bytes(path: Path, what: str) -> bytes:
    """Read a file; raises as `read_text` does."""
    if not is_file(path):
        kind = "not a regular file" if os.path.lexists(path) else "no such file"
        raise UserError(f"{path}: {kind}; expected {what}")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{path}: {size:,} bytes, and {MOST_BYTES:,} is the most; expected {what}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected {what}") from error


def read_table(path: Path, what: str) -> list[list[str]]:
    """The rows of a CSV file; raises as `read_text` does, and for what is no CSV."""
    text = read_text(path, what)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error}); expected {what}") from error


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        UserError: as `read_text`, or not JSON as `bcnet.trees.parse_json` reads it.
    """
    try:
        return parse_json(read_text(path, what))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a JSON file ({error}); expected {what}") from error
