"""The order of channels within their groups: a group permuted as a whole leaves the network's function as it was."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bcnet.models.copying import copy_network
from bcnet.models.layout import fit_layout
from bcnet.models.outputs import logits_of
from bcnet.progress import notice
from bcnet.space.widths import Segment, Space

Order = npt.NDArray[np.int64]
Importance = npt.NDArray[np.float64]

TOLERANCE = 1e-4


def permute_channels(model: nn.Module, space: Space, orders: Sequence[Order]) -> nn.Module:
    """A copy of a model whose channels stand in another order; the network's function is the same.

    Args:
        model: the plain model.
        space: its traced space.
        orders: of every group: which of its channels stands first, second, ...; a permutation.
    """
    net = copy_network(model)
    done: set[int] = set()
    with torch.no_grad():
        for layer in space.layers:
            module = net.get_submodule(layer.name)
            for one in layer.tensors:
                tensor = module._parameters.get(one.name, module._buffers.get(one.name))
                if tensor is not None and id(tensor) not in done:  # layers may share a parameter
                    done.add(id(tensor))
                    for dim, segments in enumerate(one.dims):
                        if any(segment.group is not None for segment in segments):
                            tensor.copy_(tensor.index_select(dim, _entries(segments, orders).to(tensor.device)))
    return net


def sort_channels(
    model: nn.Module, space: Space, importance: Sequence[Importance], input_shape: Sequence[int], *, both_ends: bool = False
) -> nn.Module:
    """A copy of a trained model in which the important channels of every group come first, and the function is the same.

    Channels that a grouped convolution or norm takes together stay together; groups that a shortcut adds channel by channel only
    while they are equally wide (`bcnet.models.shortcut.IdentityOr`) get one order; channels that a convolution runs along keep
    theirs. The copy is compared with the model on random images, and a group that would change the outputs is left as it was.

    Args:
        model: the plain model with trained weights.
        space: its traced space.
        importance: of every channel of every group; higher is more important.
        input_shape: ``(C, H, W)`` of one image.
        both_ends: put the most important ones at the two ends, turn by turn, so that the left side and the right one both have some.
    """
    orders = importance_orders(space, importance, both_ends=both_ends)
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    before = _outputs(model, images)

    def is_same(tried: Sequence[Order]) -> bool:
        after = _outputs(permute_channels(model, space, tried), images)
        return bool((after - before).abs().max() <= TOLERANCE * before.abs().max().clamp_min(1e-6))

    if not is_same(orders):
        as_they_were = [np.arange(group.channels) for group in space.groups]
        for g, group in enumerate(space.groups):
            if not is_same([own if number == g else kept for number, (own, kept) in enumerate(zip(orders, as_they_were, strict=True))]):
                notice(f"the channels of {group.name} keep their order: in another, the model would compute something else")
                orders[g] = as_they_were[g]
    return permute_channels(model, space, orders)


def importance_orders(space: Space, importance: Sequence[Importance], *, both_ends: bool = False) -> list[Order]:
    """In which order `sort_channels` puts the channels of every group; equal ones stay in theirs."""
    tied, kept = _tied_groups(space)
    orders: list[Order] = []
    for g, group in enumerate(space.groups):
        if any(one in kept for one in tied[g]):
            orders.append(np.arange(group.channels))
            continue
        blocks = [group.block, *(space.groups[one].block for one in tied[g])]
        size = int(np.lcm.reduce(blocks))
        total = np.sum([relative(importance[one]) for one in tied[g]], axis=0)
        ranked = np.argsort(-total.reshape(-1, size).sum(1), kind="stable")
        if both_ends:
            ranked = np.concatenate([ranked[::2], ranked[1::2][::-1]])
        orders.append((ranked[:, None] * size + np.arange(size)).reshape(-1))
    return orders


def relative(values: Importance) -> Importance:
    """Importance of a group's channels in units of their mean."""
    return values / max(float(values.mean()), 1e-30)


def _tied_groups(space: Space) -> tuple[list[list[int]], set[int]]:
    """For every group those that must be in its order, itself among them; and the groups that must keep theirs."""
    tied = [[g] for g in range(len(space.groups))]
    kept: set[int] = set()
    for layer in space.layers:
        kept |= {segment.group for segment in layer.along if segment.group is not None}
        if layer.skipped_if_equal is None:
            continue
        one, other = layer.skipped_if_equal
        if one.channels * one.repeat != other.channels * other.repeat or one.group == other.group:
            continue
        if one.group is None or other.group is None:
            kept.add(other.group if one.group is None else one.group)  # type: ignore[arg-type]
            continue
        joined = sorted({*tied[one.group], *tied[other.group]})
        for g in joined:
            tied[g] = joined
    return tied, kept


def _entries(segments: Sequence[Segment], orders: Sequence[Order]) -> Tensor:
    """Which entry of a dimension stands first, second, ... when groups are in the given orders."""
    parts, offset = [], 0
    for segment in segments:
        own = np.arange(segment.channels) if segment.group is None else orders[segment.group]
        parts.append(offset + (own[:, None] * segment.repeat + np.arange(segment.repeat)).reshape(-1))
        offset += segment.channels * segment.repeat
    return torch.from_numpy(np.concatenate(parts))


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    net = copy_network(model).cpu().double().eval()
    fit_layout(net.float(), images.shape[1:])
    with torch.no_grad():
        return logits_of(net.double()(images.double()))
