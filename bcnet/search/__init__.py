"""Search for width vectors: every algorithm is a file with one class that takes a problem and gives a result."""

from bcnet.search.evolution import Evolution
from bcnet.search.greedy import GreedySlimming
from bcnet.search.problem import SearchAlgorithm, SearchProblem, SearchResult
from bcnet.search.random import RandomSearch

SEARCH_ALGORITHMS: dict[str, type[SearchAlgorithm]] = {"evolution": Evolution, "greedy": GreedySlimming, "random": RandomSearch}

__all__ = ["SEARCH_ALGORITHMS", "SearchAlgorithm", "SearchProblem", "SearchResult"]
