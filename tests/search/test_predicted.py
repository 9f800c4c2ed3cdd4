import numpy as np
import pytest

from bcnet.models.factory import build_model
from bcnet.search import predicted
from bcnet.search.predicted import best_predicted
from bcnet.space.cost import CostTable, parse_budgets
from bcnet.supernet.proof import trace


@pytest.fixture(scope="module")
def costs():
    return CostTable(trace(build_model("channel_bench/mobilenet", 10), (3, 32, 32), proof=False))


def prediction(rng, groups, bins):
    """An additive model of concave non-decreasing effects."""
    effects = np.cumsum(np.sort(rng.random((groups, bins)) ** 3, axis=1)[:, ::-1], axis=1)
    return lambda widths: effects[np.arange(groups), np.asarray(widths) - 1].sum(1)


@pytest.mark.parametrize("budgets", [["flops=0.5"], ["flops=0.3", "params=0.4"], []])
@pytest.mark.parametrize("seed", range(3))
def test_the_local_search_finds_what_brute_force_finds(costs, budgets, seed, monkeypatch):
    space = costs.space
    predict = prediction(np.random.default_rng(seed), len(space.groups), 4)
    limits = parse_budgets(budgets, costs)
    expected = best_predicted(costs, limits, predict)
    everything = np.array(list(space.enumerate()))
    for budget in limits:
        everything = everything[costs.of_widths(everything, budget.cost) <= budget.limit]
    assert predict([expected])[0] == predict(everything).max()
    monkeypatch.setattr(predicted, "MOST_ENUMERATED", 0)
    found = best_predicted(costs, limits, predict, seed)
    assert predict([found])[0] == pytest.approx(predict(everything).max(), abs=0.02 * np.ptp(predict(everything)))
    assert all(costs.one(found, budget.cost) <= budget.limit for budget in limits)


def test_neighbours_differ_in_two_groups_at_most_and_are_legal():
    rows = predicted._neighbours((1, 4, 2), (1, 2, 1), (4, 4, 4))
    assert ((rows >= [1, 2, 1]) & (rows <= [4, 4, 4])).all()
    assert ((rows != [1, 4, 2]).sum(1) <= 2).all()
    assert (np.abs(rows - [1, 4, 2]) <= 2).all()
    assert (3, 2, 2) in set(map(tuple, rows.tolist()))
