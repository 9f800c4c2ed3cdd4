import itertools

import pytest
from grids import all_choices, random_architecture, tiny

from bcnet.dense import paths
from bcnet.dense.costs import count_grid
from bcnet.dense.derive import candidates
from bcnet.dense.paths import Scores, best_paths, best_that_fills, best_within, most_probable
from bcnet.space.cost import Budget

SEEDS = range(3)


def made(seed, **changes):
    grid = tiny(**changes)
    architecture = random_architecture(grid, seed)
    return grid, architecture, Scores.of(architecture), count_grid(grid, (3, 8, 8), 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_most_probable_paths_are_those_of_brute_force(seed):
    widths = [4, 6, 7, 8, 9, 10]
    grid, _, scores, _ = made(seed, widths=widths, maps=[8, 8, 4, 4, 2, 2], stages=[0, 1, 1, 2, 2, 3], depth=0)
    listed = sorted(grid.paths(), key=lambda path: -scores.of_path(grid, path))
    assert best_paths(grid, scores, 4) == listed[:4]
    assert best_paths(grid, scores, 1000) == listed


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_budget_the_best_path_and_the_best_operations_are_derived(seed):
    grid, architecture, scores, _ = made(seed)
    choice = most_probable(grid, scores)
    assert scores.of_choice(grid, choice) == pytest.approx(max(scores.of_choice(grid, one) for one in all_choices(grid)))
    assert scores.of_choice(grid, choice) == pytest.approx(max(scores.of_path(grid, path) for path in grid.paths()))
    numbers = {(e.source, e.target): n for n, e in enumerate(grid.heads)}
    best = architecture.heads().argmax(1).tolist()
    assert [best[numbers[pair]] for pair in itertools.pairwise(choice.path)] == list(choice.heads)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cost", ["flops", "params"])
def test_within_any_budget_the_best_is_that_of_brute_force(seed, cost):
    grid, _, scores, costs = made(seed)
    price = costs.costs[cost]
    known = [(price.of(one), scores.of_choice(grid, one), one.path) for one in all_choices(grid)]
    limits = sorted({value for value, _, _ in known})
    assert best_within(grid, scores, price, limits[0] - 1) is None
    for limit in limits[:: max(1, len(limits) // 25)]:
        found = best_within(grid, scores, price, limit)
        assert price.of(found) <= limit
        assert scores.of_choice(grid, found) == pytest.approx(max(score for value, score, _ in known if value <= limit))
        path = (0, 1, 3)
        within = [score for value, score, own in known if value <= limit and own == path]
        found = best_within(grid, scores, price, limit, path)
        assert (found is None) == (not within)
        if found is not None:
            assert found.path == path
            assert scores.of_choice(grid, found) == pytest.approx(max(within))


def test_thinning_keeps_budgets_and_what_can_be_met(monkeypatch):
    grid, _, scores, costs = made(0)
    price = costs.costs["flops"]
    exact = {limit: best_within(grid, scores, price, limit) for limit in range(*costs.range("flops"), 9000)}
    monkeypatch.setattr(paths, "MOST_LABELS", 4)
    for limit, best in exact.items():
        found = best_within(grid, scores, price, limit)
        assert price.of(found) <= limit
        assert scores.of_choice(grid, found) <= scores.of_choice(grid, best) + 1e-12


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_candidates_are_of_different_paths_and_never_over_budget(share):
    grid, architecture, scores, costs = made(1)
    low, high = costs.range("flops")
    budget = Budget("flops", low + share * (high - low))
    found = candidates(architecture, costs, budget, count=3, search_paths=10)
    assert len({choice.path for choice in found}) == len(found) >= 1
    assert all(costs.costs["flops"].of(choice) <= budget.limit for choice in found)
    best = best_within(grid, scores, costs.costs["flops"], budget.limit)
    assert scores.of_choice(grid, found[0]) == pytest.approx(scores.of_choice(grid, best))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_fills_a_budget_is_the_best_that_costs_as_much(seed):
    grid, architecture, scores, costs = made(seed)
    price = costs.costs["flops"]
    low, high = costs.range("flops")
    filled = 0
    for limit in (low + 0.3 * (high - low), low + 0.6 * (high - low), high):
        found = best_that_fills(grid, scores, price, limit, 0.9)
        assert 0.9 * limit <= price.of(found) <= limit
        same = [one for one in all_choices(grid) if price.of(found) <= price.of(one) <= limit]
        assert scores.of_choice(grid, found) == pytest.approx(max(scores.of_choice(grid, one) for one in same))
        some = candidates(architecture, costs, Budget("flops", limit), count=2, search_paths=10, fill=0.9)
        assert all(price.of(choice) <= limit for choice in some)
        assert some[:2] == candidates(architecture, costs, Budget("flops", limit), count=2, search_paths=10)
        assert all(price.of(choice) >= 0.9 * limit for choice in some[2:])
        filled += len(some) - 2
    assert filled > 0
    assert best_that_fills(grid, scores, price, low - 1, 0.9) is None
