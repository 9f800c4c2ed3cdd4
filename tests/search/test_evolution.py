from dataclasses import replace

import numpy as np
import pytest

from bcnet.models.channel_bench import MobileNet
from bcnet.search import SEARCH_ALGORITHMS, SearchProblem
from bcnet.space.cost import Budget, CostTable
from bcnet.space.trace import trace


@pytest.fixture(scope="module")
def costs():
    return CostTable(trace(MobileNet(), (3, 32, 32)))


class Scores:
    """A score that is known in closed form, and a count of how often each width vector was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, widths):
        self.asked += widths
        return {w: float(np.dot(np.sqrt(w), [3, 1, 1, 2, 4, 2, 1])) for w in widths}


def run(costs, budgets, scores, *, algorithm="evolution", evaluations=200, seed=0, **settings):
    chosen = SEARCH_ALGORITHMS[algorithm]
    size = {"batch_size": 20} if algorithm == "random" else {"population": 20, "init": "random"}
    problem = SearchProblem(costs.space, costs, scores, evaluations, tuple(Budget.parse(text, costs) for text in budgets), seed)
    return chosen.search(problem, chosen.Settings(**size, **settings), np.random.default_rng(seed))


@pytest.mark.parametrize("algorithm", ["evolution", "random"])
@pytest.mark.parametrize("limit", ["flops=0.08", "flops=0.5", "params=0.3"])
def test_nothing_breaks_the_budget_and_nothing_is_scored_twice(costs, algorithm, limit):
    budget, scores = Budget.parse(limit, costs), Scores()
    result = run(costs, [limit], scores, algorithm=algorithm)
    assert len(scores.asked) == len(set(scores.asked)) == len(result.scores) <= 200
    assert (costs.of_widths(list(result.scores), budget.cost) <= budget.limit).all()
    assert result.scores[result.best] == max(result.scores.values())
    assert result.generations[-1] == len(result.scores)


def test_evolution_comes_close_to_the_best_of_the_whole_space(costs):
    budget = Budget.parse("flops=0.5", costs)
    everything = list(costs.space.enumerate())
    allowed = [w for w, f in zip(everything, costs.of_widths(everything, "flops"), strict=True) if f <= budget.limit]
    truth = Scores()(allowed)
    ranks = []
    for seed in range(3):
        best = run(costs, ["flops=0.5"], Scores(), evaluations=600, seed=seed).best
        ranks.append(sum(score > truth[best] for score in truth.values()))
    assert max(ranks) < len(allowed) // 200


def test_the_same_seed_is_the_same_search(costs):
    one, other, third = (run(costs, ["flops=0.5"], Scores(), seed=seed) for seed in (4, 4, 5))
    assert list(one.scores) == list(other.scores)
    assert list(one.scores) != list(third.scores)


def test_the_front_is_what_no_other_beats_in_both(costs):
    result = run(costs, [], Scores(), objective="score_and_cost")
    spent = dict(zip(result.scores, costs.of_widths(list(result.scores), "flops"), strict=True))
    for widths, score in result.scores.items():
        beaten = any(
            (spent[o] <= spent[widths] and s >= score) and (spent[o] < spent[widths] or s > score) for o, s in result.scores.items()
        )
        assert (widths in result.front) <= (not beaten)
        twin = any(spent[w] == spent[widths] and result.scores[w] == score for w in result.front)
        assert beaten or twin


def test_a_small_space_is_searched_whole_and_ends(costs):
    from bcnet.space.widths import Space

    space = Space(tuple(replace(group, smallest=4) for group in costs.space.groups), costs.space.layers)
    result = run(CostTable(space), [], Scores(), evaluations=50)
    assert list(result.scores) == [space.full]
