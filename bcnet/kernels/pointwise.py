"""Strided 1x1 convolutions of a few channels, whose weight gradients PyTorch gets wrong on some CPUs.

In channels_last order, with fewer than eight input channels, stride 2 and an even size, the weight gradient of a 1x1 convolution is
off by more than its own size where oneDNN has AVX2 and no AVX512, and memory beside it is overwritten (seen with torch 2.15.0,
oneDNN 3.13.3). Such convolutions read every other pixel first and run at stride 1, which is the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SAFE_CHANNELS = 8


def is_unsafe(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: str | tuple[int, ...]) -> bool:
    """Whether the gradient of such a convolution may come out wrong: ``x`` is ``(N, C, H, W)``, ``weight`` ``(O, C / groups, 1, 1)``."""
    small = x.device.type == "cpu" and x.ndim == 4 and x.shape[1] < _SAFE_CHANNELS and torch.is_grad_enabled()
    return small and tuple(weight.shape[2:]) == (1, 1) and max(stride) > 1 and padding in ((0, 0), "valid")


def strided_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], groups: int) -> Tensor:
    """``F.conv2d`` for weights ``(O, I, 1, 1)`` without padding, by way of stride 1."""
    return F.conv2d(subsample(x, *stride), weight, bias, groups=groups)


def subsample(x: Tensor, rows: int, columns: int) -> Tensor:
    """Every n-th row and m-th column of ``(N, C, H, W)``, in channels_last order."""
    result: Tensor = _Subsample.apply(x, rows, columns)  # type: ignore[no-untyped-call]
    return result


@contextmanager
def safe_convolutions(net: nn.Module) -> Iterator[None]:
    """Train a plain network with `strided_conv2d` where that is needed."""
    mended = [module for module in net.modules() if type(module) is nn.Conv2d and _may_be_unsafe(module)]
    for module in mended:
        module._conv_forward = _forward(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in mended:
            del module._conv_forward  # type: ignore[method-assign]


def _may_be_unsafe(module: nn.Conv2d) -> bool:
    zeros = module.padding_mode == "zeros"
    return zeros and module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < _SAFE_CHANNELS


def _forward(module: nn.Conv2d) -> Any:
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_unsafe(x, weight, module.stride, module.padding):
            return strided_conv2d(x, weight, bias, module.stride, module.groups)
        out: Tensor = nn.Conv2d._conv_forward(module, x, weight, bias)
        return out

    return forward


class _Subsample(torch.autograd.Function):
    """In channels_last order both ways (slicing would hand back gradients in another)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, columns: int) -> Tensor:
        ctx.shape, ctx.steps = x.shape, (rows, columns)
        return x[..., ::rows, ::columns].contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad = torch.empty(ctx.shape, dtype=grads[0].dtype, memory_format=torch.channels_last).zero_()
        grad[..., :: ctx.steps[0], :: ctx.steps[1]] = grads[0]
        return grad, None, None
