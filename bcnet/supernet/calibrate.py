"""BN statistics for one subnet: a cumulative average over a few training batches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bcnet.errors import UserError
from bcnet.machine import autocast
from bcnet.supernet.layers import BATCH_NORM
from bcnet.supernet.supernet import Supernet


def calibrate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, half: torch.dtype | None = None) -> None:
    """Recompute the running statistics of every BN layer, for a plain network or the active subnet of a supernet.

    Every batch counts the same; the statistics of a layer are those that the layer sees while the ones before it
    normalise with batch statistics (as in training). Weights and random state stay as they are (laws 4 and 5); all
    layers but BN run in evaluation mode. The network is left in evaluation mode.

    Args:
        network: the network.
        batches: images ``(N, C, H, W)`` and labels, which are not used.
        half: what to autocast to, bf16 or fp16; unset: not at all.

    Raises:
        UserError: statistics that are not finite.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM) and module.running_mean is not None]
    before = [(norm.momentum, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.momentum, norm.track_running_stats = None, True
        norm.reset_running_stats()
        norm.train()
    try:
        with torch.no_grad():
            for images, _ in batches:
                with autocast(images.device, half):
                    network(images)
    finally:
        for norm, (momentum, track) in zip(norms, before, strict=True):
            norm.momentum, norm.track_running_stats = momentum, track
            norm.eval()
    statistics = [part.sum() for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]
    if statistics and not bool(torch.stack(statistics).isfinite().all()):
        raise UserError("batch norm statistics that were measured for a subnet are not finite; a lower learning rate may help")


@contextmanager
def undisturbed(supernet: Supernet) -> Iterator[None]:
    """Whatever is calibrated and evaluated inside, the supernet's statistics, modes and active subnet are as they were afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    modes = [(module, module.training) for module in supernet.modules()]
    active = supernet.active
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for module, training in modes:
            module.training = training
        supernet.set_active_subnet(*active)
