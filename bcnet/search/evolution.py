"""Evolution: NSGA-II (pymoo) over integer widths, under budgets, without repeats."""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from bcnet.config import Section
from bcnet.errors import UserError
from bcnet.search.prior import expected_losses, sample_population, solve_prior, uniform_prior
from bcnet.search.problem import SearchAlgorithm, SearchProblem, SearchResult
from bcnet.space.cost import Budget, shrink_to_budgets
from bcnet.space.widths import Widths

MOST_IDLE_GENERATIONS = 20


class Evolution(SearchAlgorithm):
    """NSGA-II with the prior initial population of BCNet."""

    class Settings(Section):
        """Settings of ``evolution``."""

        population: int = Field(40, gt=1)
        """Individuals per generation."""
        init: Literal["prior", "random"] = "prior"
        """First generation: from the training's loss records, or random."""
        objective: Literal["score", "score_and_cost"] = "score"
        """Best score under the budgets, or a Pareto front of score against ``search.cost``."""

    @staticmethod
    def search(problem: SearchProblem, settings: Any, rng: np.random.Generator) -> SearchResult:
        """Draw the first generation, then evolve.

        Raises:
            UserError: ``init=prior`` without loss records.
        """
        probabilities = uniform_prior(problem.space)
        if settings.init == "prior":
            if not problem.records:
                raise UserError("search.init=prior needs the loss records of training, and there are none; use search.init=random")
            limits = problem.budgets or (Budget(problem.cost, problem.costs.range(problem.cost)[1]),)
            probabilities = solve_prior(problem.costs, limits, expected_losses(problem.space, problem.records))
        first = sample_population(problem, probabilities, settings.population, rng)
        return evolve(problem, first, population=settings.population, with_cost=settings.objective == "score_and_cost")


def evolve(problem: SearchProblem, first: list[Widths], *, population: int, with_cost: bool) -> SearchResult:
    """NSGA-II over integer widths.

    Args:
        problem: what to search.
        first: the first generation, within the budgets.
        population: individuals per generation.
        with_cost: make the cost a second objective: the search is for a Pareto front.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PolynomialMutation
    from pymoo.operators.repair.rounding import RoundingRepair

    space = problem.space
    low, high = (np.array(widths, dtype=float) for widths in (space.narrowest, space.full))
    integers = Problem(n_var=len(space.groups), n_obj=2 if with_cost else 1, xl=low, xu=high, vtype=int)
    algorithm: Any = NSGA2(
        pop_size=population,
        sampling=np.array(first, dtype=int),
        crossover=UniformCrossover(prob=0.9),
        mutation=PolynomialMutation(prob=0.9, prob_var=max(0.1, 1 / len(space.groups)), eta=3, vtype=float, repair=RoundingRepair()),
        repair=_budget_repair(problem),
        eliminate_duplicates=True,
    )
    algorithm.setup(integers, termination=("n_gen", 10**9), seed=problem.seed, verbose=False)
    scores: dict[Widths, float] = {}
    generations: list[int] = []
    idle = 0
    while len(scores) < min(problem.evaluations, space.size) and idle < MOST_IDLE_GENERATIONS:
        asked = algorithm.ask()
        if asked is None or len(asked) == 0:
            break
        candidates = [tuple(int(k) for k in row) for row in asked.get("X")]
        new = list(dict.fromkeys(c for c in candidates if c not in scores))[: problem.evaluations - len(scores)]
        scores.update(problem.score_many(new))
        idle = 0 if new else idle + 1
        if new:
            generations.append(len(scores))
        # the last generation may be cut short by the number of evaluations; what was left out counts as worst
        values = np.array([scores.get(c, -np.inf) for c in candidates])
        objectives = [np.where(np.isfinite(values), -values, 1e30)]
        if with_cost:
            objectives.append(problem.costs.of_widths(candidates, problem.cost).astype(float))
        asked.set("F", np.stack(objectives, axis=1))
        algorithm.tell(infills=asked)
    return SearchResult.of_scores(scores, generations, problem)


def _budget_repair(problem: SearchProblem) -> Any:
    """A pymoo repair that narrows offspring until they keep the budgets."""
    from pymoo.core.repair import Repair

    rng = np.random.default_rng(problem.seed)

    class BudgetRepair(Repair):  # type: ignore[misc]
        def _do(self, _: Any, X: Any, **kwargs: Any) -> Any:
            if not problem.budgets:
                return X
            rows = [shrink_to_budgets(problem.costs, problem.budgets, tuple(int(k) for k in row), rng) for row in X]
            return np.array(rows, dtype=X.dtype)

    return BudgetRepair()
