"""Depthwise convolution whose backward pass is fast on the CPU (``depthwise.cpp``).

PyTorch takes up to nine times as long, and in bf16 far longer still where the convolution is strided.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bcnet.kernels import library
from bcnet.kernels.pointwise import subsample

_MIN_CHANNELS = 16  # a block of the kernel
_Pair = tuple[int, ...]


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: str | _Pair, dilation: _Pair, groups: int
) -> Tensor:
    """``F.conv2d`` for weights ``(O, 1, K, K)``, which takes a faster way to the same numbers where there is one.

    That is the case in training on the CPU: a kernel does the backward pass. Where it does not run, strided convolutions
    under autocast are computed at stride 1 and subsampled, which is about eight times faster than PyTorch's.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled():
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64  # which autocast leaves alone
        if autocast:
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if _takes(x, weight, bias, stride, padding, dilation):
            out: Tensor = _Depthwise.apply(x, weight, bias, stride[0], padding[0])  # type: ignore[no-untyped-call]
            return out
        if autocast and x.ndim == 4 and max(stride) > 1:
            return subsample(F.conv2d(x, weight, bias, 1, padding, dilation, groups), *stride)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@contextmanager
def fast_depthwise(network: nn.Module) -> Iterator[None]:
    """Let `depthwise_conv2d` compute the depthwise convolutions of a plain network, as long as this lasts."""

    def forward(module: Any) -> Any:
        def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return depthwise_conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)

        return run

    plain: list[Any] = [one for one in network.modules() if getattr(type(one), "_conv_forward", None) is nn.Conv2d._conv_forward]
    found = [one for one in plain if one.groups == one.in_channels == one.out_channels > 1 and one.padding_mode == "zeros"]
    for module in found:
        module._conv_forward = forward(module)
    try:
        yield
    finally:
        for module in found:
            del module._conv_forward


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: str | _Pair, dilation: _Pair) -> bool:
    """Whether the kernel does the backward pass of this convolution."""
    kernel = tuple(weight.shape[2:])
    known = kernel in ((3, 3), (5, 5)) and tuple(stride) in ((1, 1), (2, 2)) and tuple(dilation) == (1, 1)
    if not known or isinstance(padding, str) or padding[0] != padding[1] or not library.takes(x):
        return False
    channels = x.shape[1]
    fit = library.fits(weight, x.dtype, (channels, 1, *kernel)) and library.fits(bias, x.dtype, (channels,))
    return fit and channels >= _MIN_CHANNELS and library.library("depthwise") is not None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        x = x.contiguous(memory_format=torch.channels_last)  # a hook on saved tensors may bring it back in another order
        grad = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad_x, size = torch.empty_like(x), weight.shape[-1]
        taps = weight.float().flatten(1).t().contiguous()
        grad_taps = torch.empty_like(taps)
        sizes = (ctypes.c_int64 * 7)(*x.shape, *grad.shape[2:], ctx.padding)
        settings = sizes, ctypes.c_int(size), ctypes.c_int(ctx.stride)
        library.call("depthwise", "depthwise_backward", x.dtype, grad, x, taps, grad_x, grad_taps, *settings)
        grad_bias = grads[0].float().sum((0, 2, 3)).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return grad_x, grad_taps.t().reshape(weight.shape).to(weight.dtype), grad_bias, None, None
