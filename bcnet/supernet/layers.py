"""Slimmable layers: any Conv2d, Linear or BatchNorm whose parameters are slices of wider ones.

A slimmable layer keeps the class of the plain one as its base and its parameters under their ordinary names; only reading
``layer.weight`` (or ``bias``, ``groups``, ``running_mean``, ...) gives the part of the active subnet. So the ``forward``
of torch, timm or the user runs unchanged, and subclasses such as ``BatchNormAct2d`` or ``Conv2dSame`` need no code here.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.kernels.batch_norm import batch_norm
from bcnet.kernels.depthwise import depthwise_conv2d
from bcnet.kernels.pointwise import is_unsafe, strided_conv2d
from bcnet.models.copying import copy_network
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

    Attributes:
        switched_by: the group for each of whose widths the layer has parameters of its own, and its channels at these, ascending.
    """

    def __init__(self, layer: Layer, totals: Sequence[int]) -> None:
        self.layer = layer
        self.totals = tuple(totals)
        self.switched_by: tuple[int, tuple[int, ...]] | None = None
        self._tensors = {tensor.name: tensor for tensor in layer.tensors}
        self.select(self.totals, "left")

    @property
    def num_full_inputs(self) -> int:
        """Size of the input dimension in the supernet."""
        return sum(segment.entries(self.totals) for segment in self.layer.inputs)

    def select(self, channels: Sequence[int], side: Side, *, inputs: Sequence[int] | None = None) -> None:
        """Make ``channels[g]`` channels of every group active, on the left or the right end; maybe others in the inputs."""
        self._active = channels, side
        self._switch = channels if inputs is None or self.layer.kind == "norm" else inputs
        self._of_tensor: dict[str, list[_Ranges]] = {}
        self.outputs = self.ranges(self.layer.outputs, channels, side)
        self.inputs = self.ranges(self.layer.inputs, channels if inputs is None else inputs, side)
        self.num_outputs = sum(stop - start for start, stop in self.outputs)
        self.num_inputs = sum(stop - start for start, stop in self.inputs)
        self.groups = self.num_inputs // self.layer.channels_per_group if self.layer.channels_per_group else 1

    def select_inputs(self, start: int, stop: int, side: Side) -> None:
        """Make a range of input channels active, counted from the side's end."""
        full = self.num_full_inputs
        self.inputs = [(start, stop) if side == "left" else (full - stop, full - start)]
        self.num_inputs = stop - start
        self._of_tensor = {}

    def ranges(self, segments: tuple[Segment, ...], channels: Sequence[int], side: Side) -> "_Ranges":
        """The active entries of a dimension, as ranges of those it has in the supernet."""
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

    def of_tensor(self, name: str) -> "list[_Ranges]":
        """The active entries of every dimension of a parameter or buffer."""
        known = self._of_tensor.get(name)
        if known is None:
            of_role = {"out": self.outputs, "in": self.inputs}
            tensor = self._tensors[name]
            known = [
                of_role[role] if role != "own" else self.ranges(dim, *self._active)
                for dim, role in zip(tensor.dims, tensor.roles, strict=True)
            ]
            self._of_tensor[name] = known
        return known

    def holds(self, name: str) -> bool:
        """Whether a parameter or buffer is sliced."""
        return name in self._tensors

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """The active part of a parameter or buffer."""
        if self.switched_by is not None and isinstance(tensor, nn.Parameter):
            group, counts = self.switched_by
            nearest = min(range(len(counts)), key=lambda own: abs(counts[own] - self._switch[group]))  # a uniform width is no choice
            tensor = tensor.chunk(len(counts))[nearest]
        return _take(tensor, self.of_tensor(name))

    def put_outputs(self, tensor: Tensor, values: Tensor) -> None:
        """Write the active part of a per-output vector ``(O,)``."""
        offset = 0
        for start, stop in self.outputs:
            tensor[start:stop] = values[offset : offset + stop - start]
            offset += stop - start


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
    if isinstance(module, nn.GroupNorm):
        module.channels_per_group = module.num_channels // module.num_groups if module.num_groups > 1 else 0  # type: ignore[assignment]
    names = tuple(one.name for one in layer.tensors if any(segment.group is not None for dim in one.dims for segment in dim))
    module.__class__ = _slimmable_class(type(module), names, layer.size)  # type: ignore[arg-type]
    module.slices = Slices(layer, totals)  # type: ignore[assignment]


def make_switchable(module: Any, channel_table: Sequence[Sequence[int]]) -> None:
    """Give a slimmable norm parameters of its own for every width, or a classifier for every width of its input, in place.

    Layers whose channels belong to more than one group keep one set.

    Args:
        module: the slimmable layer.
        channel_table: channels at every index, a row per group.
    """
    slices: Slices = module.slices
    dims = slices.layer.outputs if slices.layer.kind == "norm" else slices.layer.inputs
    if len(dims) != 1 or dims[0].group is None:
        return
    slices.switched_by = dims[0].group, tuple(channel_table[dims[0].group][1:])
    for name in type(module).sliced_tensors:
        parameter = module._parameters.get(name)
        if parameter is not None:
            parameter.data = torch.cat([parameter.detach()] * len(slices.switched_by[1]))


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


def make_plain(net: nn.Module, *, keep_shortcuts: bool = False) -> nn.Module:
    """A copy of a network in which every slimmable layer is a plain one that owns its active parameters.

    Args:
        net: the network.
        keep_shortcuts: keep also the shortcuts that are the identity at the active widths.
    """
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
    plain = copy_network(net, copies)  # takes what is in `copies` for done, so full-size parameters are never copied
    for module in plain.modules():
        if hasattr(module, "slices"):
            sizes = {name: getattr(module, name) for name in type(module).sliced_sizes}  # type: ignore[attr-defined]
            module.__class__ = type(module).__bases__[0]
            del module.slices
            for name, size in sizes.items():
                setattr(module, name, size)
            for name in ("before_relu", "rectified", "channels_per_group"):
                module.__dict__.pop(name, None)
        elif isinstance(module, _SkippedReLU):
            module.__class__ = nn.ReLU  # type: ignore[assignment]
            del module.norm
    if not keep_shortcuts:
        drop_unused_bodies(plain)
    return plain


# What a module keeps of its sizes beside its parameters, and what it is when only some channels are active.
_SIZES: dict[str, Callable[[Any], Any]] = {
    "in_channels": lambda module: module.slices.num_inputs,
    "in_features": lambda module: module.slices.num_inputs,
    "out_channels": lambda module: module.slices.num_outputs,
    "out_features": lambda module: module.slices.num_outputs,
    "num_features": lambda module: module.slices.num_outputs,
    "num_channels": lambda module: module.slices.num_outputs,
    "channels": lambda module: module.slices.num_outputs,
    "out_chs": lambda module: module.slices.num_outputs,
    "num_parameters": lambda module: module.slices.num_outputs,
    "groups": lambda module: module.slices.groups,
    "num_groups": lambda module: module.slices.num_outputs // module.channels_per_group if module.channels_per_group else 1,
    "normalized_shape": lambda module: (module.slices.num_outputs,),
}
SIZE_NAMES = tuple(_SIZES)
_SIZES_OF: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    BATCH_NORM: ("num_features",),
    nn.LayerNorm: ("normalized_shape",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.modules.instancenorm._InstanceNorm: ("num_features",),
    nn.PReLU: ("num_parameters",),
}


@cache
def _slimmable_class(plain: type[nn.Module], tensors: tuple[str, ...], size: str) -> type[nn.Module]:
    """A subclass of a plain layer class that reads its parameters through ``self.slices``."""
    sizes = next((names for base, names in _SIZES_OF.items() if issubclass(plain, base)), ())
    sizes = (*sizes, *({size} - {"", *sizes}))
    members: dict[str, Any] = {name: _tensor(name) for name in tensors}
    if issubclass(plain, nn.Conv2d) and plain._conv_forward is nn.Conv2d._conv_forward:
        members |= {"_conv_forward": _conv_forward}
    elif issubclass(plain, BATCH_NORM):
        members |= {"__call__": _norm_call(plain), "write_statistics": _write_statistics, "reset_running_stats": _reset_statistics}
        if plain.forward is nn.BatchNorm2d.forward:
            members |= {"forward": _norm_forward(plain), "before_relu": False, "rectified": False}
    members |= {name: property(_SIZES[name]) for name in sizes}
    members |= {"sliced_sizes": tuple(sizes), "sliced_tensors": tensors}
    return type(f"Slimmable{plain.__name__}", (plain,), members)


def _tensor(name: str) -> property:
    def read(module: Any) -> Tensor | None:
        if name in module.__dict__.get("gathered", ()):
            return module.gathered[name]  # type: ignore[no-any-return]
        store = module._parameters if name in module._parameters else module._buffers
        tensor: Tensor | None = store[name]
        return None if tensor is None else module.slices.take(name, tensor)

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
    """``Conv2d._conv_forward`` with a faster way for depthwise convolutions, and a right one for strided 1x1 convolutions."""
    if self.padding_mode == "zeros":
        if self.slices.layer.channels_per_group == 1:
            return depthwise_conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if is_unsafe(x, weight, self.stride, self.padding):
            return strided_conv2d(x, weight, bias, self.stride, self.groups)
    out: Tensor = nn.Conv2d._conv_forward(self, x, weight, bias)
    return out
