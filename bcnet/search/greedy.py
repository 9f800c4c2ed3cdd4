"""Greedy slimming (AutoSlim): from the widest, one bin less at a time, past every budget."""

from typing import Any

import numpy as np

from bcnet.config import Section
from bcnet.search.problem import SearchAlgorithm, SearchProblem, SearchResult
from bcnet.space.widths import Space, Widths


class GreedySlimming(SearchAlgorithm):
    """Drops the bin whose removal costs the score least, until all budgets are kept; without budgets, down to the narrowest.

    A descent of B bins in G groups scores at most ``B * G`` width vectors, whatever ``search.evaluations`` says. After "AutoSlim:
    Towards One-Shot Architecture Search for Channel Numbers" (2019), section 3.3.
    """

    passes_budgets = True

    class Settings(Section):
        """Settings of ``greedy``."""

        per_cost: bool = True
        """Weigh what a removal costs the score against what it saves of the cost; ``false``: the score alone, as published."""

    @classmethod
    def most_scored(cls, space: Space, evaluations: int) -> int:
        """Every bin that can be dropped, in every group each time."""
        return 1 + sum(group.bins - group.smallest for group in space.groups) * len(space.groups)

    @staticmethod
    def search(problem: SearchProblem, settings: Any, rng: np.random.Generator) -> SearchResult:
        """Descend; nothing in it is random."""
        at = problem.space.full
        scores = problem.score_many([at])
        generations = [1]
        while not (problem.budgets and problem.keeps_budgets(at)):
            below = narrower(problem, at)
            if not below:
                break
            found = problem.score_many(below)
            scores.update(found)
            generations.append(len(scores))
            at = max(below, key=lambda widths: _merit(problem, settings.per_cost, scores, at, widths))
        return SearchResult.of_scores(scores, generations, problem)


def narrower(problem: SearchProblem, widths: Widths) -> list[Widths]:
    """The width vectors with one bin less in one group."""
    rows = zip(problem.space.groups, range(len(widths)), strict=True)
    return [(*widths[:place], widths[place] - 1, *widths[place + 1 :]) for group, place in rows if widths[place] > group.smallest]


def _merit(problem: SearchProblem, per_cost: bool, scores: dict[Widths, float], before: Widths, after: Widths) -> tuple[float, float]:
    """How good a removal is, and what it saves, which decides between equals."""
    saved = problem.costs.one(before, problem.cost) - problem.costs.one(after, problem.cost)
    gained = scores[after] - scores[before]
    if not per_cost or gained >= 0:
        return gained, saved
    return (gained / saved if saved > 0 else -np.inf), saved
