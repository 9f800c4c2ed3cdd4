"""The prior initial population: the first generation is drawn from what training already saw (BCNet, section 3.3).

``E[g, k]`` is the mean loss of the records with width index ``k`` in group ``g``. Per-group distributions ``P`` minimise
``sum P * E`` with expected FLOPs (or params) at the budget.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from bcnet.space.cost import Budget, CostTable
from bcnet.space.widths import Space, Widths

Floats = npt.NDArray[np.float64]


def expected_losses(space: Space, records: Sequence[tuple[float, Widths]]) -> Floats:
    """``E`` as an array ``(groups, K - k_min + 1)``; a width never seen gets the worst mean of its group.

    Args:
        space: the width space.
        records: (loss, widths) of subnets trained.
    """
    choices = space.bins - space.min_bins + 1
    total, count = np.zeros((2, len(space.groups), choices))
    groups = np.arange(len(space.groups))
    for loss, widths in records:
        index = np.asarray(widths) - space.min_bins
        total[groups, index] += loss
        count[groups, index] += 1
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    overall = float(np.nanmax(mean)) if count.any() else 0.0
    worst = np.where(count.any(1), np.nanmax(np.where(count > 0, mean, -np.inf), axis=1), overall)
    return np.where(count > 0, mean, worst[:, None])


def solve_prior(space: Space, costs: CostTable, budget: Budget, losses: Floats) -> Floats:
    """The distributions ``P``, an array like ``losses`` whose rows sum to 1.

    The expected cost is exact: groups are independent, and a term with the same group on both sides uses ``E[c * c]``.
    Starts from the mixture of narrowest, uniform and widest distributions that meets the budget.
    """
    channels = costs.table[:, space.min_bins :].astype(np.float64)
    polynomial = costs.polynomials[budget.cost]
    low, high = costs.range(budget.cost)
    target = float(np.clip(budget.limit, low, high))
    shape = losses.shape

    def expected(flat: Floats) -> float:
        p = flat.reshape(shape)
        return polynomial.expectation((p * channels).sum(1), (p * channels**2).sum(1)) / target - 1

    def gradient(flat: Floats) -> Floats:
        first = (flat.reshape(shape) * channels).sum(1)
        pairs = polynomial.pairs.astype(np.float64)
        diagonal = np.diag(pairs)
        both = pairs + pairs.T - 2 * np.diag(diagonal)
        slope = (polynomial.linear + both @ first)[:, None] * channels + diagonal[:, None] * channels**2
        flat_slope: Floats = (slope / target).ravel()
        return flat_slope

    rows = np.kron(np.eye(shape[0]), np.ones(shape[1]))
    result = minimize(
        lambda flat: float(flat @ losses.ravel()),
        _start(shape, expected),
        jac=lambda flat: losses.ravel(),
        bounds=[(0.0, 1.0)] * losses.size,
        constraints=[
            {"type": "eq", "fun": expected, "jac": gradient},
            {"type": "eq", "fun": lambda flat: rows @ flat - 1, "jac": lambda flat: rows},
        ],
        method="SLSQP",
        options={"maxiter": 200},
    )
    p = np.clip(result.x.reshape(shape), 0.0, None)
    if not np.isfinite(p).all() or (p.sum(1) <= 0).any():
        p = _start(shape, expected).reshape(shape)
    solved: Floats = p / p.sum(1, keepdims=True)
    return solved


def _start(shape: tuple[int, ...], expected: Callable[[Floats], float]) -> Floats:
    """A mixture of the uniform distribution with the narrowest or the widest widths that meets the budget."""
    uniform = np.full(shape, 1 / shape[1])
    end = np.zeros(shape)
    end[:, 0 if expected(uniform.ravel()) > 0 else -1] = 1
    below, above = 0.0, 1.0
    sign = np.sign(expected(uniform.ravel()))
    for _ in range(50):
        middle = (below + above) / 2
        if np.sign(expected(((1 - middle) * uniform + middle * end).ravel())) == sign:
            below = middle
        else:
            above = middle
    start: Floats = ((1 - above) * uniform + above * end).ravel()
    return start


def sample_population(
    space: Space,
    costs: CostTable,
    budget: Budget | None,
    probabilities: Floats,
    size: int,
    rng: np.random.Generator,
    *,
    tries: int = 200,
) -> list[Widths]:
    """Draw different widths within the budget; the number of tries is bounded.

    Where the distributions are too sure to give ``size`` different widths, they are mixed with the uniform one, more
    and more. If even that finds none (a tight budget), over-budget draws are narrowed until they fit.

    Returns:
        At most ``size`` width vectors, at least one.
    """
    found: dict[Widths, None] = {}
    uniform = np.full_like(probabilities, 1 / probabilities.shape[1])
    for share in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0):
        mixed = (1 - share) * probabilities + share * uniform
        for _ in range(tries):
            if len(found) >= size:
                return list(found)
            widths = _draw(space, mixed, rng)
            if budget is None or costs.one(widths, budget.cost) <= budget.limit:
                found[widths] = None
    for _ in range(tries):
        if len(found) >= size or budget is None:
            break
        found[shrink_to_budget(space, costs, budget, _draw(space, probabilities, rng), rng)] = None
    return list(found)


def _draw(space: Space, probabilities: Floats, rng: np.random.Generator) -> Widths:
    cumulative = probabilities.cumsum(1)
    index = (rng.random((len(space.groups), 1)) * cumulative[:, -1:] >= cumulative).sum(1)
    return tuple(int(k) for k in np.minimum(index + space.min_bins, space.bins))


def shrink_to_budget(space: Space, costs: CostTable, budget: Budget, widths: Widths, rng: np.random.Generator) -> Widths:
    """Take one bin after another from random groups until the widths keep the budget (which the narrowest do)."""
    current = list(widths)
    while costs.one(current, budget.cost) > budget.limit:
        current[rng.choice([place for place, k in enumerate(current) if k > space.min_bins])] -= 1
    return tuple(current)
