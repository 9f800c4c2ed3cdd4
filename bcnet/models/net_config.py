"""The text form of a chain of blocks, as DenseNAS publishes its networks (Fang et al., CVPR 2020).

``[[16, 24], 'mbconv_k3_t3', ['mbconv_k3_t3'], 1, 2]|...|[[384, 1984], 'conv1_1']``: blocks separated by bars, each with its input and
output channels, the operation that goes from one to the other (its head), the operations stacked behind it and their number, and the
stride of the head. A last entry with ``conv1_1`` is a 1x1 convolution before the pooling.
"""

import ast
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bcnet.errors import UserError

LAST = "conv1_1"
BASIC = "basic_block"
MOST_CHARACTERS, MOST_BLOCKS, MOST_LAYERS, MOST_CHANNELS = 20_000, 100, 100, 16_384
_MBCONV = re.compile(r"mbconv_k([357])_t([1-9])")
KNOWN = f"mbconv_kK_tT (kernel K one of 3, 5, 7; expansion T of 1 to 9) or {BASIC}"


@dataclass(frozen=True)
class BlockSpec:
    """A block: a head, which changes channels and size, and layers that keep them.

    Attributes:
        in_channels: that it reads.
        channels: that it gives.
        head: name of the first operation.
        stack: names of the operations behind it.
        stride: of the head, 1 or 2.
    """

    in_channels: int
    channels: int
    head: str
    stack: tuple[str, ...]
    stride: int


@dataclass(frozen=True)
class NetConfig:
    """A network as a chain of blocks.

    Attributes:
        blocks: in order; each reads what the one before it gives.
        last: channels of the 1x1 convolution behind them, if there is one.
    """

    blocks: tuple[BlockSpec, ...]
    last: int | None = None

    @property
    def stem(self) -> int:
        """Channels of the convolution that reads the image."""
        return self.blocks[0].in_channels

    @property
    def features(self) -> int:
        """Channels that the classifier reads."""
        return self.last or self.blocks[-1].channels

    def __str__(self) -> str:
        parts = [str([[b.in_channels, b.channels], b.head, list(b.stack), len(b.stack), b.stride]) for b in self.blocks]
        return "|".join(parts + ([str([[self.blocks[-1].channels, self.last], LAST])] if self.last else []))


def read_mbconv(name: str) -> tuple[int, int] | None:
    """Kernel size and expansion of an MBConv's name; ``None`` for another one."""
    match = _MBCONV.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def is_operation(name: Any) -> bool:
    """Whether a name is that of an operation."""
    return isinstance(name, str) and (name == BASIC or read_mbconv(name) is not None)


def read_net_config(text: str, where: str = "net_config") -> NetConfig:
    """Read the text form; only literals are read, nothing is ever run.

    Args:
        text: as above; line breaks beside the bars do no harm.
        where: what the text is, for messages.

    Raises:
        UserError: another form, an unknown operation, channels that do not meet, or more of something than any network has.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{where}: {len(text):,} characters are no network; {MOST_CHARACTERS:,} is the most")
    parts = [part.strip() for part in text.strip().split("|")]
    if len(parts) > MOST_BLOCKS:
        raise UserError(f"{where}: {len(parts)} blocks; {MOST_BLOCKS} is the most")
    entries = [_literal(part, f"{where}, block {number}") for number, part in enumerate(parts, start=1)]
    last = None
    if len(entries) > 1 and len(entries[-1]) == 2 and entries[-1][1] == LAST:
        before, last = _channels(entries.pop()[0], f"{where}, block {len(parts)}")
        last_input: int | None = before
    else:
        last_input = None
    blocks = tuple(_block(entry, f"{where}, block {number}") for number, entry in enumerate(entries, start=1))
    for number, (one, other) in enumerate(pairwise(blocks), start=2):
        _meet(one.channels, other.in_channels, f"{where}, block {number}")
    if last_input is not None:
        _meet(blocks[-1].channels, last_input, f"{where}, block {len(parts)}")
    return NetConfig(blocks, last)


def _meet(given: int, read: int, where: str) -> None:
    if given != read:
        raise UserError(f"{where}: reads {read} channels, and the block before it gives {given}")


def _literal(part: str, where: str) -> list[Any]:
    try:
        entry = ast.literal_eval(part)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"{where}: {part[:60]!r} is not of the form [[16, 24], 'mbconv_k3_t3', ['mbconv_k3_t3'], 1, 2]") from error
    if not isinstance(entry, list | tuple):
        raise UserError(f"{where}: {part[:60]!r} is no list")
    return list(entry)


def _block(entry: list[Any], where: str) -> BlockSpec:
    if len(entry) != 5:
        raise UserError(f"{where}: has {len(entry)} parts; a block has 5: channels, head, stacked operations, their number, stride")
    channels, head, stack, count, stride = entry
    inputs, outputs = _channels(channels, where)
    if not isinstance(stack, list | tuple) or len(stack) > MOST_LAYERS:
        raise UserError(f"{where}: the stacked operations are a list of at most {MOST_LAYERS} names")
    for name in (head, *stack):
        if not is_operation(name):
            raise UserError(f"{where}: unknown operation {str(name)[:40]!r}; known are {KNOWN}")
    if count != len(stack):
        raise UserError(f"{where}: says {str(count)[:20]} stacked operations and lists {len(stack)}")
    if isinstance(stride, bool) or stride not in (1, 2):
        raise UserError(f"{where}: stride {str(stride)[:20]} is neither 1 nor 2")
    return BlockSpec(inputs, outputs, head, tuple(stack), stride)


def _channels(value: Any, where: str) -> tuple[int, int]:
    right = isinstance(value, list | tuple) and len(value) == 2 and all(type(one) is int and 0 < one <= MOST_CHANNELS for one in value)
    if not right:
        raise UserError(f"{where}: {str(value)[:40]!r} is no pair of channel counts of 1 to {MOST_CHANNELS:,}")
    return value[0], value[1]
