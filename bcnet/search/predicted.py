"""The best width vector where a score costs nothing, as an additive model's prediction does."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bcnet.space.cost import Budget, CostTable, shrink_to_budgets
from bcnet.space.widths import Widths

Predict = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]

MOST_ENUMERATED = 20_000  # width vectors of a space that is looked at as a whole
STARTS = 8
STEPS = (-2, -1, 1, 2)


def best_predicted(costs: CostTable, budgets: Sequence[Budget], predict: Predict, seed: int = 0) -> Widths:
    """The width vector of the highest prediction within budgets: of all, or where there are too many, by local search.

    The local search begins at several widths and moves one or two groups by up to two bins at a time, to the best such neighbour within
    the budgets, until none is better.

    Args:
        costs: of the space.
        budgets: all of which hold.
        predict: values ``(N,)`` of width vectors ``(N, groups)``.
        seed: of the starts.
    """
    space = costs.space

    def best(candidates: npt.NDArray[np.int64]) -> tuple[float, Widths]:
        within = np.ones(len(candidates), dtype=bool)
        for budget in budgets:
            within &= costs.of_widths(candidates, budget.cost) <= budget.limit
        values = np.where(within, predict(candidates), -np.inf)
        place = int(values.argmax())
        return float(values[place]), tuple(int(k) for k in candidates[place])

    if space.size <= MOST_ENUMERATED:
        return best(np.array(list(space.enumerate())))[1]
    rng = np.random.default_rng(seed)
    starts = [space.full, *(space.sample(rng) for _ in range(STARTS - 1))]
    found = []
    for start in starts:
        value, at = best(np.array([shrink_to_budgets(costs, budgets, start, rng)]))
        while (step := best(_neighbours(at, space.narrowest, space.full)))[0] > value:
            value, at = step
        found.append((value, at))
    return max(found)[1]


def _neighbours(at: Widths, low: Widths, high: Widths) -> npt.NDArray[np.int64]:
    """All width vectors that differ from one in a group or two, by at most two bins each."""
    groups = len(at)
    steps = np.array([0, *STEPS])
    first, second = np.triu_indices(groups, 1) if groups > 1 else (np.array([0]), np.array([0]))
    moves = np.stack(np.meshgrid(np.arange(len(first)), steps, steps, indexing="ij"), -1).reshape(-1, 3)
    candidates = np.tile(np.array(at), (len(moves), 1))
    rows = np.arange(len(moves))
    candidates[rows, first[moves[:, 0]]] += moves[:, 1]
    if groups > 1:
        candidates[rows, second[moves[:, 0]]] += moves[:, 2]
    return candidates[((candidates >= low) & (candidates <= high)).all(1)]
