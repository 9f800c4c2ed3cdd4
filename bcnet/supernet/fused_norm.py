"""BN and the ReLU behind it in one pass on the CPU, by a kernel that is compiled when it is first used.

Training on a CPU waits for memory, and half of its traffic is BN and ReLU. The kernel (``batch_norm.cpp``) wants nothing
but a C++ compiler; without one, or with ``BCNET_KERNELS=off``, PyTorch's own operations do the same.
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

_SOURCE = Path(__file__).with_name("batch_norm.cpp")
_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17", "-fPIC", "-fopenmp")
_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or ``None`` where there are none."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if os.environ.get("BCNET_KERNELS") == "off" or compiler is None or not sys.platform.startswith("linux"):
        return None
    machine = " ".join((cpu_info("flags"), torch.__version__, compiler, *_FLAGS))
    name = hashlib.sha256(machine.encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    library = cache_folder() / f"batch_norm-{name}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    # torch's own OpenMP runtime, so that both share one pool of threads
    runtime = sorted(str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"))
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made, objects = Path(folder) / "made.so", Path(folder) / "made.o"
        link = ["-shared", str(objects), *(runtime[:1] or ["-lgomp"]), "-o", str(made)]
        for arguments in ([*_FLAGS, "-c", str(_SOURCE), "-o", str(objects)], link):
            subprocess.run([compiler, *arguments], check=True, capture_output=True, timeout=120)
        made.replace(library)


def can_fuse(x: Tensor) -> bool:
    """Whether the kernels take this tensor: on the CPU, ``(N, C, H, W)`` in channels_last order, float32 or bfloat16."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype in _TYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and kernels() is not None
    )


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float, *, relu: bool) -> Tensor:
    """BN of ``(N, C, H, W)`` with given statistics ``(C,)``, and ReLU if asked; without gradients."""
    y = torch.empty_like(x)
    _call("bn_apply", x.dtype, x, weight, bias, y, torch.stack((mean, var)), *_sizes(x, eps, relu))
    return y


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, relu: bool) -> tuple[Tensor, Tensor]:
    """BN of ``(N, C, H, W)`` with the statistics of the batch, and ReLU if asked.

    Returns:
        The result; mean and biased variance of the batch, ``(2, C)``.
    """
    result: tuple[Tensor, Tensor] = _BatchNorm.apply(x, weight, bias, eps, relu)  # type: ignore[no-untyped-call]
    return result


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool) -> tuple[Tensor, Tensor]:
        y, statistics = torch.empty_like(x), torch.empty((2, x.shape[1]))
        _call("bn_forward", x.dtype, x, weight, bias, y, statistics, *_sizes(x, eps, relu))
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.relu = eps, relu
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight, bias, statistics = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 5
        grad = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        sizes = _sizes(x, ctx.eps, ctx.relu)
        _call("bn_backward", x.dtype, grad, x, weight, bias, statistics, grad_x, grad_weight, grad_bias, *sizes)
        return grad_x, None if weight is None else grad_weight, None if bias is None else grad_bias, None, None


def _sizes(x: Tensor, eps: float, relu: bool) -> tuple[Any, ...]:
    count, channels, height, width = x.shape
    return (
        ctypes.c_int64(count * height * width),
        ctypes.c_int64(channels),
        ctypes.c_float(eps),
        ctypes.c_int(relu),
        ctypes.c_int(torch.get_num_threads()),
    )


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    library = kernels()
    assert library is not None
    values = (ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments)
    getattr(library, f"{name}_{_TYPES[dtype]}")(*values)
