import numpy as np
import pytest

from bcnet.models.channel_bench import MobileNet
from bcnet.search.prior import expected_losses, sample_population, solve_prior
from bcnet.search.problem import SearchProblem
from bcnet.space.cost import Budget, CostTable, shrink_to_budgets
from bcnet.space.trace import trace


@pytest.fixture(scope="module")
def costs():
    return CostTable(trace(MobileNet(), (3, 32, 32)))


def random_records(space, count, seed=0):
    rng = np.random.default_rng(seed)
    return [(float(rng.normal(3 - 0.1 * sum(widths), 0.1)), widths) for widths in (space.sample(rng) for _ in range(count))]


def test_expected_losses_are_means_and_what_was_never_seen_gets_the_worst(costs):
    space = costs.space
    records = [(1.0, (1,) * 7), (3.0, (1, *(2,) * 6)), (2.0, (3,) * 7)]
    losses = expected_losses(space, records)
    assert losses[0].tolist() == [2.0, 2.0, 2.0, 2.0]
    assert losses[1].tolist() == [1.0, 3.0, 2.0, 3.0]


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("cost", ["flops", "params"])
def test_the_prior_meets_the_budget_in_expectation_and_beats_uniform_choices(costs, cost, share):
    space = costs.space
    losses = expected_losses(space, random_records(space, 300))
    budget = Budget(cost, int(share * costs.range(cost)[1]))
    p = solve_prior(costs, [budget], losses)

    def expectation(distributions):
        return costs.costs[cost].expectation([np.concatenate([[0.0], row]) for row in distributions])

    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(1), 1)
    assert expectation(p) == pytest.approx(budget.limit, rel=1e-3)
    rng = np.random.default_rng(1)
    for _ in range(200):  # no random distributions with the same expected cost have a lower expected loss
        q = rng.dirichlet(np.full(4, 0.5), size=7)
        if expectation(q) <= budget.limit:
            assert (p * losses).sum() <= (q * losses).sum() + 1e-6


@pytest.mark.parametrize("limit", ["flops=0.07", "flops=0.3", "flops=1.0"])
def test_a_population_is_different_and_within_the_budget(costs, limit):
    space = costs.space
    budget = Budget.parse(limit, costs)
    p = solve_prior(costs, [budget], expected_losses(space, random_records(space, 300)))
    problem = SearchProblem(space, costs, None, 0, (budget,))
    population = sample_population(problem, p, 40, np.random.default_rng(0))
    assert 1 <= len(population) == len(set(population)) <= 40
    assert (costs.of_widths(population, "flops") <= budget.limit).all()
    assert population == sample_population(problem, p, 40, np.random.default_rng(0))


def test_shrinking_ends_within_the_budget_and_takes_no_more_than_needed(costs):
    space = costs.space
    budget = Budget.parse("flops=0.4", costs)
    rng = np.random.default_rng(0)
    for _ in range(50):
        widths = space.sample(rng)
        small = shrink_to_budgets(costs, [budget], widths, rng)
        assert costs.one(small, "flops") <= budget.limit
        assert all(a <= b for a, b in zip(small, widths, strict=True))
        if costs.one(widths, "flops") <= budget.limit:
            assert small == widths
