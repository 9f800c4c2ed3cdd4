import itertools

import numpy as np
import pytest

from bcnet.latency.design import cover_pairs
from bcnet.space.widths import Group, Space


@pytest.mark.parametrize(("bins", "smallest"), [(4, 1), (7, 2)])
def test_every_pair_of_neighbours_occurs_as_often_as_asked(bins, smallest):
    space = Space(tuple(Group(f"g{n}", tuple(range(4, 4 * bins + 1, 4)), smallest) for n in range(12)))
    pairs = {(g, g + 1) for g in range(11)} | {(0, 5), (3, 3)}
    rows = cover_pairs(space, pairs, times=3, most=1000, rng=np.random.default_rng(0))
    assert rows[:2] == [space.full, space.narrowest]
    for a, b in pairs:
        wanted = itertools.product(space.groups[a].indices, repeat=2) if a != b else ((k, k) for k in space.groups[a].indices)
        seen = [(row[a], row[b]) for row in rows]
        assert all(seen.count(pair) >= 3 for pair in wanted)
    assert all(k in group.indices for row in rows for k, group in zip(row, space.groups, strict=True))
    assert len(rows) < 1.5 * 3 * len(space.groups[0].choices) ** 2  # near the least that is possible


def test_it_stops_at_the_most_and_repeats_itself():
    space = Space(tuple(Group(f"g{n}", tuple(range(1, 9))) for n in range(5)))
    draws = [cover_pairs(space, {(0, 1), (1, 2)}, times=3, most=20, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert len(draws[0]) == 20
    assert draws[0] == draws[1] != draws[2]
