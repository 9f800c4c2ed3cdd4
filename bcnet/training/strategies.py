"""Which subnets one step trains, and with what weight; every method is a list of passes per step, nothing else.

* ``uniform`` (UA): random widths on the left.
* ``autoslim`` (US-Net): the widest by cross-entropy; the narrowest and random widths by the widest's softmax.
* ``bcnet``: widths on both sides, losses averaged; the next step trains their clipped complement.
* ``bcnetv2``: the same on a supernet of ``K + k_min`` bins, where the complement is exact.

With in-place distillation, every step of ``bcnet`` and ``bcnetv2`` trains the whole supernet by the labels, and by its softmax widths
on one side and their complement on the other: with ``bcnetv2`` these two share no bin and leave none out. Sides take turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcnet.runtime import STREAM_WIDTHS, derive_seed
from bcnet.space.widths import Space, Widths
from bcnet.supernet.layers import Side


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    Attributes:
        widths: the subnet's widths; ``None``: the model is plain.
        side: the subnet's side.
        weight: factor of its loss.
        distilled: learn from the softmax of the step's first pass instead of the labels.
    """

    widths: Widths | None = None
    side: Side = "left"
    weight: float = 1.0
    distilled: bool = False


@dataclass(frozen=True)
class Strategy:
    """A training method of the supernet.

    Attributes:
        name: its name.
        wide: whether the supernet has ``K + k_min`` bins per group.
        sides: the sides it trains, which are those that are scored.
        passes: the passes of a step.
    """

    name: str
    wide: bool
    sides: tuple[Side, ...]
    passes: Callable[[int], list[Pass]]


def plain_passes(step: int) -> list[Pass]:
    """One pass of a plain model by its labels."""
    return [Pass()]


def make_strategy(name: str, space: Space, seed: int, *, num_random: int = 2, inplace_distillation: bool = False) -> Strategy:
    """A strategy by name; the widths of step ``t`` follow from the seed and ``t`` alone.

    Args:
        name: ``uniform``, ``autoslim``, ``bcnet`` or ``bcnetv2``.
        space: whose widths are trained.
        seed: of the run.
        num_random: random widths per step of ``autoslim``.
        inplace_distillation: of ``bcnet`` and ``bcnetv2``, see above.
    """

    def draw(index: int, count: int = 1) -> list[Widths]:
        rng = np.random.default_rng(derive_seed(seed, STREAM_WIDTHS, index))
        return [space.sample(rng) for _ in range(count)]

    def uniform(step: int) -> list[Pass]:
        return [Pass(draw(step)[0])]

    def autoslim(step: int) -> list[Pass]:
        taught = [space.narrowest, *draw(step, num_random)]
        return [Pass(space.full), *(Pass(widths, distilled=True) for widths in taught)]

    def bilateral(step: int) -> list[Pass]:
        widths = draw(step // 2)[0]
        if step % 2:
            widths = space.complement(widths, wide)
        return [Pass(widths, side, 0.5) for side in both]

    def taught(step: int) -> list[Pass]:
        widths = draw(step)[0]
        whole = (space.bins + wide * space.min_bins,) * len(space.groups)
        side, opposite = both if step % 2 == 0 else both[::-1]
        pair = (widths, side), (space.complement(widths, wide), opposite)
        return [Pass(whole), *(Pass(one, end, 0.5, distilled=True) for one, end in pair)]

    both: tuple[Side, Side] = ("left", "right")
    wide = name == "bcnetv2"
    if name in ("bcnet", "bcnetv2"):
        return Strategy(name, wide, both, taught if inplace_distillation else bilateral)
    return Strategy(name, False, ("left",), {"uniform": uniform, "autoslim": autoslim}[name])


class TrainingCounts:
    """How often every bin of every group was trained (the measure of fairness).

    Args:
        num_groups: groups of the space.
        bins: bins of the supernet per group.
    """

    def __init__(self, num_groups: int, bins: int) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros((num_groups, bins), dtype=np.int64)

    def add(self, passes: Sequence[Pass]) -> None:
        """Count the bins that the passes of one step train."""
        bins = np.arange(self.counts.shape[1])
        for one in passes:
            if one.widths is not None:
                k = np.asarray(one.widths)[:, None]
                self.counts += bins < k if one.side == "left" else bins >= self.counts.shape[1] - k

    @property
    def deviation(self) -> float:
        """Largest difference from the mean count, relative to it, over all bins of all groups (0: all are equal)."""
        mean = self.counts.mean(1, keepdims=True)
        return float(np.max(np.abs(self.counts - mean) / np.maximum(mean, 1)))
