"""Random search: the baseline."""

from typing import Any

import numpy as np
from pydantic import Field

from bcnet.config import Section
from bcnet.search.prior import sample_population, uniform_prior
from bcnet.search.problem import SearchAlgorithm, SearchProblem, SearchResult
from bcnet.space.widths import Widths


class RandomSearch(SearchAlgorithm):
    """Scores random widths within the budgets."""

    class Settings(Section):
        """Settings of ``random``."""

        batch_size: int = Field(40, gt=0)
        """Width vectors scored at once."""

    @staticmethod
    def search(problem: SearchProblem, settings: Any, rng: np.random.Generator) -> SearchResult:
        """Draw all width vectors, then score them batch by batch."""
        evaluations = problem.evaluations
        wanted = sample_population(problem, uniform_prior(problem.space), evaluations, rng, tries=20 * evaluations)
        scores: dict[Widths, float] = {}
        generations = []
        for start in range(0, len(wanted), settings.batch_size):
            scores.update(problem.score_many(wanted[start : start + settings.batch_size]))
            generations.append(len(scores))
        return SearchResult.of_scores(scores, generations, problem)
