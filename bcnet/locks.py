"""Files that one process holds at a time: the kernel lets go of them when the process ends, however it ends."""

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from bcnet.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows: two commands at once are not noticed there, and what kills leave behind stays
    fcntl = None  # type: ignore[assignment]

TEMPORARY, LOCK = ".bcnet.tmp", ".bcnet.lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file (which need not exist) against other commands, by a hidden file beside it that is gone afterwards.

    Raises:
        UserError: another process holds it: which one, since when.
    """
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}{LOCK}")
    handle = _take(lock, path)
    try:
        since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}: {command}\n".encode())
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def _take(lock: Path, path: Path) -> int:
    for patience in range(6):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        if hold(handle) and os.fstat(handle).st_nlink:
            return handle
        holder = os.read(handle, 1000).decode("utf-8", "replace").strip()
        os.close(handle)  # held, or who held it has just removed it, or somebody looks whether it is a leftover
        time.sleep(0.01 * patience)
    raise UserError(f"{path}: in use by {holder or 'another process'}; wait until it ends, or stop it")


def hold(handle: int, *, wait: bool = False, without: bool = True) -> bool:
    """Hold an open file until it is closed.

    Args:
        handle: of the file.
        wait: until no other process holds it.
        without: what to say where the system, or the file system, knows no locks.

    Returns:
        Whether no other process holds it.
    """
    if fcntl is None:
        return without
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return without
    return True


def hold_new(handle: int) -> bool:
    """Hold a new file while it is written; returns whether it is still there, for another process may have taken it for a leftover."""
    hold(handle, wait=True)
    return os.fstat(handle).st_nlink > 0


def leftovers(folder: Path, *, remove: bool = False) -> list[Path]:
    """Files in a folder that processes were writing or holding when they were killed.

    Args:
        folder: where to look.
        remove: remove them.
    """
    if fcntl is None:  # nobody knows which are in use
        return []
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith(".") and entry.name.endswith((TEMPORARY, LOCK)))
    except OSError:
        return []
    return [folder / name for name in names if _is_dead(folder / name, remove)]


def _is_dead(path: Path, remove: bool) -> bool:
    """Whether nobody holds a file; it is removed while this process does, so that nobody can begin to."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        is_dead = hold(handle, without=False)
        if is_dead and remove:
            path.unlink(missing_ok=True)
    except OSError:  # not ours to remove
        is_dead = False
    finally:
        os.close(handle)
    return is_dead
