"""Depthwise convolution whose backward pass is fast on the CPU (``depthwise.cpp``).

PyTorch takes up to nine times as long, and in bf16 far longer still where the convolution is strided.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bcnet.supernet import kernels

_MIN_CHANNELS = 16  # a block of the kernel


def can_speed_up(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the kernel takes the backward pass of a depthwise layer on ``(N, C, H, W)``."""
    square = conv.kernel_size in ((3, 3), (5, 5)) and conv.stride in ((1, 1), (2, 2)) and conv.dilation == (1, 1)
    padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.padding[0] == conv.padding[1]
    return square and padded and x.shape[1] >= _MIN_CHANNELS and x.shape[1] == conv.out_channels and kernels.takes("depthwise", x)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """``F.conv2d`` of ``(N, C, H, W)`` in channels_last order with a weight ``(C, 1, K, K)``; see `can_speed_up`."""
    result: Tensor = _Depthwise.apply(x, weight, bias, stride, padding)  # type: ignore[no-untyped-call]
    return result


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
        grad = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad_x, size = torch.empty_like(x), weight.shape[-1]
        taps = weight.float().flatten(1).t().contiguous()
        grad_taps = torch.empty_like(taps)
        sizes = (ctypes.c_int64 * 7)(*x.shape, *grad.shape[2:], ctx.padding)
        settings = sizes, ctypes.c_int(size), ctypes.c_int(ctx.stride)
        kernels.call("depthwise", "depthwise_backward", x.dtype, grad, x, taps, grad_x, grad_taps, *settings)
        grad_bias = grads[0].float().sum((0, 2, 3)).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return grad_x, grad_taps.t().reshape(weight.shape).to(weight.dtype), grad_bias, None, None
