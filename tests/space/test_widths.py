from itertools import product

import numpy as np
import pytest

from bcnet.errors import UserError
from bcnet.space.widths import Group, Space


def space(bins=4, min_bins=1, channels=(20, 40, 60)):
    return Space(tuple(Group.of_bins(f"g{c}", c, bins=bins, min_bins=min_bins) for c in channels))


def test_channels_are_rounded_shares_of_the_full_count():
    assert Group.of_bins("g", 10).choices == (3, 5, 8, 10)
    assert Group.of_bins("g", 48, unit=8).choices == (16, 24, 40, 48)


def test_widths_survive_being_written_and_read():
    for bins in (4, 9, 10, 20):
        s = space(bins)
        rng = np.random.default_rng(0)
        for widths in [s.full, s.narrowest, *(s.sample(rng) for _ in range(20))]:
            assert s.decode(s.encode(widths)) == widths
    assert space(4).encode((4, 3, 1)) == "431"
    assert space(20).encode((12, 7, 20)) == "12-7-20"


@pytest.mark.parametrize("text", ["43", "4311", "430", "435", "4a1", "4-3-1", "", "٤31"])
def test_strings_that_are_not_of_the_space_are_refused(text):
    with pytest.raises(UserError, match=r"3 indices 1\.\.4"):
        space().decode(text)


def test_min_bins_must_lie_within_bins():
    with pytest.raises(UserError, match="min_bins"):
        space(4, 5)


@pytest.mark.parametrize(("bins", "min_bins"), [(4, 1), (4, 2), (10, 3), (7, 7)])
def test_the_wide_complement_is_legal_and_its_own_inverse(bins, min_bins):
    s = space(bins, min_bins)
    for k in range(min_bins, bins + 1):
        (other, _, _) = s.complement((k, bins, min_bins), wide=True)
        assert min_bins <= other <= bins
        assert k + other == bins + min_bins
        assert s.complement(s.complement((k, k, k), wide=True), wide=True) == (k, k, k)


def test_the_plain_complement_is_clipped():
    assert space(4, 1).complement((1, 3, 4), wide=False) == (3, 1, 1)
    assert space(4, 2).complement((2, 3, 4), wide=False) == (2, 2, 2)


def test_left_and_complementary_right_partition_the_channels_of_a_wide_supernet():
    for channels, bins, min_bins in product((16, 64, 48), (4, 8), (1, 2)):
        s = Space((Group.of_bins("g", channels, bins=bins, min_bins=min_bins),))
        table = s.channel_table(wide=True)[0]
        for k in range(min_bins, bins + 1):
            (other,) = s.complement((k,), wide=True)
            left, right = set(range(table[k])), set(range(table[-1] - table[other], table[-1]))
            assert not left & right
            assert left | right == set(range(table[-1]))


def test_enumeration_is_complete_and_in_order():
    s = space(3, 2)
    everything = list(s.enumerate())
    assert len(everything) == len(set(everything)) == len(s) == 8
    assert everything == sorted(everything)


def test_sampling_follows_the_generator_and_reaches_every_index():
    s = space()
    draws = [[s.sample(rng) for _ in range(200)] for rng in (np.random.default_rng(3), np.random.default_rng(3))]
    assert draws[0] == draws[1]
    assert {k for widths in draws[0] for k in widths} == {1, 2, 3, 4}
