import numpy as np
import pytest
import torch

from bcnet.dense.sampling import keep_mass, sample_operations

PROBABILITIES = torch.tensor([[0.7, 0.1, 0.1, 0.05, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)


def drawn(how, count, steps, seed=0):
    rows = [sample_operations(PROBABILITIES, count, how, seed=seed, step=step, part=0) for step in range(steps)]
    return torch.stack(rows)


@pytest.mark.parametrize("how", ["probable", "uniform", "fair"])
def test_a_step_follows_from_seed_and_number_and_never_names_an_operation_twice(how):
    pairs = drawn(how, 2, 40)
    assert pairs.shape == (40, 2, 2)
    assert (pairs[..., 0] != pairs[..., 1]).all()
    assert torch.equal(pairs, drawn(how, 2, 40))
    assert not torch.equal(pairs, drawn(how, 2, 40, seed=1))


@pytest.mark.parametrize(("count", "times"), [(1, 1), (2, 2)])
def test_fair_rounds_use_every_operation_equally_often(count, times):
    steps = drawn("fair", count, 5 * 6)
    for start in range(0, 30, 5):
        for row in range(2):
            counts = np.bincount(steps[start : start + 5, row].flatten().numpy(), minlength=5)
            assert counts.tolist() == [times] * 5
    orders = {tuple(steps[start : start + 5, 0, 0].tolist()) for start in range(0, 30, 5)}
    assert len(orders) > 1


def test_probable_draws_follow_the_probabilities():
    counts = np.bincount(drawn("probable", 1, 4000)[:, 0, 0].numpy(), minlength=5) / 4000
    np.testing.assert_allclose(counts, PROBABILITIES[0], atol=0.03)
    both = drawn("probable", 2, 4000)[:, 0].numpy()
    p = PROBABILITIES[0].numpy()
    expected = sum(p[i] * p[j] / (1 - p[i]) for i in range(5) for j in range(5) if {i, j} == {0, 1})  # without replacement
    assert np.mean([set(pair) == {0, 1} for pair in both]) == pytest.approx(expected, abs=0.03)


def test_where_there_is_one_operation_it_is_used():
    one = torch.ones(3, 1)
    for how in ("probable", "uniform", "fair"):
        assert sample_operations(one, 2, how, seed=0, step=7, part=0).tolist() == [[0]] * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_step_moves_probability_between_the_two_that_were_compared_only(temperature):
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    used = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(6)])
    kept = keep_mass(after, before, used, temperature)
    p, q = (before / temperature).softmax(1), (kept / temperature).softmax(1)
    torch.testing.assert_close(q.gather(1, used).sum(1), p.gather(1, used).sum(1))
    others = torch.ones_like(p, dtype=torch.bool).scatter(1, used, False)
    torch.testing.assert_close(q[others], p[others])
    assert torch.equal(kept[others], before[others])
    gap = after.gather(1, used)  # what the step decided between the two stays decided
    torch.testing.assert_close(kept.gather(1, used).diff(dim=1), gap.diff(dim=1))
