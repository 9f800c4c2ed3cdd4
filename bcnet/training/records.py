"""The best (loss, widths) records of a training run: what the prior initial population is made from."""

import heapq
from collections.abc import Iterable, Sequence

from bcnet.space.widths import Widths


class LossRecords:
    """The ``most`` records of lowest loss; of several losses of the same widths the lowest counts.

    Args:
        most: how many to keep.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.losses: dict[Widths, float] = {}
        self._heap: list[tuple[float, Widths]] = []  # (-loss, widths): the worst on top, with stale entries

    def add(self, loss: float, widths: Widths) -> None:
        """Record the mean training loss of a subnet in one step."""
        if loss >= self.losses.get(widths, float("inf")):
            return
        self.losses[widths] = loss
        heapq.heappush(self._heap, (-loss, widths))
        while len(self.losses) > self.most:
            worst, who = heapq.heappop(self._heap)
            if self.losses.get(who) == -worst:
                del self.losses[who]

    def sorted(self) -> list[tuple[float, Widths]]:
        """All records, best first."""
        return sorted((loss, widths) for widths, loss in self.losses.items())

    def to_list(self) -> list[list[float | list[int]]]:
        """As plain values, for a checkpoint."""
        return [[loss, list(widths)] for loss, widths in self.sorted()]

    @classmethod
    def from_list(cls, most: int, values: Iterable[tuple[float, Sequence[int]]]) -> "LossRecords":
        """From what `to_list` gave."""
        records = cls(most)
        for loss, widths in values:
            records.add(float(loss), tuple(widths))
        return records
