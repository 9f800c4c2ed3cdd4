import numpy as np
import pytest

from bcnet.models.channel_bench import MobileNet
from bcnet.search import SearchProblem
from bcnet.search.greedy import GreedySlimming
from bcnet.space.cost import Budget, CostTable
from bcnet.space.trace import trace

WORTH = np.array([3, 1, 1.3, 2, 4, 2.2, 1.1])  # no two removals are worth the same


@pytest.fixture(scope="module")
def costs():
    return CostTable(trace(MobileNet(), (3, 32, 32)))


def scores(widths):
    return {w: float(np.dot(np.sqrt(w), WORTH)) for w in widths}


def descend(costs, *budgets, weighed="", **settings):
    parsed = tuple(Budget.parse(text, costs) for text in budgets)
    problem = SearchProblem(costs.space, costs, scores, 1, parsed, weighed=weighed)
    return problem, GreedySlimming.search(problem, GreedySlimming.Settings(**settings), np.random.default_rng(0))


def path_by_hand(costs, limit, worth_of):
    """The descent written down once more, over whole tables."""
    at = list(costs.space.full)
    path = [tuple(at)]
    while costs.one(at, "flops") > limit:
        losses = []
        for place in range(7):
            if at[place] > 1:
                lower = [*at[:place], at[place] - 1, *at[place + 1 :]]
                loss = WORTH[place] * (np.sqrt(at[place]) - np.sqrt(at[place] - 1))
                losses.append((worth_of(loss, costs.one(at, "flops") - costs.one(lower, "flops")), place))
        at[min(losses)[1]] -= 1
        path.append(tuple(at))
    return path


@pytest.mark.parametrize("per_cost", [False, True])
def test_it_drops_what_costs_least_again_and_again(costs, per_cost):
    problem, result = descend(costs, "flops=0.3", per_cost=per_cost)
    path = path_by_hand(costs, problem.budgets[0].limit, (lambda loss, saved: loss / saved) if per_cost else (lambda loss, saved: loss))
    seen = set(result.scores)
    assert set(path) <= seen
    assert len(seen) <= 7 * len(path)
    below = [w for w in seen if problem.keeps_budgets(w)]
    assert path[-1] in below
    assert result.scores[result.best] == max(result.scores[w] for w in below)


def test_one_descent_passes_every_budget(costs):
    _, result = descend(costs, "flops=0.75", "flops=0.5", "params=0.25")
    assert problem_keeps(costs, result)
    for text, widths in zip(("flops=0.75", "flops=0.5", "params=0.25"), result.passed, strict=True):
        _, alone = descend(costs, text, weighed="flops")
        budget = Budget.parse(text, costs)
        assert costs.one(widths, budget.cost) <= budget.limit
        assert set(alone.scores) <= set(result.scores)  # the same way down, as far as it goes
        assert result.scores[widths] >= alone.scores[alone.best]


def problem_keeps(costs, result):
    budgets = [Budget.parse(text, costs) for text in ("flops=0.5", "params=0.25")]
    return all(costs.one(result.best, budget.cost) <= budget.limit for budget in budgets)


def test_without_a_budget_it_ends_at_the_narrowest(costs):
    _, result = descend(costs)
    assert costs.space.full in result.scores
    assert costs.space.narrowest in result.scores
    assert result.best == costs.space.full
    assert result.generations[-1] == len(result.scores)


def test_the_cost_it_is_weighed_against_can_be_chosen(costs):
    _, by_flops = descend(costs, "flops=0.4", per_cost=True)
    _, by_params = descend(costs, "flops=0.4", per_cost=True, weighed="params")
    assert by_flops.cost == "flops"
    assert by_params.cost == "params"
    assert list(by_flops.scores) != list(by_params.scores)
