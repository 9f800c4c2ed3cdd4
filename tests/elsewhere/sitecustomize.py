"""Windows for bcnet's own code, and for nothing else, on a POSIX system: for processes that have this folder on ``PYTHONPATH``.

Modules, functions and constants that Windows lacks are not there, a file that this process has open cannot be renamed, replaced or
removed, one that is open for reading only cannot be flushed, ``os.kill`` ends a process whatever the signal, two clocks tick 64 times a
second, and names may not hold what Windows does not take. What else differs there, this does not show.
"""

import builtins
import errno
import os
import signal
import sys
import time
import types
from pathlib import Path

MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
FUNCTIONS = {
    "chown confstr fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpgrp getsid getuid killpg lchown "
    "mkfifo mknod nice pathconf posix_fadvise posix_fallocate pread pwrite sched_getaffinity sched_setaffinity sendfile setpgid setsid "
    "statvfs sync sysconf tcgetpgrp uname wait wait3 wait4 O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK",
    "alarm pause pthread_kill pthread_sigmask setitimer sigwait SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGXFSZ",
}
LACKS = frozenset(name for names in FUNCTIONS for name in names.split())
FORBIDDEN = frozenset('<>:"|?*')
TICK = 0.015625  # seconds
RENAMES = {"os.rename", "os.remove"}


class System:
    """A module as bcnet sees it."""

    def __init__(self, module, **others):
        vars(self).update(others, _module=module)

    def __getattr__(self, name):
        if name in LACKS:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)

    def __setattr__(self, name, value):
        setattr(self._module, name, value)


def _is_ours(names):
    package = str((names or {}).get("__package__") or (names or {}).get("__name__") or "")
    return package.partition(".")[0] == "bcnet"


def _import(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and _is_ours(globals):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in SYSTEMS:
            return SYSTEMS[name]
    return _real_import(name, globals, locals, fromlist, level)


def _kill(pid, number):
    if pid == os.getpid():
        os._exit(number)
    os.kill(pid, signal.SIGKILL)


def _fsync(file):
    import fcntl

    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    os.fsync(file)


def _ticks(clock):
    return lambda: clock() // TICK * TICK


def _clock_info(name):
    return types.SimpleNamespace(resolution=TICK if name in ("monotonic", "thread_time") else 1e-7)


def _open_files():
    files = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            files.add(str(link.readlink()))
        except OSError:
            continue
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return files | {line.split(None, 5)[5] for line in maps if "/" in line}


def _watch(event, arguments):
    """Refuse what Windows would, where bcnet asks for it; pathlib and shutil may stand between."""
    is_new = event == "os.mkdir" or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+"))
    if not (is_new or event in RENAMES):
        return
    frame, steps = sys._getframe(1), 0
    while frame is not None and steps < 8 and not _is_ours(frame.f_globals):
        frame, steps = frame.f_back, steps + 1
    if frame is None or steps == 8:
        return
    paths = [os.fsdecode(one) for one in arguments[: 2 if event == "os.rename" else 1] if isinstance(one, str | bytes)]
    if is_new and any(FORBIDDEN & set(path) for path in paths):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), paths[0])
    if event in RENAMES and {os.path.realpath(path) for path in paths} & _open_files():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), paths[0])


SYSTEMS = {
    "os": System(os, name="nt", kill=_kill, fsync=_fsync),
    "signal": System(signal),
    "sys": System(sys, platform="win32"),
    "time": System(time, monotonic=_ticks(time.monotonic), thread_time=_ticks(time.thread_time), get_clock_info=_clock_info),
}
_real_import, builtins.__import__ = builtins.__import__, _import
sys.addaudithook(_watch)
