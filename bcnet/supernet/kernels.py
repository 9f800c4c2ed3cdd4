"""Kernels for the CPU in C++, each compiled when it is first used.

They want nothing but a C++ compiler; without one, or with ``BCNET_KERNELS=off``, PyTorch's own operations do the same.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bcnet.files import cache_folder
from bcnet.runtime import cpu_info

_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17", "-fPIC", "-fopenmp")
_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled kernels of ``NAME.cpp`` beside this file, or ``None`` where there are none."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if os.environ.get("BCNET_KERNELS") == "off" or compiler is None or not sys.platform.startswith("linux"):
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    machine = " ".join((cpu_info("flags"), torch.__version__, compiler, *_FLAGS))
    digest = hashlib.sha256(machine.encode() + source.read_bytes()).hexdigest()[:16]
    compiled = cache_folder() / f"{name}-{digest}.so"
    try:
        if not compiled.exists():
            _compile(compiler, source, compiled)
        return ctypes.CDLL(str(compiled))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, source: Path, compiled: Path) -> None:
    compiled.parent.mkdir(parents=True, exist_ok=True)
    # torch's own OpenMP runtime, so that both share one pool of threads
    runtime = sorted(str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"))
    with tempfile.TemporaryDirectory(dir=compiled.parent) as folder:
        made, objects = Path(folder) / "made.so", Path(folder) / "made.o"
        link = ["-shared", str(objects), *(runtime[:1] or ["-lgomp"]), "-o", str(made)]
        for arguments in ([*_FLAGS, "-c", str(source), "-o", str(objects)], link):
            subprocess.run([compiler, *arguments], check=True, capture_output=True, timeout=120)
        made.replace(compiled)


def takes(name: str, x: Tensor) -> bool:
    """Whether the kernels of ``name`` take a tensor: on the CPU, ``(N, C, H, W)`` in channels_last order, float32 or bfloat16."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype in _TYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and library(name) is not None
    )


def call(name: str, function: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call ``function`` for ``dtype`` with tensors and ctypes values; the number of threads, added here, is the last argument."""
    kernels = library(name)
    assert kernels is not None
    values = (ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments)
    getattr(kernels, f"{function}_{_TYPES[dtype]}")(*values, ctypes.c_int(torch.get_num_threads()))
