"""Every strategy passes the same contract; each has laws of its own."""

from collections import Counter

import numpy as np
import pytest

from bcnet.space.widths import Group, Space
from bcnet.training.fairness import TrainingCounts
from bcnet.training.strategies import STRATEGIES


def space(bins=4, min_bins=1):
    return Space(tuple(Group.of_bins(f"g{n}", 60, bins=bins, min_bins=min_bins) for n in range(3)))


def mixed_space():
    """Groups of 4, 8 and 16 choices together, as the ResNet20 channel search has them, and one with k_min = 2."""
    lists = [range(4, 17, 4), range(4, 33, 4), range(4, 65, 4)]
    groups = [Group(f"g{len(counts)}", tuple(counts)) for counts in lists]
    return Space((*groups, Group("narrow ones excluded", tuple(range(4, 33, 4)), smallest=2)))


SPACES = {"equal bins": space(), "k_min 2": space(4, 2), "ten bins": space(10, 3), "mixed": mixed_space()}


def make(name, s, seed=0, **settings):
    strategy = STRATEGIES[name]
    return strategy(s, seed, strategy.Settings(**settings))


def counts_of(strategy, steps):
    counts = TrainingCounts(strategy.space.groups, strategy.wide)
    for step in steps:
        counts.add(strategy.passes(step))
    return counts


@pytest.mark.parametrize("where", SPACES)
@pytest.mark.parametrize("name", STRATEGIES)
class TestContract:
    """What the trainer, the scorer and the page rely on."""

    def test_a_step_follows_from_the_seed_and_its_number_alone(self, name, where):
        one, other, third = (make(name, SPACES[where], seed) for seed in (5, 5, 6))
        order = [9, 2, 3, 2, 0]
        assert [one.passes(step) for step in order] == [other.passes(step) for step in order]
        assert [one.passes(step) for step in range(9)] != [third.passes(step) for step in range(9)]
        assert one.passes(2) == one.passes(2)

    def test_every_pass_is_a_subnet_of_the_supernet_and_the_first_learns_from_labels(self, name, where):
        strategy = make(name, SPACES[where])
        whole = strategy.space.whole(strategy.wide)
        for step in range(20):
            passes = strategy.passes(step)
            assert not passes[0].distilled
            for one in passes:
                assert one.side in ("left", "right")
                assert one.weight > 0
                is_choice = all(k in group.indices for k, group in zip(one.widths, strategy.space.groups, strict=True))
                assert is_choice or one.widths == whole

    def test_every_choice_is_trained_on_every_side_that_is_scored(self, name, where):
        strategy = make(name, SPACES[where])
        seen = {(one.side, group, k) for step in range(400) for one in strategy.passes(step) for group, k in enumerate(one.widths)}
        wanted = {(side, place, k) for side in strategy.sides for place, group in enumerate(strategy.space.groups) for k in group.indices}
        assert wanted <= seen
        assert {side for side, _, _ in seen} <= {*strategy.sides, "left"}


@pytest.mark.parametrize("where", SPACES)
def test_a_bcnetv2_pair_trains_every_bin_exactly_twice(where):
    strategy = make("bcnetv2", SPACES[where])
    for pair in range(50):
        counts = counts_of(strategy, (2 * pair, 2 * pair + 1))
        assert all((own == 2).all() for own in counts.counts)
        assert [len(own) for own in counts.counts] == [group.bins + group.smallest for group in strategy.space.groups]


@pytest.mark.parametrize("where", SPACES)
def test_with_a_teacher_every_step_of_bcnetv2_trains_every_bin_once_and_all_of_them_by_the_labels(where):
    strategy = make("bcnetv2_distilled", SPACES[where])
    for step in range(20):
        whole, *students = strategy.passes(step)
        assert (whole.widths, whole.distilled, whole.weight) == (strategy.space.whole(True), False, 1.0)
        assert [(one.weight, one.distilled) for one in students] == [(0.5, True)] * 2
        counts = TrainingCounts(strategy.space.groups, wide=True)
        counts.add(students)
        assert all((own == 1).all() for own in counts.counts)


def test_bcnet_is_even_within_a_step_and_its_deviation_is_counted():
    s = space(4, 2)
    counts = counts_of(make("bcnet", s), range(200))
    assert all((own == own[::-1]).all() for own in counts.counts)  # left and right mirror each other
    assert counts.deviation > 0.05
    assert counts_of(make("bcnetv2", s), range(200)).deviation == 0


def test_choices_that_are_not_symmetric_cannot_hide_that_their_training_is_uneven():
    """From the left the cuts are at 4, 8 and 40 of 44 channels, from the right at 4, 36 and 40: the pieces between tell."""
    s = Space((Group("g", (4, 8, 40)),))
    counts = counts_of(make("bcnetv2", s), range(200))
    (own,) = counts.counts
    assert len(own) == 5
    by_channel = np.zeros(44, dtype=int)
    strategy = make("bcnetv2", s)
    for step in range(200):
        for one in strategy.passes(step):
            count = s.channels(one.widths)[0]
            by_channel[slice(0, count) if one.side == "left" else slice(44 - count, 44)] += 1
    assert np.repeat(own, np.diff([0, 4, 8, 36, 40, 44])).tolist() == by_channel.tolist()
    assert counts.deviation > 0


def test_counts_go_on_from_what_0_1_kept():
    s = space(4, 1)
    counts = counts_of(make("bcnetv2", s), range(7))
    again = TrainingCounts(s.groups, wide=True)
    again.restore(np.stack(counts.counts))  # one table, as all groups had as many bins
    assert [own.tolist() for own in again.counts] == [own.tolist() for own in counts.counts]
    with pytest.raises(ValueError, match="2 groups, where the space has 3"):
        again.restore(np.ones((2, 5)))


def test_uniform_trains_the_first_bins_most():
    counts = counts_of(make("uniform", space()), range(300)).counts
    assert all((np.diff(own) < 0).all() and own[0] == 300 for own in counts)


@pytest.mark.parametrize("where", SPACES)
def test_strict_fairness_trains_every_choice_equally_often(where):
    """Within one step where the numbers of choices divide the most; else over a round of any group."""
    s = SPACES[where]
    strategy = make("fair", s)
    passes = [one for step in range(21) for one in strategy.passes(step)]
    per_step = len(strategy.passes(0))
    assert per_step == max(len(group.choices) for group in s.groups)
    for place, group in enumerate(s.groups):
        choices = len(group.choices)
        assert [Counter(one.widths[place] for one in passes[start : start + choices]) for start in range(0, 5 * choices, choices)] == [
            Counter(group.indices)
        ] * 5
    assert len({one.widths for one in passes}) > 0.9 * len(passes) or s.size < 10 * len(passes)
    assert {(one.side, one.weight, one.distilled) for one in passes} == {("left", 1.0, False)}


def test_strict_fairness_with_a_teacher_and_other_numbers_of_subnets():
    teacher, *students = make("fair", space(), num_subnets=3, distilled=True).passes(4)
    assert teacher.widths == space().full
    assert not teacher.distilled
    assert [one.distilled for one in students] == [True] * 3


def test_autoslim_trains_the_widest_by_labels_and_teaches_the_rest():
    s = space()
    passes = make("autoslim", s, num_random=3).passes(7)
    assert [one.distilled for one in passes] == [False, True, True, True, True]
    assert passes[0].widths == s.full
    assert passes[1].widths == s.narrowest
    assert {one.side for one in passes} == {"left"}


def test_losses_of_both_sides_are_averaged():
    for name in ("bcnet", "bcnetv2"):
        passes = make(name, space()).passes(0)
        assert [(one.side, one.weight) for one in passes] == [("left", 0.5), ("right", 0.5)]
        assert passes[0].widths == passes[1].widths


def test_published_names_give_published_methods():
    """bcnet and bcnetv2 learn from labels alone, two passes a step, as their papers say; the recipe of our own has its own name."""
    for name in ("bcnet", "bcnetv2"):
        passes = [one for step in range(6) for one in make(name, space()).passes(step)]
        assert len(passes) == 12
        assert not any(one.distilled for one in passes)
    assert any(one.distilled for one in make("bcnetv2_distilled", space()).passes(0))
