"""The prior initial population: the first generation is drawn from what training already saw (BCNet, section 3.3).

``E[g, c]`` is the mean loss of the records with choice ``c`` in group ``g``. Per-group distributions ``P`` minimise ``sum P * E`` with
the expected cost at the budget. Arrays over choices are ``(groups, most choices)``; where a group has fewer, the rest is zero.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bcnet.search.problem import SearchProblem
from bcnet.space.cost import Budget, CostTable, shrink_to_budgets
from bcnet.space.widths import Space, Widths

Floats = npt.NDArray[np.float64]


def is_choice(space: Space) -> npt.NDArray[np.bool_]:
    """Which entries of an array over choices a group has."""
    numbers = np.array([len(group.indices) for group in space.groups])
    return np.arange(numbers.max()) < numbers[:, None]


def uniform_prior(space: Space) -> Floats:
    """The distributions of widths drawn uniformly."""
    exists = is_choice(space)
    uniform: Floats = exists / exists.sum(1, keepdims=True)
    return uniform


def expected_losses(space: Space, records: Sequence[tuple[float, Widths]]) -> Floats:
    """``E``; a width never seen gets the worst mean of its group.

    Args:
        space: the width space.
        records: (loss, widths) of subnets trained.
    """
    exists = is_choice(space)
    total, count = np.zeros((2, *exists.shape))
    groups, smallest = np.arange(len(space.groups)), np.array(space.narrowest)
    for loss, widths in records:
        index = np.asarray(widths) - smallest
        total[groups, index] += loss
        count[groups, index] += 1
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    overall = float(np.nanmax(mean)) if count.any() else 0.0
    worst = np.where(count.any(1), np.nanmax(np.where(count > 0, mean, -np.inf), axis=1), overall)
    return np.where(count > 0, mean, worst[:, None]) * exists


def solve_prior(costs: CostTable, budgets: Sequence[Budget], losses: Floats) -> Floats:
    """The distributions ``P``, an array like ``losses`` whose rows sum to 1.

    One budget is met in expectation; of several none is exceeded. The expectation is exact, for groups are independent. Starts from
    the mixture of narrowest, uniform and widest distributions that meets the budgets.
    """
    from scipy.optimize import minimize

    space, shape = costs.space, losses.shape
    expected = [_Expectation(costs, budget) for budget in budgets]
    exists = is_choice(space)
    rows = np.kron(np.eye(shape[0]), np.ones(shape[1]))
    kind, sign = ("eq", 1.0) if len(budgets) == 1 else ("ineq", -1.0)
    limits = [{"type": kind, "fun": lambda p, e=e: sign * e.excess(p), "jac": lambda p, e=e: sign * e.gradient(p)} for e in expected]
    start = _start(space, lambda p: max(e.excess(p) for e in expected))
    result = minimize(
        lambda flat: float(flat @ losses.ravel()),
        start,
        jac=lambda flat: losses.ravel(),
        bounds=[(0.0, 1.0 if own else 0.0) for own in exists.ravel()],
        constraints=[*limits, {"type": "eq", "fun": lambda flat: rows @ flat - 1, "jac": lambda flat: rows}],
        method="SLSQP",
        options={"maxiter": 200},
    )
    p = np.clip(result.x.reshape(shape), 0.0, None)
    if not np.isfinite(p).all() or (p.sum(1) <= 0).any():
        p = start.reshape(shape)
    solved: Floats = p / p.sum(1, keepdims=True)
    return solved


class _Expectation:
    """The expected cost of distributions, relative to a budget."""

    def __init__(self, costs: CostTable, budget: Budget) -> None:
        self.space, self.cost = costs.space, costs.costs[budget.cost]
        self.target = float(np.clip(budget.limit, *costs.range(budget.cost)))

    def _by_index(self, flat: Floats) -> list[Floats]:
        """For every group the probabilities of its indices ``0..K``."""
        rows = flat.reshape(len(self.space.groups), -1)
        return [np.concatenate([np.zeros(g.smallest), row[: len(g.indices)]]) for g, row in zip(self.space.groups, rows, strict=True)]

    def excess(self, flat: Floats) -> float:
        """0 at the budget, above 0 beyond it."""
        return self.cost.expectation(self._by_index(flat)) / self.target - 1

    def gradient(self, flat: Floats) -> Floats:
        """Derivative of `excess`."""
        slopes = np.zeros((len(self.space.groups), flat.size // len(self.space.groups)))
        for row, own, group in zip(slopes, self.cost.slopes(self._by_index(flat)), self.space.groups, strict=True):
            row[: len(group.indices)] = own[group.smallest :]
        gradient: Floats = (slopes / self.target).ravel()
        return gradient


def _start(space: Space, excess: Callable[[Floats], float]) -> Floats:
    """A mixture of the uniform distribution with the narrowest or the widest widths that meets the budgets."""
    uniform = uniform_prior(space)
    end = np.zeros_like(uniform)
    for row, group in zip(end, space.groups, strict=True):
        row[0 if excess(uniform.ravel()) > 0 else len(group.indices) - 1] = 1
    below, above = 0.0, 1.0
    sign = np.sign(excess(uniform.ravel()))
    for _ in range(50):
        middle = (below + above) / 2
        if np.sign(excess(((1 - middle) * uniform + middle * end).ravel())) == sign:
            below = middle
        else:
            above = middle
    start: Floats = ((1 - above) * uniform + above * end).ravel()
    return start


def sample_population(
    problem: SearchProblem, probabilities: Floats, size: int, rng: np.random.Generator, *, tries: int = 200
) -> list[Widths]:
    """Draw different widths within the budgets; the number of tries is bounded.

    Where the distributions are too sure to give ``size`` different widths, they are mixed with the uniform one, more
    and more. If even that finds none (a tight budget), over-budget draws are narrowed until they fit.

    Returns:
        At most ``size`` width vectors, at least one.
    """
    space = problem.space
    drawn: dict[Widths, None] = {}
    uniform = uniform_prior(space)
    for share in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0):
        mixed = (1 - share) * probabilities + share * uniform
        for _ in range(tries):
            if len(drawn) >= size:
                return list(drawn)
            widths = _draw(space, mixed, rng)
            if problem.keeps_budgets(widths):
                drawn[widths] = None
    for _ in range(tries):
        if len(drawn) >= size or not problem.budgets:
            break
        drawn[shrink_to_budgets(problem.costs, problem.budgets, _draw(space, probabilities, rng), rng)] = None
    return list(drawn)


def _draw(space: Space, probabilities: Floats, rng: np.random.Generator) -> Widths:
    cumulative = probabilities.cumsum(1)
    index = (rng.random((len(space.groups), 1)) * cumulative[:, -1:] >= cumulative).sum(1)
    return tuple(int(k) for k in np.minimum(index + np.array(space.narrowest), np.array(space.full)))
