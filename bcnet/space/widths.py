"""The search space of width vectors: pure functions of group sizes, without torch.

Vocabulary: a *group* is a set of layer dimensions that must keep the same number of channels; a *width index*
``k`` in ``min_bins..bins`` gives a group of ``l`` channels ``round(k * l / bins)`` of them; *widths* hold one index per group.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from bcnet.errors import UserError

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Layer dimensions that must keep the same number of channels.

    Attributes:
        name: the first layer that produces these channels.
        channels: number of channels in the plain model.
        unit: channel counts are multiples of it (channels per group of a grouped convolution, or the divisor asked for).
        layers: names of all layers whose output is in the group.
    """

    name: str
    channels: int
    unit: int = 1
    layers: tuple[str, ...] = ()

    def channels_at(self, k: int, bins: int) -> int:
        """Channels of ``k`` of ``bins`` bins: ``k * channels / bins`` rounded (half up) to a multiple of ``unit``."""
        units = self.channels // self.unit
        return self.unit * max(1, (2 * k * units + bins) // (2 * bins)) if k else 0


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


@dataclass(frozen=True)
class Layer:
    """Which channels a layer reads and writes; what its cost is made of.

    Attributes:
        name: module name in the plain model.
        kind: ``conv``, ``linear`` or ``norm``.
        inputs: segments of the input dimension, in order.
        outputs: segments of the output dimension, in order.
        channels_per_group: input channels per group of a grouped convolution (1 = depthwise); 0 if it is not grouped.
        kernel: kernel positions (9 for 3x3; 1 for linear layers).
        positions: output positions of one image (``H * W``), summed over the calls in one forward pass.
        bias: whether there is one bias per output channel.
        vectors: number of per-channel parameter vectors of a norm (weight and bias: 2).
    """

    name: str
    kind: str
    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]
    channels_per_group: int = 0
    kernel: int = 1
    positions: int = 0
    bias: bool = False
    vectors: int = 0


@dataclass(frozen=True)
class Space:
    """All width vectors of a model: ``bins - min_bins + 1`` choices in each of ``len(groups)`` groups.

    Attributes:
        groups: the searched groups, ordered by first use in the forward pass.
        bins: number of bins ``K`` of every group.
        min_bins: smallest width index ``k_min``.
        layers: how every sliced layer is made of the groups (empty for a space without a model).
        fixed: layers that stay at full width, and why.
        fixed_params: parameters of the model that none of the layers holds.
    """

    groups: tuple[Group, ...]
    bins: int = 4
    min_bins: int = 1
    layers: tuple[Layer, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()
    fixed_params: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_bins <= self.bins:
            raise UserError(f"min_bins is {self.min_bins}: it must lie in 1..bins, and bins is {self.bins}")

    def __len__(self) -> int:
        return int((self.bins - self.min_bins + 1) ** len(self.groups))

    @property
    def full(self) -> Widths:
        """The width vector of the plain model."""
        return (self.bins,) * len(self.groups)

    @property
    def narrowest(self) -> Widths:
        """The width vector with ``min_bins`` bins in every group."""
        return (self.min_bins,) * len(self.groups)

    def channels(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Channels of every group for the given width indices."""
        return tuple(group.channels_at(k, self.bins) for group, k in zip(self.groups, widths, strict=True))

    def channel_table(self, bins: int | None = None) -> npt.NDArray[np.int64]:
        """Channels of group ``g`` at index ``k``, as an array ``(groups, bins + 1)``; ``bins`` may exceed ``K`` (V2)."""
        top = self.bins if bins is None else bins
        rows = [[group.channels_at(k, self.bins) for k in range(top + 1)] for group in self.groups]
        return np.array(rows, dtype=np.int64).reshape(len(self.groups), top + 1)

    def encode(self, widths: Sequence[int]) -> str:
        """Write widths as ``"4432214"`` when every index has one digit by design (K < 10), else as ``"12-7-20"``."""
        return ("" if self.bins < 10 else "-").join(map(str, widths))

    def decode(self, text: str) -> Widths:
        """Read what `encode` writes.

        Raises:
            UserError: wrong length, or an index outside ``min_bins..bins``.
        """
        digits = list(text) if self.bins < 10 else text.split("-")
        form = f"{len(self.groups)} indices {self.min_bins}..{self.bins}, e.g. {self.encode(self.full)!r}"
        if len(digits) != len(self.groups):
            raise UserError(f"widths {text!r} have {len(digits)} indices: this space wants {form}")
        for place, digit in enumerate(digits, start=1):
            if not (digit.isascii() and digit.isdigit() and self.min_bins <= int(digit) <= self.bins):
                raise UserError(f"widths {text!r}: {digit!r} at place {place} is not an index of this space, which wants {form}")
        return tuple(map(int, digits))

    def complement(self, widths: Sequence[int], wide: bool) -> Widths:
        """The widths that train what these leave out.

        On a plain supernet (BCNet) ``clip(K - k, k_min, K)``; on a wide one of ``K + k_min`` bins (BCNetV2)
        ``K + k_min - k``, which is always legal, so that a pair trains every bin exactly twice.
        """
        if wide:
            return tuple(self.bins + self.min_bins - k for k in widths)
        return tuple(min(max(self.bins - k, self.min_bins), self.bins) for k in widths)

    def sample(self, rng: np.random.Generator) -> Widths:
        """Draw widths uniformly."""
        return tuple(int(k) for k in rng.integers(self.min_bins, self.bins + 1, size=len(self.groups)))

    def enumerate(self) -> Iterator[Widths]:
        """All widths in lexicographic order; there are ``len(space)`` of them."""
        return itertools.product(range(self.min_bins, self.bins + 1), repeat=len(self.groups))

    def summary(self) -> str:
        """One line: groups, choices, size."""
        choices = self.bins - self.min_bins + 1
        size = prod([choices] * len(self.groups))
        count = f"{size:,}" if size < 10**7 else f"{size:.2e}"
        return f"{len(self.groups)} groups, widths {self.min_bins}..{self.bins} of {self.bins} bins, {count} width vectors"
