"""Widths written as one channel count per group, ``"16-4-12"`` or ``"64:64:64"``, as other people's lists and truths have them.

Files with a count per layer, in whatever order, are read by `bcnet.space.channel_lists`.
"""

import re

from bcnet.errors import UserError
from bcnet.models.cifar import RESNET20_CHOICES, read_resnet20_list
from bcnet.space.widths import Space, Widths

_SEPARATOR = re.compile("[-:]")


def is_channel_string(text: str, space: Space) -> bool:
    """Whether a text means channel counts in a space, not width indices.

    Where width strings have dashes themselves, a list of the ResNet20 channel-search challenge is known by its twentieth number, and any
    other by its colons.
    """
    return (":" in text or ("-" in text and space.separator != "-")) or _is_resnet20_list(text, space)


def read_channel_string(text: str, space: Space) -> Widths:
    """The widths that a list of channel counts means.

    Raises:
        UserError: another number of counts than the space has groups, or one that is not among the choices of its group.
    """
    if _is_resnet20_list(text, space):
        return read_resnet20_list(text)
    numbers = _SEPARATOR.split(text)
    if len(numbers) != len(space.groups):
        example = "-".join(map(str, space.channels(space.full)))
        raise UserError(f"channel list {text!r} has {len(numbers)} numbers: this space has {len(space.groups)} groups, e.g. {example}")
    indices = []
    for place, (number, group) in enumerate(zip(numbers, space.groups, strict=True), start=1):
        words = [str(choice) for choice in group.choices]
        if number not in words:
            choices = ", ".join(words)
            raise UserError(f"channel list {text!r}: {number!r} at place {place} is not one of the choices {choices} of group {group.name}")
        indices.append(group.smallest + words.index(number))
    return tuple(indices)


def _is_resnet20_list(text: str, space: Space) -> bool:
    return text.count("-") == len(RESNET20_CHOICES) - 1 and tuple(group.choices for group in space.groups) == RESNET20_CHOICES[:-1]
