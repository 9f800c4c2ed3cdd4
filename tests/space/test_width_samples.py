import numpy as np

from bcnet.space.sampling import spread_sample
from bcnet.space.widths import Group, Space


def test_a_spread_sample_is_as_often_narrow_as_wide():
    """Where independent widths of 19 groups hardly ever leave the middle."""
    space = Space(tuple(Group(f"g{n}", tuple(range(4, 4 * choices + 1, 4))) for n, choices in enumerate([4] * 7 + [8] * 6 + [16] * 6)))
    sample = spread_sample(space, 2000, np.random.default_rng(0))
    assert len(set(sample)) == 2000
    assert sample == spread_sample(space, 2000, np.random.default_rng(0)) != spread_sample(space, 2000, np.random.default_rng(1))
    assert sample == sorted(sample)
    last = np.array(space.full) - 1
    places = ((np.array(sample) - 1) / last).mean(1)
    assert np.abs(np.histogram(places, bins=5, range=(0, 1))[0] / 2000 - 0.2).max() < 0.04
    independent = np.random.default_rng(0).integers(0, last + 1, (2000, 19)) / last
    assert np.histogram(independent.mean(1), bins=5, range=(0, 1))[0][[0, 4]].sum() < 20
    assert {k for widths in sample for k in widths[-1:]} == set(range(1, 17))


def test_a_spread_sample_as_large_as_the_space_is_the_space():
    space = Space((Group("a", (3, 6)), Group("only one", (5,)), Group("b", (2, 4, 6), smallest=2)))
    assert spread_sample(space, 4, np.random.default_rng(0)) == list(space.enumerate())
    assert len(spread_sample(space, 3, np.random.default_rng(0))) == 3
