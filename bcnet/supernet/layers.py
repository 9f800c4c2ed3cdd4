"""Slimmable layers: any Conv2d, Linear or BatchNorm whose parameters are slices of wider ones.

A slimmable layer keeps the class of the plain one as its base and its parameters under their ordinary names; only reading
``layer.weight`` (or ``bias``, ``groups``, ``running_mean``, ...) gives the part of the active subnet. So the ``forward``
of torch, timm or the user runs unchanged, and subclasses such as ``BatchNormAct2d`` or ``Conv2dSame`` need no code here.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.kernels.batch_norm import batch_norm
from bcnet.kernels.depthwise import depthwise_conv2d
from bcnet.models.shortcut import drop_unused_bodies
from bcnet.space.widths import Layer, Segment, Side
from bcnet.supernet.graph import norms_before_relu

BATCH_NORM = nn.modules.batchnorm._BatchNorm
RUNNING = ("running_mean", "running_var")


class Slices:
    """Which channels of a layer are active.

    Args:
        layer: how the layer is made of groups.
        totals: channels of every group in the supernet.
    """

    def __init__(self, layer: Layer, totals: Sequence[int]) -> None:
        self.layer = layer
        self.totals = tuple(totals)
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
        return None if tensor is None else _take(tensor, [self.outputs])

    def put_outputs(self, tensor: Tensor, values: Tensor) -> None:
        """Write the active part of a per-output vector ``(O,)``."""
        offset = 0
        for start, stop in self.outputs:
            tensor[start:stop] = values[offset : offset + stop - start]
            offset += stop - start

    def of_weight(self, tensor: Tensor) -> Tensor:
        """The active part of a weight ``(O, I, ...)``; a grouped convolution has no input part to take."""
        return _take(tensor, [self.outputs] if self.layer.channels_per_group else [self.outputs, self.inputs])


_Ranges = list[tuple[int, int]]


def _take(tensor: Tensor, ranges: Sequence[_Ranges]) -> Tensor:
    """The given ranges of the first dimensions."""
    for dim, part in enumerate(ranges):
        if _narrowed(tensor, dim, part):
            pieces = [tensor.narrow(dim, start, stop - start) for start, stop in part]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return tensor


def _narrowed(tensor: Tensor, dim: int, ranges: _Ranges) -> bool:
    return ranges != [(0, tensor.shape[dim])]


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
    """A ReLU that has nothing left to do when the BN layer before it did it: a second time would change nothing, and takes time.

    Skipping it made scoring 9 % faster on an AMD EPYC (benchmarks/results/speed_amd_epyc_2026-11-20.md).
    """

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
    drop_unused_bodies(plain)
    return plain


@cache
def _slimmable_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a plain layer class that reads its parameters through ``self.slices``."""
    sizes: dict[str, Callable[[Any], int]]
    members: dict[str, Any] = {"bias": _vector("bias")}
    if issubclass(plain, nn.Conv2d):
        sizes = {"in_channels": _num_inputs, "out_channels": _num_outputs, "groups": lambda module: module.slices.groups}
        members |= {"weight": _weight()}
        if plain._conv_forward is nn.Conv2d._conv_forward:
            members |= {"_conv_forward": _conv_forward}
    elif issubclass(plain, nn.Linear):
        sizes = {"in_features": _num_inputs, "out_features": _num_outputs}
        members |= {"weight": _weight()}
    elif issubclass(plain, BATCH_NORM):
        sizes = {"num_features": _num_outputs}
        members |= {"weight": _vector("weight")} | {name: _vector(name) for name in RUNNING}
        members |= {"__call__": _norm_call(plain), "write_statistics": _write_statistics, "reset_running_stats": _reset_statistics}
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
        if name in module.__dict__.get("gathered", ()):
            return module.gathered[name]  # type: ignore[no-any-return]
        store = module._parameters if name in module._parameters else module._buffers
        part: Tensor | None = module.slices.of_outputs(store[name])
        return part

    return property(read)


def _norm_call(plain: type[nn.Module]) -> Callable[..., Any]:
    """A call after which running statistics are where they belong, also when the active channels are not one range.

    Of several ranges (behind a concatenation) reading gives a copy; what the call writes into that is put back.
    """

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if len(self.slices.outputs) == 1 or self._buffers["running_mean"] is None:
            return plain.__call__(self, *arguments, **keywords)
        self.gathered = {name: getattr(self, name) for name in RUNNING}
        try:
            result = plain.__call__(self, *arguments, **keywords)
        finally:
            gathered = self.__dict__.pop("gathered")
        if self.training and self.track_running_stats:
            self.write_statistics(*gathered.values())
        return result

    return call


def _write_statistics(norm: Any, mean: Tensor, var: Tensor) -> None:
    """Set the running statistics of the active channels, ``(C,)`` each."""
    for name, values in zip(RUNNING, (mean, var), strict=True):
        norm.slices.put_outputs(norm._buffers[name], values)


def _reset_statistics(norm: Any) -> None:
    """Forget the running statistics of the active channels."""
    if norm._buffers["running_mean"] is not None:
        mean = torch.zeros_like(norm.running_mean)
        norm.write_statistics(mean, torch.ones_like(mean))
        norm.num_batches_tracked.zero_()


def _norm_forward(plain: type[nn.Module]) -> Callable[..., Tensor]:
    """``BatchNorm2d.forward`` by the fused kernel where it runs, with the ReLU behind it; else by PyTorch."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = _fused_norm(self, x) if x.device.type == "cpu" else None
        self.rectified = out is not None and self.before_relu
        return plain.forward(self, x) if out is None else out

    return forward


def _fused_norm(norm: Any, x: Tensor) -> Tensor | None:
    """The kernel's result, ReLU included; ``None`` where it does not run. Which statistics: as in ``BatchNorm2d.forward``."""
    training = norm.training or norm._buffers["running_mean"] is None
    tracks = norm.training and norm.track_running_stats
    running = (norm.running_mean, norm.running_var) if tracks or not training else (None, None)
    batches = norm.num_batches_tracked if tracks else None
    momentum = 1 / (batches.item() + 1) if norm.momentum is None and batches is not None else norm.momentum or 0.0
    out = batch_norm(x, norm.weight, norm.bias, *running, training=training, momentum=momentum, eps=norm.eps, relu=norm.before_relu)
    if out is not None and batches is not None:
        batches.add_(1)
    return out


def _conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``Conv2d._conv_forward`` with a faster way for depthwise convolutions."""
    if self.slices.layer.channels_per_group == 1 and self.padding_mode == "zeros":
        return depthwise_conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
    out: Tensor = nn.Conv2d._conv_forward(self, x, weight, bias)
    return out
