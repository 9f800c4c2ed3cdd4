"""BN and the ReLU behind it in one pass on the CPU (``batch_norm.cpp``).

Training on a CPU waits for memory, and half of its traffic is BN and ReLU.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bcnet.supernet import kernels


def can_fuse(x: Tensor) -> bool:
    """Whether the kernels take this tensor ``(N, C, H, W)``."""
    return kernels.takes("batch_norm", x)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float, *, relu: bool) -> Tensor:
    """BN of ``(N, C, H, W)`` with given statistics ``(C,)``, and ReLU if asked; without gradients."""
    y = torch.empty_like(x)
    kernels.call("batch_norm", "bn_apply", x.dtype, x, weight, bias, y, torch.stack((mean, var)), *_sizes(x, eps, relu))
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
        kernels.call("batch_norm", "bn_forward", x.dtype, x, weight, bias, y, statistics, *_sizes(x, eps, relu))
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.relu = eps, relu
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight, bias, statistics = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 5
        grad = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        arguments = grad, x, weight, bias, statistics, grad_x, grad_weight, grad_bias, *_sizes(x, ctx.eps, ctx.relu)
        kernels.call("batch_norm", "bn_backward", x.dtype, *arguments)
        return grad_x, None if weight is None else grad_weight, None if bias is None else grad_bias, None, None


def _sizes(x: Tensor, eps: float, relu: bool) -> tuple[Any, ...]:
    count, channels, height, width = x.shape
    return ctypes.c_int64(count * height * width), ctypes.c_int64(channels), ctypes.c_float(eps), ctypes.c_int(relu)
