"""What is searched, and what a search gives back.

A search is a pure function of its problem and its random numbers, so a killed search is resumed by running it again: scores that
are already in the cache cost nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bcnet.config import Section
from bcnet.space.cost import Budget, CostTable, keeps
from bcnet.space.widths import Space, Widths

ScoreMany = Callable[[Sequence[Widths]], dict[Widths, float]]


@dataclass(frozen=True)
class SearchProblem:
    """Find the width vector of the highest score within budgets.

    Attributes:
        space: the width space.
        costs: its costs.
        budgets: no result is above any of them (law 7).
        score_many: scores of several width vectors at once; asking for some again costs nothing.
        evaluations: how many different width vectors may be scored.
        seed: of the search, for libraries that want a number; the generator that a search is given comes from it.
        records: (loss, widths) of subnets trained, best first; what a prior can be made from.
        weighed: the cost that scores are weighed against; empty: that of the first budget, or FLOPs.
    """

    space: Space
    costs: CostTable
    score_many: ScoreMany
    evaluations: int
    budgets: tuple[Budget, ...] = ()
    seed: int = 0
    records: Sequence[tuple[float, Widths]] = ()
    weighed: str = ""

    @property
    def cost(self) -> str:
        """The cost that scores are weighed against, as a front does."""
        return self.weighed or (self.budgets[0].cost if self.budgets else "flops")

    def keeps_budgets(self, widths: Sequence[int]) -> bool:
        """Whether a width vector keeps all budgets."""
        return keeps(self.costs, self.budgets, widths)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        scores: every evaluated width vector with its score, in order of evaluation.
        generations: number of evaluated width vectors after each generation.
        best: the one of highest score within all budgets (of equal scores the cheaper).
        front: the evaluated width vectors that no other beats in both score and cost, cheapest first.
        passed: the best within each budget alone, in the order of the budgets.
        cost: what the front weighs scores against.
    """

    scores: dict[Widths, float]
    generations: list[int]
    best: Widths
    front: list[Widths]
    passed: list[Widths]
    cost: str

    @classmethod
    def of_scores(cls, scores: dict[Widths, float], generations: list[int], problem: SearchProblem) -> "SearchResult":
        """Best and Pareto front of scored width vectors, of which at least one keeps all budgets."""
        spent = dict(zip(scores, problem.costs.of_widths(list(scores), problem.cost).tolist(), strict=True))
        ranked = sorted(scores, key=lambda widths: (spent[widths], -scores[widths], widths))
        front: list[Widths] = []
        for widths in ranked:
            if not front or scores[widths] > scores[front[-1]]:
                front.append(widths)

        def best(budgets: Sequence[Budget]) -> Widths:  # the first of equals, which is the cheapest
            return max((widths for widths in ranked if keeps(problem.costs, budgets, widths)), key=lambda widths: scores[widths])

        return cls(scores, generations, best(problem.budgets), front, [best([budget]) for budget in problem.budgets], problem.cost)


class SearchAlgorithm(ABC):
    """A way to search.

    An algorithm of your own derives from this class; ``search.algorithm=package.module:Class`` uses it, and the fields of its
    ``Settings`` stand under ``search.algorithm`` in the config.

    Attributes:
        Settings: the schema of its settings.
        passes_budgets: it passes one budget after the other, so that several of one cost may be given.
    """

    passes_budgets: ClassVar[bool] = False

    class Settings(Section):
        """An algorithm without settings."""

    @classmethod
    def most_scored(cls, space: Space, evaluations: int) -> int:
        """How many width vectors a search scores at most."""
        return min(evaluations, space.size)

    @staticmethod
    @abstractmethod
    def search(problem: SearchProblem, settings: Any, rng: np.random.Generator) -> SearchResult:
        """Search.

        Args:
            problem: what to search.
            settings: an instance of ``Settings``.
            rng: all that may be random; the same generator gives the same search.
        """
