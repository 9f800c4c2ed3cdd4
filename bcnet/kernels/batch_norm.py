"""BN and the ReLU behind it in one pass on the CPU (``batch_norm.cpp``).

Training on a CPU waits for memory, and half of its traffic is BN and ReLU.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bcnet.kernels import library


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor | None:
    """``F.batch_norm`` of ``(N, C, H, W)``, and ReLU if asked.

    Args:
        x: the activations.
        weight: one factor per channel.
        bias: one summand per channel.
        running_mean: moved towards the batch's mean in training, if given; else what is subtracted.
        running_var: the same for the variance.
        training: normalise with the statistics of the batch; else with the running ones, which has no backward pass here.
        momentum: how far the running statistics move.
        eps: added to the variance.
        relu: cut off what is below zero.

    Returns:
        The result; ``None`` where PyTorch must do it: the kernel does not take these tensors, and nothing has been changed.
    """
    if not _takes(x, (weight, bias, running_mean, running_var), training):
        return None
    if not training:
        assert running_mean is not None
        assert running_var is not None
        y, statistics = torch.empty_like(x), torch.stack((running_mean, running_var))
        library.call("batch_norm", "bn_apply", x.dtype, x, weight, bias, y, statistics, *_sizes(x, eps, relu))
        return y
    out: Tensor
    out, statistics = _BatchNorm.apply(x, weight, bias, eps, relu)  # type: ignore[no-untyped-call]
    if running_mean is not None and running_var is not None:
        count = x.numel() / x.shape[1]
        running_mean.lerp_(statistics[0], momentum)
        running_var.lerp_(statistics[1] * (count / (count - 1)), momentum)
    return out


def _takes(x: Tensor, vectors: tuple[Tensor | None, ...], training: bool) -> bool:
    """Whether the kernel takes the activations and vectors; those it reads as contiguous floats, as many as there are channels."""
    if not library.takes(x) or not all(library.fits(vector, torch.float32, x.shape[1:2]) for vector in vectors):
        return False
    # PyTorch refuses to train on a single value per channel; with running statistics the kernel has no backward pass
    possible = x.numel() > x.shape[1] if training else not torch.is_grad_enabled()
    return possible and library.library("batch_norm") is not None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool) -> tuple[Tensor, Tensor]:
        y, statistics = torch.empty_like(x), _floats(2, x.shape[1])
        library.call("batch_norm", "bn_forward", x.dtype, x, weight, bias, y, statistics, *_sizes(x, eps, relu))
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.relu = eps, relu
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if grads[0] is None:
            return (None,) * 5
        x, weight, bias, statistics = ctx.saved_tensors
        x = x.contiguous(memory_format=torch.channels_last)  # a hook on saved tensors may bring it back in another order
        grad = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), _floats(x.shape[1]), _floats(x.shape[1])
        arguments = grad, x, weight, bias, statistics, grad_x, grad_weight, grad_bias, *_sizes(x, ctx.eps, ctx.relu)
        library.call("batch_norm", "bn_backward", x.dtype, *arguments)
        return grad_x, None if weight is None else grad_weight, None if bias is None else grad_bias, None, None


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _sizes(x: Tensor, eps: float, relu: bool) -> tuple[Any, ...]:
    count, channels, height, width = x.shape
    return ctypes.c_int64(count * height * width), ctypes.c_int64(channels), ctypes.c_float(eps), ctypes.c_int(relu)
