"""A model whose searched layers are wider, so that a network found at the model's own cost may be wider than the model somewhere."""

from math import lcm

from torch import nn

from bcnet.errors import UserError
from bcnet.space.widths import Space
from bcnet.supernet.supernet import narrow

MOST = 16


def widen(model: nn.Module, space: Space, factor: float, *, divisor: int | None = None) -> nn.Module:
    """A plain model with ``factor`` times the channels in every group, freshly initialised as `narrow` does it.

    Args:
        model: the plain model with its initial values, left as it is.
        space: its traced space; channels that are not searched stay as many as they are.
        factor: 1 to 16.
        divisor: channel counts are multiples of it in every group whose count in the model is one.

    Raises:
        UserError: the factor is another.
    """
    return narrow(model, space, widened_channels(space, factor, divisor), keep_shortcuts=True)


def check_factor(factor: float, where: str) -> None:
    """Refuse factors by which no model can be widened.

    Raises:
        UserError: naming where the factor comes from.
    """
    if not 1 <= factor <= MOST:
        raise UserError(f"{where} is {factor:g}: it must lie in 1 (as wide as the model) to {MOST}")


def widened_channels(space: Space, factor: float, divisor: int | None = None) -> tuple[int, ...]:
    """Channels of every group, ``factor`` times the model's and rounded (half up) to whole multiples of its unit; see `widen`."""
    check_factor(factor, "widen")
    channels = []
    for group in space.groups:
        unit = lcm(group.block, divisor or 1)
        if group.channels % unit:
            unit = group.block
        channels.append(unit * int(factor * group.channels / unit + 0.5))
    return tuple(channels)
