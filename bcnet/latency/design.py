"""Which width vectors to measure, so that every pair of widths of neighbouring groups occurs several times."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from bcnet.space.widths import Space, Widths


def cover_pairs(space: Space, pairs: Collection[tuple[int, int]], *, times: int, most: int, rng: np.random.Generator) -> list[Widths]:
    """Random width vectors, the full and the narrowest first, in which every pair of indices of the given pairs of groups occurs.

    Args:
        space: to draw from.
        pairs: groups whose widths matter together; ``(g, g)`` for one whose widths matter alone.
        times: how often each pair of indices must occur.
        most: stop at so many width vectors, covered or not.
        rng: of the choices.

    Returns:
        Each is built greedily: it starts at a pair that is missing most, and every other group takes the index that adds most of what
        is missing beside those that are chosen already.
    """
    cover = _Cover(space, pairs, times)
    rows = list(dict.fromkeys((space.full, space.narrowest)))
    for row in rows:
        cover.count(row)
    while cover.is_missing() and len(rows) < most:
        row = cover.draw(rng)
        cover.count(row)
        rows.append(row)
    return rows


class _Cover:
    """How often every pair of indices is still missing."""

    def __init__(self, space: Space, pairs: Collection[tuple[int, int]], times: int) -> None:
        self.space = space
        self.missing: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self.neighbours: list[list[tuple[int, bool, tuple[int, int]]]] = [[] for _ in space.groups]
        for a, b in sorted(set(pairs)):
            wanted = np.zeros((space.groups[a].bins + 1, space.groups[b].bins + 1), dtype=np.int64)
            if a == b:
                wanted[list(space.groups[a].indices), list(space.groups[a].indices)] = times
            else:
                wanted[space.groups[a].smallest :, space.groups[b].smallest :] = times
                self.neighbours[a].append((b, True, (a, b)))
                self.neighbours[b].append((a, False, (a, b)))
            self.missing[a, b] = wanted

    def is_missing(self) -> bool:
        return any(wanted.any() for wanted in self.missing.values())

    def count(self, row: Widths) -> None:
        for (a, b), wanted in self.missing.items():
            wanted[row[a], row[b]] = max(0, wanted[row[a], row[b]] - 1)

    def draw(self, rng: np.random.Generator) -> Widths:
        worst = max(int(wanted.max()) for wanted in self.missing.values())
        places = [(a, b, int(i), int(j)) for (a, b), wanted in self.missing.items() for i, j in np.argwhere(wanted == worst)]
        a, b, i, j = places[rng.integers(len(places))]
        row: dict[int, int] = {a: i, b: j}
        waiting = [int(g) for g in rng.permutation(len(self.space.groups)) if g not in row]
        while waiting:
            group = next((g for g in waiting if any(other in row for other, _, _ in self.neighbours[g])), waiting[0])
            waiting.remove(group)
            gain = self._gain(group, row) + rng.uniform(0, 0.5, self.space.groups[group].bins + 1)
            indices = self.space.groups[group].indices
            row[group] = indices[int(np.argmax(gain[list(indices)]))]
        return tuple(row[g] for g in range(len(self.space.groups)))

    def _gain(self, group: int, row: dict[int, int]) -> npt.NDArray[np.float64]:
        gain = np.zeros(self.space.groups[group].bins + 1)
        if (group, group) in self.missing:
            gain += np.diag(self.missing[group, group])
        for other, is_first, pair in self.neighbours[group]:
            if other in row:
                gain += self.missing[pair][:, row[other]] if is_first else self.missing[pair][row[other]]
        return gain
