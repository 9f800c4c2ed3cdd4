"""The weight-sharing supernet: one network that holds the parameters of every subnet."""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from bcnet.models.copying import copy_network
from bcnet.models.outputs import logits_of
from bcnet.space.widths import Segment, Side, Space, Widths
from bcnet.supernet.layers import BATCH_NORM, Slices, fuse_relus, make_plain, make_slimmable, make_switchable


class Supernet(nn.Module):
    """A copy of a model whose layers can be restricted to any (widths, side).

    BN layers normalise with batch statistics while training and never update running ones; `calibrate` computes those for
    one subnet when it is to be evaluated.

    Args:
        model: the plain model, left as it is.
        space: its traced space.
        wide: hold ``K + k_min`` bins per group (BCNetV2) instead of ``K``. The added channels are drawn from the plain
            layer's own initial values, so any initialiser is kept; the first ``K`` bins hold the model's parameters.
        seed: of that draw.
        wrap: the added channels are copies of the group's first ones instead, so that a trained model's function is that of the full
            width on both sides.
        fuse: let BN layers on the CPU do the ReLU behind them.
        switchable_norms: give every BN layer scales and shifts of its own for every width (slimmable networks, ICLR 2019).
        switchable_classifier: give the layers that read a group and give the outputs weights of their own for every width of it.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        *,
        wide: bool = False,
        seed: int = 0,
        wrap: bool = False,
        fuse: bool = True,
        switchable_norms: bool = False,
        switchable_classifier: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        self.wide = wide
        self.channel_table = space.channel_table(wide)
        totals = [row[-1] for row in self.channel_table]
        self.net = copy_network(model)
        make_sliceable(self.net, space, totals, None if wrap else torch.Generator().manual_seed(seed))
        for module in self.net.modules():
            if isinstance(module, BATCH_NORM):
                module.track_running_stats = False
        for module in self.net.modules():
            slices = getattr(module, "slices", None)
            if isinstance(slices, Slices):
                is_classifier = slices.layer.kind == "linear" and all(segment.group is None for segment in slices.layer.outputs)
                if (switchable_norms and isinstance(module, BATCH_NORM)) or (switchable_classifier and is_classifier):
                    make_switchable(module, self.channel_table)
        self.set_active_subnet(space.full, "left")
        if fuse:
            fuse_relus(self.net)

    def set_active_subnet(self, widths: Sequence[int], side: Side) -> None:
        """Restrict the network to channels ``[0, w)`` (left) or ``[l - w, l)`` (right) of every group."""
        self.active: tuple[Widths, Side] = tuple(widths), side
        channels = [row[k] for row, k in zip(self.channel_table, widths, strict=True)]
        set_active_channels(self.net, channels, side)

    def get_active_subnet(self) -> nn.Module:
        """The active subnet as a plain module with ordinary layers and names; it shares nothing with the supernet."""
        net = make_plain(self.net)
        for module in net.modules():
            if isinstance(module, BATCH_NORM):
                module.track_running_stats = module.running_mean is not None
        return net

    def extract(self, widths: Sequence[int], side: Side = "left") -> nn.Module:
        """Shorthand for `set_active_subnet` and `get_active_subnet`; the active subnet stays what it was."""
        before = self.active
        self.set_active_subnet(widths, side)
        try:
            return self.get_active_subnet()
        finally:
            self.set_active_subnet(*before)

    def forward(self, x: Tensor) -> Tensor:
        """Run the active subnet on images ``(N, C, H, W)``."""
        return logits_of(self.net(x))


def narrow(model: nn.Module, space: Space, channels: Sequence[int], *, keep_shortcuts: bool = False) -> nn.Module:
    """A freshly initialised plain model with the given channels per group, to be trained from scratch.

    Parameters are the left parts of the given model's, scaled by the square root of the ratio of fan-ins: what the
    model's own initialiser would have drawn for a layer of that size. BN is left as it is. Where a group has more channels
    than in the model, the new entries are drawn from the layer's own initial values.

    Args:
        model: the plain model with its initial values, left as it is.
        space: its traced space.
        channels: of every group; any number that is a multiple of the group's ``block``.
        keep_shortcuts: keep the body of every `bcnet.models.shortcut.IdentityOr`, for a model that is to be traced.
    """
    net = copy_network(model)
    totals = [max(group.channels, wanted) for group, wanted in zip(space.groups, channels, strict=True)]
    make_sliceable(net, space, totals, torch.Generator())
    set_active_channels(net, channels, "left")
    scales = {}
    for layer in space.layers:
        slices = getattr(net.get_submodule(layer.name), "slices", None)
        if isinstance(slices, Slices) and layer.kind in ("conv", "linear") and not (layer.channels_per_group or layer.across):
            scales[layer.name] = (sum(segment.channels * segment.repeat for segment in layer.inputs) / slices.num_inputs) ** 0.5
    net = make_plain(net, keep_shortcuts=keep_shortcuts)
    with torch.no_grad():
        for name, module in net.named_modules():  # without the layers of shortcuts that are the identity at these channels
            for parameter in module.parameters(recurse=False):
                parameter.mul_(scales.get(name, 1.0))
    return net


def set_active_channels(net: nn.Module, channels: Sequence[int], side: Side) -> None:
    """Restrict every slimmable layer of a network to the given channels per group."""
    for module in net.modules():
        slices = getattr(module, "slices", None)
        if isinstance(slices, Slices):
            slices.select(channels, side)


def make_sliceable(net: nn.Module, space: Space, totals: Sequence[int], generator: torch.Generator | None) -> None:
    """Widen every layer that touches a group to ``totals`` channels per group and make it slimmable, in place.

    New channels are drawn from the old values; without a generator they are copies of the first ones.
    """
    widened = set()
    for layer in space.layers:
        if not layer.is_searched:
            continue
        module = net.get_submodule(layer.name)
        tensors = {tensor.name: tensor for tensor in layer.tensors}
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name in tensors and id(tensor) not in widened:
                widened.add(id(tensor))
                dims = tensors[name].dims
                tensor.data = (
                    _wrap(tensor.detach(), dims, totals)
                    if generator is None
                    else _widen(tensor.detach(), [_kept_entries(dim, totals) for dim in dims], generator)
                )
        make_slimmable(module, layer, totals)


_Kept = list[tuple[slice, slice]]
_DRAWN_AT_ONCE = 1 << 20  # entries; how many does not change what is drawn


def _kept_entries(segments: tuple[Segment, ...], totals: Sequence[int]) -> tuple[_Kept, int]:
    """Where the runs of entries of a plain dimension stand in the widened one and where they stood, and the size of that."""
    kept: _Kept = []
    offset = before = 0
    for segment in segments:
        own = segment.channels * segment.repeat
        kept.append((slice(offset, offset + own), slice(before, before + own)))
        offset, before = offset + segment.entries(totals), before + own
    return kept, offset


def _wrap(tensor: Tensor, dims: Sequence[tuple[Segment, ...]], totals: Sequence[int]) -> Tensor:
    """Copy a tensor into a larger one, in which every run of channels begins again behind its end."""
    for number, segments in enumerate(dims):
        parts, before = [], 0
        for segment in segments:
            own = segment.channels * segment.repeat
            parts.append(before + torch.arange(segment.entries(totals)) % own)
            before += own
        tensor = tensor.index_select(number, torch.cat(parts).to(tensor.device))
    return tensor


def _widen(tensor: Tensor, dims: Sequence[tuple[_Kept, int]], generator: torch.Generator) -> Tensor:
    """Copy a tensor into a larger one; new entries are drawn from the old ones with replacement."""
    shape = [size for _, size in dims]
    if list(tensor.shape) == shape:
        return tensor.clone()
    flat, wide = tensor.flatten(), tensor.new_empty(shape)
    for rows in wide.split(max(1, _DRAWN_AT_ONCE // max(1, prod(shape[1:])))):
        draw = torch.randint(tensor.numel(), (rows.numel(),), generator=generator)
        rows.copy_(flat.index_select(0, draw.to(tensor.device)).view_as(rows))
    for places in product(*(kept for kept, _ in dims)):
        wide[tuple(new for new, _ in places)] = tensor[tuple(old for _, old in places)]
    return wide
