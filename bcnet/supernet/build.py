"""A plain network from a list of channel counts, such as a published one."""

from pathlib import Path

from torch import nn

from bcnet.space.channel_lists import ChannelCounts, match_channels, read_channels
from bcnet.supernet.proof import trace_for_channels
from bcnet.supernet.supernet import narrow


def build_from_channels(
    model: nn.Module, input_shape: tuple[int, ...], channels: ChannelCounts | str | Path, *, proof: bool = True
) -> nn.Module:
    """A freshly initialised plain network of the given channel counts, to be trained from scratch.

    Args:
        model: the plain model with its initial values; it is not changed.
        input_shape: ``(C, H, W)`` of one image.
        channels: a list over the layers (see `bcnet.space.channel_lists`), a mapping from names of groups, or a file with one of them:
            ``FILE`` or ``FILE:key.key``. Layers may be wider than the model's.
        proof: prove that the model can be sliced; see `bcnet.trace`.

    Raises:
        UserError: the model cannot be run or sliced, or the channel counts are not those of a network like it.
    """
    counts, where = (read_channels(str(channels)), str(channels)) if isinstance(channels, str | Path) else (channels, "channels")
    space = trace_for_channels(model, input_shape, proof=proof)
    return narrow(model, space, match_channels(counts, space, where).channels)
