"""How important every channel of a trained network is.

``l1``: the sum of a kernel's absolute values (Li et al., 2017). ``bn``: the scale of the batch norm (Liu et al., 2017, network slimming).
``taylor``: how much the loss would change without the channel, to first order (Molchanov et al., 2019), over a few batches.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.models.copying import copy_network
from bcnet.models.layout import to_device
from bcnet.models.outputs import logits_of
from bcnet.space.widths import Layer, LayerTensor, Role, Space
from bcnet.supernet.order import Importance

Criterion = Literal["l1", "bn", "taylor"]


def channel_importance(
    model: nn.Module,
    space: Space,
    criterion: Criterion,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    device: torch.device | str = "cpu",
) -> list[Importance]:
    """The importance of every channel of every group, higher is more important; only those of one group can be compared.

    Where a criterion says nothing of a group (no batch norm; nothing but grouped convolutions read it), that of ``l1`` counts.

    Args:
        model: the plain model with trained weights; it is not changed.
        space: its traced space.
        criterion: what is measured.
        batches: images and labels, for ``taylor``.
        device: where to compute.
    """
    kernels = _kernel_norms(model, space)
    if criterion == "l1":
        return kernels
    own = _norm_scales(model, space) if criterion == "bn" else _taylor(model, space, batches, torch.device(device))
    return [values if values.any() else instead for values, instead in zip(own, kernels, strict=True)]


def _kernel_norms(model: nn.Module, space: Space) -> list[Importance]:
    """Sum of absolute values of the kernels that give a channel; every layer of a group has one vote."""
    total = _zeros(space)
    for layer in space.layers:
        if layer.kind in ("conv", "linear"):
            own = _zeros(space)
            for one, tensor in _tensors(model, layer):
                if tensor.ndim > 1:
                    _add(own, one, tensor.detach().abs(), "out")
            for g, values in enumerate(own):
                if values.any():
                    total[g] += values / values.mean()
    return total


def _norm_scales(model: nn.Module, space: Space) -> list[Importance]:
    total = _zeros(space)
    for layer in space.layers:
        if layer.kind == "norm":
            for one, tensor in _tensors(model, layer):
                if one.name == "weight":
                    _add(total, one, tensor.detach().abs(), "out")
    return total


def _taylor(model: nn.Module, space: Space, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> list[Importance]:
    """Mean square over the batches of what the loss would lose, to first order, if nothing read the channel."""
    net = to_device(copy_network(model), device).eval()
    total = _zeros(space)
    for images, labels in batches:
        net.zero_grad()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            F.cross_entropy(logits_of(net(images)).float(), labels).backward()
        own = _zeros(space)
        for layer in space.layers:
            if layer.kind in ("conv", "linear"):
                for one, tensor in _tensors(net, layer):
                    if tensor.grad is not None:
                        _add(own, one, (tensor * tensor.grad).detach(), "in")
        for values, new in zip(total, own, strict=True):
            values += new**2
    return total


def _zeros(space: Space) -> list[Importance]:
    return [np.zeros(group.channels) for group in space.groups]


def _tensors(model: nn.Module, layer: Layer) -> list[tuple[LayerTensor, Tensor]]:
    """The parameters of a layer that are channels, with what their dimensions are."""
    module = model.get_submodule(layer.name)
    return [(one, tensor) for one in layer.tensors if (tensor := module._parameters.get(one.name)) is not None]


def _add(total: Sequence[Importance], one: LayerTensor, values: Tensor, role: Role) -> None:
    """Add the sum of a tensor's values over everything but a channel to that channel's, for dimensions of a role."""
    for dim, (segments, own) in enumerate(zip(one.dims, one.roles, strict=True)):
        if own != role:
            continue
        others = [other for other in range(values.ndim) if other != dim]
        sums = (values.sum(others) if others else values).double().cpu().numpy()
        offset = 0
        for segment in segments:
            size = segment.channels * segment.repeat
            if segment.group is not None:
                total[segment.group] += sums[offset : offset + size].reshape(segment.channels, segment.repeat).sum(1)
            offset += size
