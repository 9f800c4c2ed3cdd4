"""What the networks of a grid cost: a sum over the edges and layers that they consist of.

FLOPs are multiply-adds of convolutions and linear layers for one image, parameters those of the network with BN's weight and bias.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bcnet.dense.config import SKIP
from bcnet.dense.grid import Choice, Grid, Path
from bcnet.formatting import human
from bcnet.models.net_config import BASIC, NetConfig, read_mbconv

Size = tuple[int, int]


@dataclass(frozen=True)
class GridCost:
    """One cost of everything in a grid.

    Attributes:
        name: what a budget names.
        unit: what is counted.
        const: of what all networks have: stem, first block, classifier.
        heads: (source, target) -> cost of every operation of that edge.
        stacks: (block, layer) -> cost of every operation of that layer, being skipped last.
        lasts: block -> cost of the convolution at the end if it reads this block.
    """

    name: str
    unit: str
    const: float
    heads: Mapping[tuple[int, int], Sequence[float]]
    stacks: Mapping[tuple[int, int], Sequence[float]]
    lasts: Mapping[int, float]

    def of(self, choice: Choice) -> float:
        """The cost of a network."""
        path, total = choice.path, self.const + self.lasts[choice.path[-1]]
        for step, (source, target) in enumerate(itertools.pairwise(path)):
            total += self.heads[source, target][choice.heads[step]]
            total += sum(self.stacks[target, layer][operation] for layer, operation in enumerate(choice.stacks[step]))
        return total

    @property
    def symbol(self) -> str:
        """What stands behind a number: the unit where it is a short one, such as ``ms``."""
        return self.unit if len(self.unit) <= 3 else ""


@dataclass
class GridCosts:
    """All costs of a grid by name, as `bcnet.space.cost.Budget` wants them."""

    grid: Grid
    costs: dict[str, GridCost]
    _extremes: dict[str, tuple[Choice, Choice]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names; ``flops`` and ``params`` are the first two."""
        return tuple(self.costs)

    def extremes(self, cost: str) -> tuple[Choice, Choice]:
        """The cheapest and the dearest network."""
        if cost not in self._extremes:
            self._extremes[cost] = tuple(_extreme(self.grid, self.costs[cost], sign) for sign in (1, -1))  # type: ignore[assignment]
        return self._extremes[cost]

    def range(self, cost: str) -> tuple[Any, Any]:
        """Cost of the cheapest and of the dearest network: the reachable range."""
        low, high = self.extremes(cost)
        return self.costs[cost].of(low), self.costs[cost].of(high)

    def of_model(self, cost: str) -> Any:
        """What fractions refer to: the dearest network."""
        return self.range(cost)[1]

    model_name = "the dearest network"

    def symbol(self, cost: str) -> str:
        """What stands behind a number of a cost."""
        return self.costs[cost].symbol

    def written(self, cost: str, value: float) -> str:
        """A value of a cost as people read it: ``122.9M``, ``3.5 ms``."""
        return f"{human(value)} {self.symbol(cost)}".rstrip()

    def all_of(self, choice: Choice) -> dict[str, float]:
        """Every cost of a network, by name."""
        return {name: cost.of(choice) for name, cost in self.costs.items()}


def _extreme(grid: Grid, cost: GridCost, sign: int) -> Choice:
    """The cheapest network (sign 1) or the dearest one (-1), by dynamic programming from the end."""

    def best(values: Sequence[float]) -> int:
        return min(range(len(values)), key=lambda number: sign * values[number])

    rest: dict[int, tuple[float, Path]] = {}
    for block in reversed(grid.used):
        options: list[tuple[float, Path]] = []
        for edge in grid.outgoing[block]:
            if edge.target == grid.end:
                options.append((sign * cost.lasts[block], (block,)))
                continue
            own = min(sign * value for value in cost.heads[block, edge.target])
            own += sum(min(sign * value for value in cost.stacks[edge.target, layer]) for layer in range(grid.depth(edge.target)))
            total, path = rest[edge.target]
            options.append((own + total, (block, *path)))
        rest[block] = min(options)
    path = rest[0][1]
    heads = tuple(best(cost.heads[pair]) for pair in itertools.pairwise(path))
    stacks = tuple(tuple(best(cost.stacks[block, layer]) for layer in range(grid.depth(block))) for block in path[1:])
    return Choice(path, heads, stacks)


# FLOPs and params ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """Multiply-adds and parameters."""

    flops: int = 0
    params: int = 0

    def __add__(self, other: "_Counted") -> "_Counted":
        return _Counted(self.flops + other.flops, self.params + other.params)


def _conv(inputs: int, outputs: int, kernel: int, size: Size, *, depthwise: bool = False) -> _Counted:
    """A convolution without bias and its BN; ``size`` is that of its output."""
    weights = kernel * kernel * outputs * (1 if depthwise else inputs)
    return _Counted(weights * size[0] * size[1], weights + 2 * outputs)


def _shrunk(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def count_operation(name: str, inputs: int, outputs: int, stride: int, size: Size) -> _Counted:
    """Multiply-adds and parameters of an operation; ``size`` is height and width of its input."""
    if name == SKIP:
        return _Counted()
    after = _shrunk(size, stride)
    if name == BASIC:
        both = _conv(inputs, outputs, 3, after) + _conv(outputs, outputs, 3, after)
        return both if stride == 1 and inputs == outputs else both + _conv(inputs, outputs, 1, after)
    sizes = read_mbconv(name)
    assert sizes is not None
    kernel, expansion = sizes
    hidden = inputs * expansion
    inner = _conv(hidden, hidden, kernel, after, depthwise=True) + _conv(hidden, outputs, 1, after)
    return inner if expansion == 1 else _conv(inputs, hidden, 1, size) + inner


def count_network(net: NetConfig, image: Sequence[int], num_classes: int, stem_stride: int = 2) -> dict[str, int]:
    """Multiply-adds and parameters of a network that is written as a net_config.

    Args:
        net: its blocks.
        image: ``(C, H, W)`` of one image.
        num_classes: number of logits.
        stem_stride: of the first convolution.
    """
    size = _shrunk((image[1], image[2]), stem_stride)
    total = _conv(image[0], net.stem, 3, size)
    for block in net.blocks:
        total += count_operation(block.head, block.in_channels, block.channels, block.stride, size)
        size = _shrunk(size, block.stride)
        for name in block.stack:
            total += count_operation(name, block.channels, block.channels, 1, size)
    if net.last:
        total += _conv(net.blocks[-1].channels, net.last, 1, size)
    total += _Counted(net.features * num_classes, (net.features + 1) * num_classes)
    return {"flops": total.flops, "params": total.params}


@dataclass(frozen=True)
class _Counter:
    grid: Grid
    image: Sequence[int]
    num_classes: int

    @cached_property
    def sizes(self) -> dict[int, Size]:
        return self.grid.map_sizes(self.image)

    def costs(self) -> list[GridCost]:
        config, sizes, widths = self.grid.config, self.sizes, self.grid.config.widths
        const = _conv(self.image[0], widths[0], 3, sizes[0])
        if config.first:
            const += count_operation(config.first, widths[0], widths[0], 1, sizes[0])
        const += _Counted(config.last * self.num_classes, (config.last + 1) * self.num_classes)
        heads = {
            (e.source, e.target): [
                count_operation(name, widths[e.source], widths[e.target], e.stride, sizes[e.source]) for name in self.grid.head_names
            ]
            for e in self.grid.heads
        }
        stacks = {
            (block, layer): [count_operation(name, widths[block], widths[block], 1, sizes[block]) for name in self.grid.stack_names]
            for block, layer in self.grid.layers
        }
        lasts = {e.source: _conv(widths[e.source], config.last, 1, sizes[e.source]) for e in self.grid.incoming[self.grid.end]}

        def made(name: str, unit: str) -> GridCost:
            def one(counted: _Counted) -> int:
                return counted.flops if name == "flops" else counted.params

            by_head, by_layer = ({key: [one(value) for value in row] for key, row in part.items()} for part in (heads, stacks))
            return GridCost(name, unit, one(const), by_head, by_layer, {block: one(value) for block, value in lasts.items()})

        return [made("flops", "multiply-adds of one image"), made("params", "parameters")]


def count_grid(grid: Grid, image: Sequence[int], num_classes: int, more: Sequence[GridCost] = ()) -> GridCosts:
    """FLOPs and params of everything in a grid, and other costs beside them.

    Args:
        grid: the blocks.
        image: ``(C, H, W)`` of one image.
        num_classes: number of logits.
        more: such as a latency.

    Raises:
        UserError: the images are too small for the grid.
    """
    costs = [*_Counter(grid, image, num_classes).costs(), *more]
    return GridCosts(grid, {cost.name: cost for cost in costs})
