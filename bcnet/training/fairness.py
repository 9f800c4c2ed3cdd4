"""How often every bin of every group was trained: the measure of fairness."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bcnet.space.widths import Group
from bcnet.training.strategies.base import Pass

Counts = npt.NDArray[np.int64]


class TrainingCounts:
    """Counts of trainings, for channels that are always trained together.

    With equal bins those are the bins. Where the choices of a group are not symmetric, so that the left and the right end cut
    the channels at different places, they are the pieces between all cuts, and the counts tell how unequal the training is.

    Args:
        groups: of the space.
        wide: whether the supernet has ``K + k_min`` bins per group.
    """

    def __init__(self, groups: Sequence[Group], wide: bool) -> None:
        self._table = [[group.channels_at(k) for k in range(group.bins + wide * group.smallest + 1)] for group in groups]
        cuts = [sorted({*row, *(row[-1] - count for count in row)}) for row in self._table]
        self.sizes = [len(own) - 1 for own in cuts]
        self._start = np.array([cut for own in cuts for cut in own[:-1]], dtype=np.int64)
        self._stop = np.array([cut for own in cuts for cut in own[1:]], dtype=np.int64)
        self._total = np.repeat([row[-1] for row in self._table], self.sizes)
        self._flat: Counts = np.zeros(sum(self.sizes), dtype=np.int64)

    def add(self, passes: Sequence[Pass]) -> None:
        """Count what the passes of one step train."""
        for one in passes:
            if one.widths is not None:
                active = np.repeat([row[k] for row, k in zip(self._table, one.widths, strict=True)], self.sizes)
                self._flat += self._stop <= active if one.side == "left" else self._start >= self._total - active

    @property
    def counts(self) -> list[Counts]:
        """For every group the counts of its pieces, from the left."""
        return np.split(self._flat, np.cumsum(self.sizes)[:-1])

    @property
    def deviation(self) -> float:
        """Largest difference from the mean count, relative to it, over all pieces of all groups (0: all are equal)."""
        return float(max(np.max(np.abs(own - own.mean())) / max(own.mean(), 1) for own in self.counts))

    def restore(self, counts: Sequence[npt.ArrayLike]) -> None:
        """Go on from the counts that a checkpoint holds, one array per group.

        Raises:
            ValueError: they are of another space.
        """
        rows = [np.asarray(own, dtype=np.int64) for own in counts]
        if len(rows) != len(self._table):
            raise ValueError(f"training counts of {len(rows)} groups, where the space has {len(self._table)}")
        start = np.split(self._start, np.cumsum(self.sizes)[:-1])
        for g, own in enumerate(rows):
            if len(own) != self.sizes[g] and len(own) == len(self._table[g]) - 1:  # 0.1 counted bins from the left
                rows[g] = own[np.searchsorted(self._table[g], start[g], side="right") - 1]
            elif len(own) != self.sizes[g]:
                raise ValueError(f"training counts of {len(own)} bins, where group {g + 1} has {self.sizes[g]}")
        self._flat = np.concatenate(rows)


def fairness_sentence(strategy: str, deviation: float) -> str:
    """What the training counts say."""
    if deviation == 0:
        return f"{strategy}: every bin of every group was trained exactly as often as the others of its group."
    return f"{strategy}: the training counts of the bins differ from the mean of their group by up to {deviation:.1%}."
