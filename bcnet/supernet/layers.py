"""Slimmable layers: any Conv2d, Linear or BatchNorm whose parameters are slices of wider ones.

A slimmable layer keeps the class of the plain one as its base and its parameters under their ordinary names; only reading
``layer.weight`` (or ``bias``, ``groups``, ``running_mean``, ...) gives the part of the active subnet. So the ``forward``
of torch, timm or the user runs unchanged, and subclasses such as ``BatchNormAct2d`` or ``Conv2dSame`` need no code here.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bcnet.space.widths import Layer, Segment
from bcnet.supernet.depthwise import can_speed_up, depthwise_conv2d
from bcnet.supernet.fused_norm import batch_norm, can_fuse, normalize
from bcnet.supernet.graph import norms_before_relu

Side = Literal["left", "right"]
BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Slices:
    """Which channels of a layer are active.

    Args:
        layer: how the layer is made of groups.
        totals: channels of every group in the supernet.

    Attributes:
        in_place: whether a backward pass adds the gradients of slices to ``parameter.grad`` where they belong. Autograd by itself
            makes a full-size tensor of zeros for every slice and dimension and adds all of them up: the same numbers by many more
            kernels, but also for ``torch.autograd.grad``.
    """

    def __init__(self, layer: Layer, totals: Sequence[int]) -> None:
        self.layer = layer
        self.totals = tuple(totals)
        self.in_place = False
        self.select(self.totals, "left")

    @property
    def num_full_inputs(self) -> int:
        """Size of the input dimension in the supernet."""
        return sum(segment.entries(self.totals) for segment in self.layer.inputs)

    def select(self, channels: Sequence[int], side: Side, *, inputs: Sequence[int] | None = None) -> None:
        """Make ``channels[g]`` channels of every group active, on the left or the right end; maybe others in the inputs."""
        self.outputs = self._ranges(self.layer.outputs, channels, side)
        self.inputs = self._ranges(self.layer.inputs, channels if inputs is None else inputs, side)
        self.num_outputs = sum(stop - start for start, stop in self.outputs)
        self.num_inputs = sum(stop - start for start, stop in self.inputs)
        self.groups = self.num_inputs // self.layer.channels_per_group if self.layer.channels_per_group else 1

    def select_inputs(self, start: int, stop: int, side: Side) -> None:
        """Make a range of input channels active, counted from the side's end."""
        full = self.num_full_inputs
        self.inputs = [(start, stop) if side == "left" else (full - stop, full - start)]
        self.num_inputs = stop - start

    def _ranges(self, segments: tuple[Segment, ...], channels: Sequence[int], side: Side) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        offset = 0
        for segment in segments:
            total, active = segment.entries(self.totals), segment.entries(channels)
            start = offset if side == "left" else offset + total - active
            if ranges and ranges[-1][1] == start:
                ranges[-1] = ranges[-1][0], start + active
            else:
                ranges.append((start, start + active))
            offset += total
        return ranges

    def of_outputs(self, tensor: Tensor | None) -> Tensor | None:
        """The active part of a per-output vector ``(O,)``."""
        return None if tensor is None else _cut(tensor, [self.outputs], self.in_place)

    def of_weight(self, tensor: Tensor) -> Tensor:
        """The active part of a weight ``(O, I, ...)``; a grouped convolution has no input part to take."""
        return _cut(tensor, [self.outputs] if self.layer.channels_per_group else [self.outputs, self.inputs], self.in_place)


_Ranges = list[tuple[int, int]]


def _cut(tensor: Tensor, ranges: Sequence[_Ranges], in_place: bool) -> Tensor:
    """The given ranges of the first dimensions; ``in_place``: see `Slices`."""
    some = any(_narrowed(tensor, dim, part) for dim, part in enumerate(ranges)) and all(len(part) == 1 for part in ranges)
    if some and in_place and tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled():
        cut: Tensor = _Slice.apply(tensor, ranges)  # type: ignore[no-untyped-call]
        return cut
    return _take(tensor, ranges)


def _take(tensor: Tensor, ranges: Sequence[_Ranges]) -> Tensor:
    for dim, part in enumerate(ranges):
        if _narrowed(tensor, dim, part):
            pieces = [tensor.narrow(dim, start, stop - start) for start, stop in part]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return tensor


def _narrowed(tensor: Tensor, dim: int, ranges: _Ranges) -> bool:
    return ranges != [(0, tensor.shape[dim])]


class _Slice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ranges: Sequence[_Ranges]) -> Tensor:
        ctx.parameter, ctx.ranges = parameter, ranges
        return _view(parameter, ranges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        if ctx.parameter.grad is None:
            ctx.parameter.grad = torch.zeros_like(ctx.parameter)
        _view(ctx.parameter.grad, ctx.ranges).add_(grads[0])
        return None, None


def _view(tensor: Tensor, ranges: Sequence[_Ranges]) -> Tensor:
    """One range of each of the first dimensions, by one operation."""
    shape, offset = list(tensor.shape), tensor.storage_offset()
    for dim, ((start, stop),) in enumerate(ranges):
        shape[dim] = stop - start
        offset += start * tensor.stride(dim)
    return tensor.as_strided(shape, tensor.stride(), offset)


def make_slimmable(module: nn.Module, layer: Layer, totals: Sequence[int]) -> None:
    """Turn a plain layer that already has the supernet's parameters into a slimmable one, in place."""
    module.__class__ = _slimmable_class(type(module))  # type: ignore[arg-type]
    module.slices = Slices(layer, totals)  # type: ignore[assignment]


def fuse_relus(net: nn.Module) -> None:
    """Let slimmable BN layers do the work of the ReLU behind them, where the fused kernel runs."""
    for name, relu in norms_before_relu(net):
        norm: Any = net.get_submodule(name)
        if not hasattr(norm, "before_relu"):
            continue
        norm.before_relu = True
        if relu is not None:
            skipped: Any = net.get_submodule(relu)
            skipped.__class__ = _SkippedReLU
            skipped.norm = (norm,)  # in a tuple, so that it is not a submodule


class _SkippedReLU(nn.ReLU):
    """A ReLU that has nothing left to do when the BN layer before it did it (a second time would change nothing)."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.norm[0].rectified else super().forward(x)  # type: ignore[index,union-attr]


def make_plain(net: nn.Module) -> nn.Module:
    """A copy of a network in which every slimmable layer is a plain one that owns its active parameters."""
    copies: dict[int, Any] = {}
    for module in net.modules():
        if not hasattr(module, "slices"):
            continue
        for name, full in [*module._parameters.items(), *module._buffers.items()]:
            active = getattr(module, name)
            if isinstance(full, nn.Parameter):
                copies[id(full)] = nn.Parameter(active.detach().clone(), full.requires_grad)
            elif full is not None:
                copies[id(full)] = active.detach().clone()
    plain = copy.deepcopy(net, copies)  # takes what is in `copies` for done, so full-size parameters are never copied
    for module in plain.modules():
        if hasattr(module, "slices"):
            sizes = {name: getattr(module, name) for name in type(module).sliced_sizes}  # type: ignore[attr-defined]
            module.__class__ = type(module).__bases__[0]
            del module.slices
            for name, size in sizes.items():
                setattr(module, name, size)
            for name in ("before_relu", "rectified"):
                module.__dict__.pop(name, None)
        elif isinstance(module, _SkippedReLU):
            module.__class__ = nn.ReLU  # type: ignore[assignment]
            del module.norm
    return plain


@cache
def _slimmable_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a plain layer class that reads its parameters through ``self.slices``."""
    sizes: dict[str, Callable[[Any], int]]
    members: dict[str, Any] = {"bias": _vector("bias")}
    if issubclass(plain, nn.Conv2d):
        sizes = {"in_channels": _num_inputs, "out_channels": _num_outputs, "groups": lambda module: module.slices.groups}
        members |= {"weight": _weight(), "_conv_forward": _conv_forward(plain)}
    elif issubclass(plain, nn.Linear):
        sizes = {"in_features": _num_inputs, "out_features": _num_outputs}
        members |= {"weight": _weight()}
    elif issubclass(plain, BATCH_NORM):
        sizes = {"num_features": _num_outputs}
        members |= {name: _vector(name) for name in ("weight", "running_mean", "running_var")}
        if plain.forward is nn.BatchNorm2d.forward:
            members |= {"forward": _norm_forward(plain), "before_relu": False, "rectified": False}
    else:
        raise TypeError(f"{plain.__name__} cannot be made slimmable")
    members |= {name: property(get) for name, get in sizes.items()}
    members["sliced_sizes"] = tuple(sizes)
    return type(f"Slimmable{plain.__name__}", (plain,), members)


def _num_inputs(module: Any) -> int:
    return int(module.slices.num_inputs)


def _num_outputs(module: Any) -> int:
    return int(module.slices.num_outputs)


def _weight() -> property:
    return property(lambda module: module.slices.of_weight(module._parameters["weight"]))


def _vector(name: str) -> property:
    def read(module: Any) -> Tensor | None:
        store = module._parameters if name in module._parameters else module._buffers
        part: Tensor | None = module.slices.of_outputs(store[name])
        return part

    return property(read)


def _norm_forward(plain: type[nn.Module]) -> Callable[..., Tensor]:
    """``BatchNorm2d.forward`` by the fused kernel where it runs, with the ReLU behind it; else by PyTorch."""

    def forward(self: Any, x: Tensor) -> Tensor:
        batch_statistics = self.training or self._buffers["running_mean"] is None
        self.rectified = can_fuse(x) and (batch_statistics or not torch.is_grad_enabled())
        if not self.rectified:
            out: Tensor = plain.forward(self, x)
            return out
        self.rectified = relu = self.before_relu
        if not batch_statistics:
            return normalize(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps, relu=relu)
        out, statistics = batch_norm(x, self.weight, self.bias, self.eps, relu=relu)
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            count = x.numel() / x.shape[1]
            self.running_mean.lerp_(statistics[0], factor)
            self.running_var.lerp_(statistics[1] * (count / (count - 1)), factor)
        return out

    return forward


def _conv_forward(plain: type[nn.Conv2d]) -> Callable[..., Tensor]:
    """``Conv2d._conv_forward`` that takes a faster way to the same numbers where there is one.

    That is the case in training on the CPU, for depthwise convolutions: a kernel does their backward pass. Where it does
    not run, strided ones in bf16 are computed at stride 1 and subsampled, which is about eight times faster than PyTorch's.
    """

    def forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        depthwise = self.slices.layer.channels_per_group == 1
        out: Tensor
        if not depthwise or x.device.type != "cpu" or not torch.is_grad_enabled():
            out = plain._conv_forward(self, x, weight, bias)
            return out
        bf16 = torch.is_autocast_enabled("cpu")
        if bf16:
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if can_speed_up(self, x):
            return depthwise_conv2d(x, weight, bias, self.stride[0], self.padding[0])
        if not bf16 or max(self.stride) == 1 or self.padding_mode != "zeros":
            out = plain._conv_forward(self, x, weight, bias)
            return out
        out = F.conv2d(x, weight, bias, 1, self.padding, self.dilation, self.groups)
        out = _Subsample.apply(out, *self.stride)  # type: ignore[no-untyped-call]
        return out

    return forward


class _Subsample(torch.autograd.Function):
    """Every n-th row and m-th column, in channels_last order both ways (slicing would hand back gradients in another)."""

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
