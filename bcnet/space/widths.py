"""The search space of width vectors: pure functions of group sizes, without torch.

Vocabulary: a *group* is a set of layer dimensions that must keep the same number of channels; its *choices* are the channel
counts that it may have; *widths* hold one index per group, where index ``k`` stands for the ``k``-th of the group's counts.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10, prod
from typing import Literal

import numpy as np

from bcnet.errors import UserError

Widths = tuple[int, ...]
Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")


@dataclass(frozen=True)
class Group:
    """Layer dimensions that must keep the same number of channels.

    Attributes:
        name: the first layer that produces these channels.
        counts: channels at index ``1..K``, ascending; the last is that of the plain model.
        smallest: smallest legal index ``k_min``.
        unit: channel counts are multiples of it (channels per group of a grouped convolution, or the divisor asked for).
        layers: names of all layers whose output is in the group.
        block: the part of the unit that a grouped convolution or norm wants; the channels of any network are multiples of it.
    """

    name: str
    counts: tuple[int, ...]
    smallest: int = 1
    unit: int = 1
    layers: tuple[str, ...] = ()
    block: int = 1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise(self.counts))
        if not self.counts or self.counts[0] < 1 or not rising:
            raise UserError(f"{self.name}: the choices {list(self.counts)} are not channel counts in ascending order")
        if not 1 <= self.smallest <= len(self.counts):
            raise UserError(f"{self.name}: the smallest index is {self.smallest}, and there are {len(self.counts)} choices")

    @classmethod
    def of_bins(cls, name: str, channels: int, *, bins: int = 4, min_bins: int = 1, unit: int = 1, layers: tuple[str, ...] = ()) -> "Group":
        """A group cut into equal bins: index ``k`` is ``k * channels / bins`` rounded (half up) to a multiple of ``unit``.

        Indices that would give the same count are one.

        Raises:
            UserError: ``min_bins`` is not in ``1..bins``.
        """
        if not 1 <= min_bins <= bins:
            raise UserError(f"min_bins is {min_bins}: it must lie in 1..bins, and bins is {bins}")
        units = channels // unit
        at_index = [unit * max(1, (2 * k * units + bins) // (2 * bins)) for k in range(1, bins + 1)]
        counts = tuple(sorted(set(at_index)))
        return cls(name, counts, counts.index(at_index[min_bins - 1]) + 1, unit, layers)

    @property
    def channels(self) -> int:
        """Number of channels in the plain model."""
        return self.counts[-1]

    @property
    def bins(self) -> int:
        """Number of bins ``K``, which is the largest index."""
        return len(self.counts)

    @property
    def indices(self) -> range:
        """The legal indices ``k_min..K``."""
        return range(self.smallest, self.bins + 1)

    @property
    def choices(self) -> tuple[int, ...]:
        """The channel counts that the group may have."""
        return self.counts[self.smallest - 1 :]

    def index_within(self, channels: float) -> int:
        """The largest legal index of at most so many channels, or the smallest."""
        return max((k for k in self.indices if self.counts[k - 1] <= channels), default=self.smallest)

    def channels_at(self, k: int) -> int:
        """Channels at index ``k`` in ``0..K``; up to ``K + k_min`` in a wide supernet (BCNetV2)."""
        if k <= self.bins:
            return self.counts[k - 1] if k else 0
        return self.channels + self.counts[k - self.bins - 1]

    def complement(self, k: int, wide: bool) -> int:
        """The index that trains the bins which index ``k`` leaves out.

        On a plain supernet (BCNet) ``clip(K - k, k_min, K)``; on a wide one of ``K + k_min`` bins (BCNetV2)
        ``K + k_min - k``, which is always legal, so that a pair trains every bin exactly twice.
        """
        if wide:
            return self.bins + self.smallest - k
        return min(max(self.bins - k, self.smallest), self.bins)


@dataclass(frozen=True)
class Segment:
    """A run of channels inside one dimension of a layer.

    Attributes:
        group: index of the group the channels belong to; ``None`` if they are never searched.
        channels: number of channels in the plain model.
        repeat: entries per channel (``H * W`` behind a flatten, else 1).
    """

    group: int | None
    channels: int
    repeat: int = 1

    def entries(self, channels: Sequence[int]) -> int:
        """Entries of the dimension when group ``g`` has ``channels[g]`` channels."""
        return self.repeat * (self.channels if self.group is None else channels[self.group])


Role = Literal["out", "in", "own"]


@dataclass(frozen=True)
class LayerTensor:
    """A parameter or buffer of a layer, some of whose dimensions are channels.

    Attributes:
        name: its name in the module.
        dims: what every dimension is made of.
        roles: of every dimension: the layer's outputs, the layer's inputs, or something of its own.
        learned: whether it is a parameter, and counts as such (a parameter that two layers share counts once).
    """

    name: str
    dims: tuple[tuple[Segment, ...], ...]
    roles: tuple[Role, ...]
    learned: bool = True


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own: which channels it reads and writes; what its cost is made of.

    Attributes:
        name: module name in the plain model.
        kind: ``conv``, ``linear``, ``norm`` (batch norm) or ``other``.
        inputs: segments of the input dimension, in order.
        outputs: segments of the output dimension, in order.
        channels_per_group: input channels per group of a grouped convolution (1 = depthwise); 0 if it is not grouped.
        kernel: kernel positions (9 for 3x3; 1 for linear layers).
        positions: output positions of one image (``H * W``), summed over the calls in one forward pass.
        along: segments whose entries are positions as well, as for a convolution over channels.
        tensors: its parameters and buffers.
        size: of a layer without parameters: the attribute in which it keeps its number of channels.
        across: it normalises over channels, of which it takes the active ones: (dimension of channels in its input, in its output).
        skipped_if_equal: of a layer inside a `bcnet.models.shortcut.IdentityOr`: where these two segments have as many
            entries as each other, the layer is not part of the network.
    """

    name: str
    kind: str
    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]
    channels_per_group: int = 0
    kernel: int = 1
    positions: int = 0
    along: tuple[Segment, ...] = ()
    tensors: tuple[LayerTensor, ...] = ()
    size: str = ""
    across: tuple[int, int] | None = None
    skipped_if_equal: tuple[Segment, Segment] | None = None

    def __deepcopy__(self, memo: object) -> "Layer":
        return self  # nothing of it changes, and networks that hold it are copied often

    @property
    def is_searched(self) -> bool:
        """Whether any of its channels belong to a group."""
        dims = (self.inputs, self.outputs, *(dim for tensor in self.tensors for dim in tensor.dims))
        return any(segment.group is not None for dim in dims for segment in dim)


@dataclass(frozen=True)
class Space:
    """All width vectors of a model: every group takes one of its own choices.

    Attributes:
        groups: the searched groups, ordered by first use in the forward pass.
        layers: how every sliced layer is made of the groups (empty for a space without a model).
        fixed: layers that stay at full width, and why.
        fixed_params: parameters of the model that none of the layers holds.
        fixed_flops: multiply-adds of one image that belong to none of the layers.
    """

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()
    fixed_params: int = 0
    fixed_flops: int = 0

    def __len__(self) -> int:
        return self.size

    @property
    def size(self) -> int:
        """How many width vectors there are; unlike ``len(space)`` without a limit."""
        return prod(len(group.choices) for group in self.groups)

    @property
    def full(self) -> Widths:
        """The width vector of the plain model."""
        return tuple(group.bins for group in self.groups)

    @property
    def narrowest(self) -> Widths:
        """The width vector with the smallest index of every group."""
        return tuple(group.smallest for group in self.groups)

    def uniform(self, share: float) -> Widths:
        """The width vector in which every group has this share of its channels, or the next choice below."""
        return tuple(group.index_within(share * group.channels) for group in self.groups)

    def whole(self, wide: bool) -> Widths:
        """The width vector of the whole supernet: every bin that it has."""
        return tuple(group.bins + wide * group.smallest for group in self.groups)

    def channels(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Channels of every group for the given width indices."""
        return tuple(group.channels_at(k) for group, k in zip(self.groups, widths, strict=True))

    def channel_table(self, wide: bool = False) -> list[list[int]]:
        """Channels of group ``g`` at index ``k``, a row per group from ``k = 0`` to what the (wide) supernet has."""
        return [[group.channels_at(k) for k in range(top + 1)] for group, top in zip(self.groups, self.whole(wide), strict=True)]

    @property
    def separator(self) -> str:
        """What stands between the indices of a width string: nothing while every index has one digit by design (K < 10)."""
        return "-" if any(group.bins >= 10 for group in self.groups) else ""

    def encode(self, widths: Sequence[int]) -> str:
        """Write widths as ``"4432214"``, or as ``"12-7-20"`` where a group has ten bins or more."""
        return self.separator.join(map(str, widths))

    def decode(self, text: str) -> Widths:
        """Read what `encode` writes.

        Raises:
            UserError: wrong length, or an index that is not one of its group's.
        """
        digits = text.split(self.separator) if self.separator else list(text)
        form = f"{len(self.groups)} indices {self._range()}, e.g. {self.encode(self.full)!r}"
        if len(digits) != len(self.groups):
            raise UserError(f"widths {text!r} have {len(digits)} indices: this space wants {form}")
        for place, (digit, group) in enumerate(zip(digits, self.groups, strict=True), start=1):
            if not (digit.isascii() and digit.isdigit() and len(digit) < 10 and int(digit) in group.indices):
                own = f"{group.smallest}..{group.bins} of group {group.name}"
                raise UserError(f"widths {text!r}: {digit!r} at place {place} is not an index {own}; this space wants {form}")
        return tuple(map(int, digits))

    def complement(self, widths: Sequence[int], wide: bool) -> Widths:
        """The widths that train what these leave out; see `Group.complement`."""
        return tuple(group.complement(k, wide) for group, k in zip(self.groups, widths, strict=True))

    def sample(self, rng: np.random.Generator) -> Widths:
        """Draw widths uniformly."""
        low, high = self.narrowest, [group.bins + 1 for group in self.groups]
        return tuple(int(k) for k in rng.integers(low, high))

    def enumerate(self) -> Iterator[Widths]:
        """All widths in lexicographic order; there are ``len(space)`` of them."""
        return itertools.product(*(group.indices for group in self.groups))

    def _range(self) -> str:
        lows, highs = {group.smallest for group in self.groups}, {group.bins for group in self.groups}
        top = f"{min(highs)}" if len(highs) == 1 else f"({min(highs)} to {max(highs)})"
        low = f"{min(lows)}" if len(lows) == 1 else f"({min(lows)} to {max(lows)})"
        return f"{low}..{top}"

    def summary(self) -> str:
        """One line: groups, choices, size."""
        exponent = log10(self.size)
        count = f"{self.size:,}" if self.size < 10**7 else f"{10 ** (exponent % 1):.2f}e+{int(exponent):02}"
        highs = sorted({group.bins for group in self.groups})
        bins = f"{highs[0]} bins" if len(highs) == 1 else f"{highs[0]} to {highs[-1]} bins"
        return f"{len(self.groups)} groups, widths {self._range()} of {bins}, {count} width vectors"
