"""Search for width vectors: NSGA-II (pymoo) or random sampling, both under a budget, both without repeats.

A search is a pure function of its seed and the scores, so a killed search is resumed by running it again: scores that
are already in the cache cost nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcnet.search.prior import Floats, sample_population, shrink_to_budget
from bcnet.space.cost import Budget, CostTable
from bcnet.space.widths import Space, Widths

ScoreMany = Callable[[Sequence[Widths]], dict[Widths, float]]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        scores: every evaluated width vector with its score, in order of evaluation.
        generations: number of evaluated width vectors after each generation.
        best: the one of highest score within the budget (of equal scores the cheaper).
        front: the evaluated width vectors that no other beats in both score and cost, cheapest first.
    """

    scores: dict[Widths, float]
    generations: list[int]
    best: Widths
    front: list[Widths]


def evolve(
    space: Space,
    costs: CostTable,
    score_many: ScoreMany,
    *,
    budget: Budget | None,
    first: Sequence[Widths],
    population: int,
    evaluations: int,
    seed: int,
    cost: str | None = None,
) -> SearchResult:
    """NSGA-II over integer widths.

    Args:
        space: the width space.
        costs: its costs.
        score_many: scores of several width vectors, asked for once per generation.
        budget: no result is above it (law 7).
        first: the first generation, within the budget.
        population: individuals per generation.
        evaluations: how many different width vectors to score at most.
        seed: of the search.
        cost: make it a second objective: the search is for a Pareto front.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PolynomialMutation
    from pymoo.operators.repair.rounding import RoundingRepair

    problem = Problem(n_var=len(space.groups), n_obj=1 if cost is None else 2, xl=space.min_bins, xu=space.bins, vtype=int)
    algorithm: Any = NSGA2(
        pop_size=population,
        sampling=np.array(first, dtype=int),
        crossover=UniformCrossover(prob=0.9),
        mutation=PolynomialMutation(prob=0.9, prob_var=max(0.1, 1 / len(space.groups)), eta=3, vtype=float, repair=RoundingRepair()),
        repair=_budget_repair(space, costs, budget, np.random.default_rng(seed)),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
    scores: dict[Widths, float] = {}
    generations: list[int] = []
    idle = 0
    while len(scores) < min(evaluations, len(space)) and idle < 20:
        asked = algorithm.ask()
        if asked is None or len(asked) == 0:
            break
        candidates = [tuple(int(k) for k in row) for row in asked.get("X")]
        new = list(dict.fromkeys(c for c in candidates if c not in scores))[: evaluations - len(scores)]
        scores.update(score_many(new))
        idle = 0 if new else idle + 1
        if new:
            generations.append(len(scores))
        # the last generation may be cut short by the number of evaluations; what was left out counts as worst
        values = np.array([scores.get(c, -np.inf) for c in candidates])
        objectives = [np.where(np.isfinite(values), -values, 1e30)]
        if cost is not None:
            objectives.append(costs.of_widths(candidates, cost).astype(float))
        asked.set("F", np.stack(objectives, axis=1))
        algorithm.tell(infills=asked)
    return summarize(scores, generations, costs, cost or (budget.cost if budget else "flops"))


def random_search(
    space: Space, costs: CostTable, score_many: ScoreMany, *, budget: Budget | None, population: int, evaluations: int, seed: int
) -> SearchResult:
    """Score random widths within the budget: the baseline. Arguments as for `evolve`."""
    rng = np.random.default_rng(seed)
    wanted = sample_population(space, costs, budget, uniform_prior(space), evaluations, rng, tries=20 * evaluations)
    scores: dict[Widths, float] = {}
    generations = []
    for start in range(0, len(wanted), population):
        scores.update(score_many(wanted[start : start + population]))
        generations.append(len(scores))
    return summarize(scores, generations, costs, budget.cost if budget else "flops")


def uniform_prior(space: Space) -> Floats:
    """The distributions of widths drawn uniformly."""
    choices = space.bins - space.min_bins + 1
    return np.full((len(space.groups), choices), 1 / choices)


def summarize(scores: dict[Widths, float], generations: list[int], costs: CostTable, cost: str) -> SearchResult:
    """Best and Pareto front of scored width vectors."""
    spent = dict(zip(scores, costs.of_widths(list(scores), cost).tolist(), strict=True))
    ranked = sorted(scores, key=lambda widths: (spent[widths], -scores[widths], widths))
    front: list[Widths] = []
    for widths in ranked:
        if not front or scores[widths] > scores[front[-1]]:
            front.append(widths)
    best = max(ranked, key=lambda widths: scores[widths])  # the first of equals, which is the cheapest
    return SearchResult(scores, generations, best, front)


def _budget_repair(space: Space, costs: CostTable, budget: Budget | None, rng: np.random.Generator) -> Any:
    """A pymoo repair that narrows offspring until they keep the budget."""
    from pymoo.core.repair import Repair

    class BudgetRepair(Repair):  # type: ignore[misc]
        def _do(self, problem: Any, X: Any, **kwargs: Any) -> Any:
            if budget is None:
                return X
            rows = [shrink_to_budget(space, costs, budget, tuple(int(k) for k in row), rng) for row in X]
            return np.array(rows, dtype=X.dtype)

    return BudgetRepair()
