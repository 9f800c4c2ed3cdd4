from typing import get_args

import numpy as np
import pytest

from bcnet.config import TrainConfig
from bcnet.space.widths import Group, Space
from bcnet.training.strategies import TrainingCounts, make_strategy

STRATEGIES = get_args(TrainConfig.model_fields["strategy"].annotation)


def space(bins=4, min_bins=1):
    return Space(tuple(Group(f"g{n}", 16) for n in range(3)), bins, min_bins)


def counts_of(strategy, s, steps):
    counts = TrainingCounts(len(s.groups), s.bins + (s.min_bins if strategy.wide else 0))
    for step in range(steps):
        counts.add(strategy.passes(step))
    return counts


@pytest.mark.parametrize(("bins", "min_bins"), [(4, 1), (4, 2), (10, 3)])
def test_a_bcnetv2_pair_trains_every_bin_exactly_twice(bins, min_bins):
    s = space(bins, min_bins)
    strategy = make_strategy("bcnetv2", s, seed=0)
    for pair in range(50):
        counts = TrainingCounts(3, bins + min_bins)
        for step in (2 * pair, 2 * pair + 1):
            counts.add(strategy.passes(step))
        assert (counts.counts == 2).all()


def test_bcnet_is_even_within_a_step_and_its_deviation_is_counted():
    s = space(4, 2)
    strategy = make_strategy("bcnet", s, seed=0)
    counts = counts_of(strategy, s, 200)
    assert (counts.counts == counts.counts[:, ::-1]).all()  # left and right mirror each other
    assert counts.deviation > 0.05
    assert counts_of(make_strategy("bcnetv2", s, seed=0), s, 200).deviation == 0


def test_uniform_trains_the_first_bins_most():
    counts = counts_of(make_strategy("uniform", space(), seed=0), space(), 300).counts
    assert (np.diff(counts, axis=1) < 0).all()
    assert (counts[:, 0] == 300).all()


def test_autoslim_trains_the_widest_by_labels_and_teaches_the_rest():
    s = space()
    passes = make_strategy("autoslim", s, seed=0, num_random=3).passes(7)
    assert [one.distilled for one in passes] == [False, True, True, True, True]
    assert passes[0].widths == s.full
    assert passes[1].widths == s.narrowest
    assert {one.side for one in passes} == {"left"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_follows_from_the_seed_and_its_number_alone(name):
    one, other, third = (make_strategy(name, space(), seed) for seed in (5, 5, 6))
    order = [9, 2, 3, 2, 0]
    assert [one.passes(step) for step in order] == [other.passes(step) for step in order]
    assert [one.passes(step) for step in range(9)] != [third.passes(step) for step in range(9)]
    assert one.passes(2) == one.passes(2)


def test_losses_of_both_sides_are_averaged():
    for name in ("bcnet", "bcnetv2"):
        passes = make_strategy(name, space(), 0).passes(0)
        assert [(one.side, one.weight) for one in passes] == [("left", 0.5), ("right", 0.5)]
        assert passes[0].widths == passes[1].widths


@pytest.mark.parametrize(("bins", "min_bins"), [(4, 1), (4, 2), (10, 3)])
def test_with_a_teacher_every_step_of_bcnetv2_trains_every_bin_once_and_all_of_them_by_the_labels(bins, min_bins):
    s = space(bins, min_bins)
    strategy = make_strategy("bcnetv2", s, 0, inplace_distillation=True)
    for step in range(20):
        whole, *taught = strategy.passes(step)
        assert (whole.widths, whole.distilled, whole.weight) == ((bins + min_bins,) * 3, False, 1.0)
        assert [(one.weight, one.distilled) for one in taught] == [(0.5, True)] * 2
        counts = TrainingCounts(3, bins + min_bins)
        counts.add(taught)
        assert (counts.counts == 1).all()


@pytest.mark.parametrize("name", ["bcnet", "bcnetv2"])
def test_with_a_teacher_every_width_is_trained_on_both_sides(name):
    strategy = make_strategy(name, space(), 0, inplace_distillation=True)
    seen = {(one.side, group, k) for step in range(200) for one in strategy.passes(step)[1:] for group, k in enumerate(one.widths)}
    assert len(seen) == 2 * 3 * 4
    assert strategy.passes(0)[0].widths == ((4 + 1,) * 3 if name == "bcnetv2" else space().full)
