"""Kernels for the CPU in C++, each compiled when it is first used.

They want Linux and a C++ compiler (``c++`` or what ``CXX`` names); without, or with ``BCNET_KERNELS=off``, PyTorch's own
operations do the same.
"""

import ctypes
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.files import cache_folder
from bcnet.machine import cpu_info
from bcnet.progress import notice

NAMES = ("batch_norm", "depthwise")
_UNWANTED = "BCNET_KERNELS=off"
_REMEDY = "Install a C++ compiler such as g++, or name one in CXX; with BCNET_KERNELS=off this note does not appear"
_COMPILE_SECONDS = 600
_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17", "-fPIC", "-fopenmp")
_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def library(name: str) -> ctypes.CDLL | None:
    """The compiled kernels of ``NAME.cpp`` beside this file, to be used now; ``None`` where there are none.

    If nobody wished that, people are told.
    """
    kernels = _find(name)
    if isinstance(kernels, ctypes.CDLL):
        return kernels
    if kernels != _UNWANTED:
        remedy = f". {_REMEDY}" if _on_linux() else ""
        notice(f"{kernels}; PyTorch does what they would do, so training on the CPU takes longer{remedy}")
    return None


def status() -> dict[str, str]:
    """For the kernels of every name ``compiled``, or ``off: `` and why; compiles what has not been compiled yet."""
    libraries = {name: _find(name) for name in NAMES}
    return {name: "compiled" if isinstance(kernels, ctypes.CDLL) else f"off: {kernels}" for name, kernels in libraries.items()}


@cache
def _find(name: str) -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none."""
    if os.environ.get("BCNET_KERNELS") == "off":
        return _UNWANTED
    if not _on_linux():
        return "the compiled kernels are for Linux only"
    wanted = os.environ.get("CXX") or "c++"
    compiler = shutil.which(wanted)
    if compiler is None:
        return f"there is no C++ compiler called {wanted!r} to compile the kernels with"
    try:
        return _load(name, compiler)
    except subprocess.CalledProcessError as error:
        return f"{wanted!r} does not compile the {name} kernels ({_first_error(error.stderr.decode(errors='replace'))})"
    except subprocess.TimeoutExpired:
        return f"{wanted!r} took more than {_COMPILE_SECONDS} seconds to compile the {name} kernels"
    except (OSError, RuntimeError) as error:  # a RuntimeError where there is no home folder
        return f"the {name} kernels cannot be compiled or loaded ({error})"


def _on_linux() -> bool:
    return sys.platform.startswith("linux")


def _first_error(output: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it does not say why")


def _load(name: str, compiler: str) -> ctypes.CDLL:
    """Load the library from the cache, compiled first if it is not there as it was written."""
    source = Path(__file__).with_name(f"{name}.cpp")
    machine = " ".join((cpu_info("flags"), torch.__version__, compiler, *_FLAGS))
    digest = hashlib.sha256(machine.encode() + source.read_bytes()).hexdigest()[:16]
    with _locked_folder() as folder:
        compiled = folder / f"{name}-{digest}.so"
        if not _is_whole(compiled):
            _compile(compiler, source, compiled)
        return ctypes.CDLL(str(compiled))


@contextmanager
def _locked_folder() -> Iterator[Path]:
    """The cache's folder, which no other process changes meanwhile; where none can be kept, one that is removed again.

    A loaded library stays when its file is removed.
    """
    import fcntl  # not on Windows

    kept = cache_folder() / "kernels"
    with ExitStack() as stack:
        try:
            _make_private(kept)
            lock = stack.enter_context((kept / "lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = kept
        except OSError as error:
            notice(f"{kept} is not used to keep compiled kernels ({error.strerror or error}), so every process compiles its own")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bcnet-kernels-")))
        yield folder


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can write to; code is loaded from it.

    Raises:
        OSError: it cannot be made, or what stands there is not such a folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError("it is not a folder")
    if status.st_uid != os.geteuid():
        raise OSError("it belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError("others may write to it; chmod 700 makes it yours")


def _hash_file(compiled: Path) -> Path:
    return compiled.with_name(f"{compiled.name}.sha256")


def _is_whole(compiled: Path) -> bool:
    """Whether a library is there, and is what was compiled."""
    try:
        return _hash_file(compiled).read_bytes().strip() == hashlib.sha256(compiled.read_bytes()).hexdigest().encode()
    except OSError:
        return False


def _compile(compiler: str, source: Path, compiled: Path) -> None:
    for leftover in compiled.parent.glob("compiling-*"):  # of a process that was killed, for the folder is locked
        shutil.rmtree(leftover, ignore_errors=True)
    # torch's own OpenMP runtime, so that both share one pool of threads
    runtime = sorted(str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"))
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=compiled.parent) as folder:
        made, objects, hashed = (Path(folder) / f"made.{kind}" for kind in ("so", "o", "sha256"))
        link = ["-shared", str(objects), *(runtime[:1] or ["-lgomp"]), "-o", str(made)]
        for arguments in ([*_FLAGS, "-c", str(source), "-o", str(objects)], link):
            _run([compiler, *arguments])
        hashed.write_text(hashlib.sha256(made.read_bytes()).hexdigest() + "\n")
        made.replace(compiled)
        hashed.replace(_hash_file(compiled))


def _run(command: list[str]) -> None:
    """Run a compiler; if it fails, takes too long or is interrupted, nothing of what it started runs on.

    Raises:
        CalledProcessError: with what it said.
        TimeoutExpired: it took too long.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            _, errors = process.communicate(timeout=_COMPILE_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)


def takes(x: Tensor) -> bool:
    """Whether the kernels can read activations: on the CPU, ``(N, C, H, W)`` in channels_last order, float32 or bfloat16."""
    return _is_plain(x) and x.ndim == 4 and x.dtype in _TYPES and x.is_contiguous(memory_format=torch.channels_last)


def fits(tensor: Tensor | None, dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether the kernels can read a parameter or statistic, if there is one, as contiguous entries of that type and number."""
    return tensor is None or (_is_plain(tensor) and tensor.dtype == dtype and tensor.shape == tuple(shape) and tensor.is_contiguous())


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is entries in the CPU's memory and nothing more; a subclass may be anything."""
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)


def call(name: str, function: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call ``function`` for ``dtype`` with tensors and ctypes values; the number of threads, added here, is the last argument."""
    kernels = library(name)
    assert kernels is not None
    values = (ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments)
    getattr(kernels, f"{function}_{_TYPES[dtype]}")(*values, ctypes.c_int(torch.get_num_threads()))
