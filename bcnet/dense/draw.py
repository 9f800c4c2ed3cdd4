"""Random networks of a grid of about the same cost, which is what a search has to beat.

Drawn edge by edge and operation by operation, hardly any network of a large grid costs what is wanted. So draws are tilted: every
network's probability is multiplied by ``exp(-t * cost)``, with ``t`` such that the mean cost is right. Among networks of one cost that
changes nothing, so what is kept is as if all had been drawn untilted and those of other costs thrown away.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bcnet.dense.costs import GridCost
from bcnet.dense.grid import Choice, Edge, Grid
from bcnet.errors import UserError
from bcnet.formatting import human

_Floats = npt.NDArray[np.float64]


def draw_networks(grid: Grid, cost: GridCost, low: float, high: float, count: int, rng: np.random.Generator) -> list[Choice]:
    """Different random networks whose cost lies between two bounds.

    Args:
        grid: the blocks.
        cost: what is bounded.
        low: least cost.
        high: largest cost.
        count: how many.
        rng: of the draws.

    Raises:
        UserError: there are not that many, or so few that they are not met.
    """
    tilted = _tilt(grid, cost, (low + high) / 2)
    found: dict[str, Choice] = {}  # skipped layers in other places are the same network
    for _ in range(1000 * count + 10_000):
        choice = tilted.draw(rng)
        if low <= cost.of(choice) <= high:
            found.setdefault(str(grid.net_config(choice)), choice)
            if len(found) == count:
                return list(found.values())
    raise UserError(f"only {len(found)} random networks with {cost.name} of {human(low)} to {human(high)} were met, {count} are wanted")


def _tilt(grid: Grid, cost: GridCost, mean: float) -> "_Tilted":
    """The tilt whose mean cost is as wanted, or the nearest."""
    spread = max(max(row) for row in cost.heads.values())
    low, high = -100.0 / spread, 100.0 / spread
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _Tilted(grid, cost, middle).mean() > mean else (low, middle)
    return _Tilted(grid, cost, (low + high) / 2)


class _Tilted:
    """Networks with probabilities that are those of a uniform draw, times ``exp(-t * cost)``."""

    def __init__(self, grid: Grid, cost: GridCost, t: float) -> None:
        self.grid, self.cost = grid, cost
        self.heads = {key: _softmax(row, t) for key, row in cost.heads.items()}
        self.stacks = {key: _softmax(row, t) for key, row in cost.stacks.items()}
        self.edges: dict[int, _Floats] = {}
        rest: dict[int, float] = {}  # logarithm of the weight of everything behind a block
        for block in reversed(grid.used):
            weights = np.array([self._behind(edge, rest, t) for edge in grid.outgoing[block]])
            top = float(weights.max())
            rest[block] = top + float(np.log(np.exp(weights - top).mean()))
            shares = np.exp(weights - top)
            self.edges[block] = shares / shares.sum()

    def _behind(self, edge: Edge, rest: dict[int, float], t: float) -> float:
        if edge.target == self.grid.end:
            return -t * self.cost.lasts[edge.source]
        own = _log_mean(self.cost.heads[edge.source, edge.target], t)
        own += sum(_log_mean(self.cost.stacks[edge.target, layer], t) for layer in range(self.grid.depth(edge.target)))
        return own + rest[edge.target]

    def mean(self) -> float:
        """Expected cost."""
        rest: dict[int, float] = {}
        for block in reversed(self.grid.used):
            values = []
            for edge in self.grid.outgoing[block]:
                if edge.target == self.grid.end:
                    values.append(self.cost.lasts[block])
                    continue
                key = edge.source, edge.target
                value = float(self.heads[key] @ np.array(self.cost.heads[key])) + rest[edge.target]
                for layer in range(self.grid.depth(edge.target)):
                    value += float(self.stacks[edge.target, layer] @ np.array(self.cost.stacks[edge.target, layer]))
                values.append(value)
            rest[block] = float(self.edges[block] @ np.array(values))
        return self.cost.const + rest[0]

    def draw(self, rng: np.random.Generator) -> Choice:
        """A network."""
        path, heads, stacks = [0], list[int](), list[tuple[int, ...]]()
        while True:
            edge = self.grid.outgoing[path[-1]][rng.choice(len(self.edges[path[-1]]), p=self.edges[path[-1]])]
            if edge.target == self.grid.end:
                return Choice(tuple(path), tuple(heads), tuple(stacks))
            own = self.heads[edge.source, edge.target]
            heads.append(int(rng.choice(len(own), p=own)))
            layers = [self.stacks[edge.target, layer] for layer in range(self.grid.depth(edge.target))]
            stacks.append(tuple(int(rng.choice(len(one), p=one)) for one in layers))
            path.append(edge.target)


def _softmax(costs: Sequence[float], t: float) -> _Floats:
    weights = np.exp(-t * (np.array(costs, dtype=np.float64) - min(costs, key=lambda cost: t * cost)))
    shares: _Floats = weights / weights.sum()
    return shares


def _log_mean(costs: Sequence[float], t: float) -> float:
    values = -t * np.array(costs, dtype=np.float64)
    top = float(values.max())
    return top + float(np.log(np.exp(values - top).mean()))
