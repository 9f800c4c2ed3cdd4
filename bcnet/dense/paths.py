"""The best networks of a grid by their probability: the most probable paths, and the best choice that a budget allows.

A network's score is the sum of the logarithms of its edges' probabilities, and for every operation of the logarithm of its probability
over that of the most probable one there. So without a budget the best network is what the paper derives (section 3.3): Viterbi on the
product of the betas, and the best operations on that path.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bcnet.dense.architecture import Architecture
from bcnet.dense.costs import GridCost
from bcnet.dense.grid import Choice, Grid, Path

MOST_LABELS = 3000  # partial networks kept at a block; beyond that, of those that cost about the same only the best

_REWARDS = 12  # that are tried

_Label = tuple[float, float, tuple[int, ...]]  # cost, score, what was chosen


@dataclass(frozen=True)
class Scores:
    """Logarithms of probabilities, as plain numbers.

    Attributes:
        edges: (source, target) -> of the edge.
        heads: (source, target) -> of every operation, relative to the best.
        stacks: (block, layer) -> the same.
    """

    edges: Mapping[tuple[int, int], float]
    heads: Mapping[tuple[int, int], Sequence[float]]
    stacks: Mapping[tuple[int, int], Sequence[float]]

    @classmethod
    def of(cls, architecture: Architecture) -> "Scores":
        """Those of learned parameters."""
        grid = architecture.grid
        edges = architecture.edges().detach().double().log().tolist()
        heads, stacks = (part.detach().double().log() for part in (architecture.heads(), architecture.stacks()))
        heads, stacks = (part - part.amax(1, keepdim=True) if part.numel() else part for part in (heads, stacks))
        return cls(
            {(e.source, e.target): edges[row][column] for e in grid.edges for row, column in [architecture.edge_place[e.source, e.target]]},
            {(e.source, e.target): row for e, row in zip(grid.heads, heads.tolist(), strict=True)},
            dict(zip(grid.layers, stacks.tolist(), strict=True)),
        )

    def tilted(self, grid: Grid, cost: GridCost, by: float) -> "Scores":
        """Scores that a network of the cost ``c`` has ``by * c`` more of."""

        def added(scores: Mapping[tuple[int, int], Sequence[float]], costs: Mapping[tuple[int, int], Sequence[float]]) -> Any:
            return {key: [score + by * price for score, price in zip(row, costs[key], strict=True)] for key, row in scores.items()}

        ends = {pair: score + (by * cost.lasts[pair[0]] if pair[1] == grid.end else 0.0) for pair, score in self.edges.items()}
        return Scores(ends, added(self.heads, cost.heads), added(self.stacks, cost.stacks))

    def of_path(self, grid: Grid, path: Path) -> float:
        """Logarithm of the product of the probabilities of a path's edges."""
        return sum(self.edges[pair] for pair in zip(path, (*path[1:], grid.end), strict=True))

    def of_choice(self, grid: Grid, choice: Choice) -> float:
        """A network's score; 0 is the largest that operations can leave it."""
        score = self.of_path(grid, choice.path)
        for step, pair in enumerate(zip(choice.path[:-1], choice.path[1:], strict=True)):
            score += self.heads[pair][choice.heads[step]]
            score += sum(self.stacks[pair[1], layer][operation] for layer, operation in enumerate(choice.stacks[step]))
        return score


def best_paths(grid: Grid, scores: Scores, count: int) -> list[Path]:
    """The ``count`` most probable paths, best first; exact, by dynamic programming from the end (Viterbi, with several survivors)."""
    rest: dict[int, list[tuple[float, Path]]] = {}
    for block in reversed(grid.used):
        options: list[tuple[float, Path]] = []
        for edge in grid.outgoing[block]:
            own = scores.edges[block, edge.target]
            if edge.target == grid.end:
                options.append((own, (block,)))
            else:
                options += [(own + score, (block, *path)) for score, path in rest[edge.target]]
        rest[block] = sorted(options, key=lambda option: (-option[0], option[1]))[:count]
    return [path for _, path in rest[0]]


def best_operations(grid: Grid, scores: Scores, path: Path) -> Choice:
    """The most probable operations on a path."""

    def best(values: Sequence[float]) -> int:
        return max(range(len(values)), key=lambda number: (values[number], -number))

    heads = tuple(best(scores.heads[pair]) for pair in itertools.pairwise(path))
    stacks = tuple(tuple(best(scores.stacks[block, layer]) for layer in range(grid.depth(block))) for block in path[1:])
    return Choice(path, heads, stacks)


def most_probable(grid: Grid, scores: Scores) -> Choice:
    """The network that is derived where there is no budget."""
    (path,) = best_paths(grid, scores, 1)
    return best_operations(grid, scores, path)


def best_within(grid: Grid, scores: Scores, cost: GridCost, limit: float, path: Path | None = None) -> Choice | None:
    """The network of the highest score among those that cost no more than a limit.

    Args:
        grid: the blocks.
        scores: of everything in it.
        cost: what is limited.
        limit: in the cost's unit.
        path: only networks of this path; unset: of any.

    Returns:
        The network; ``None`` if all cost more. Partial networks that another one beats in both cost and score are left out on the way,
        which loses nothing; where more than `MOST_LABELS` remain, some of nearly equal cost are left out too. The cheapest never is, so
        what can be met is met.
    """
    allowed = None if path is None else set(zip(path, (*path[1:], grid.end), strict=True))
    rest: dict[int, list[_Label]] = {}
    for block in reversed(grid.used):
        labels: list[_Label] = []
        for edge in grid.outgoing[block]:
            pair = (block, edge.target)
            if allowed is not None and pair not in allowed:
                continue
            if edge.target == grid.end:
                labels.append((cost.lasts[block], scores.edges[pair], ()))
            elif edge.target in rest:
                inner = _join(_options(cost.heads[pair], scores.heads[pair], scores.edges[pair]), rest[edge.target], limit)
                labels += [(price, score, (edge.target, *chosen)) for price, score, chosen in inner]
        if block:  # what comes before the heads of the edges that leave it: its own layers
            for layer in reversed(range(grid.depth(block))):
                labels = _join(_options(cost.stacks[block, layer], scores.stacks[block, layer]), _front(labels), limit)
        if labels:
            rest[block] = _front(labels)
    within = [label for label in rest.get(0, []) if cost.const + label[0] <= limit]
    found = [_read(grid, label[2]) for label in sorted(within, key=lambda label: -label[1])]
    return next((choice for choice in found if cost.of(choice) <= limit), None)  # sums in another order may differ in the last digit


def best_that_fills(grid: Grid, scores: Scores, cost: GridCost, limit: float, share: float, path: Path | None = None) -> Choice | None:
    """A network of a high score that costs at least a share of the limit, and no more than it.

    Costs are rewarded, by as little as is enough: the network is the best one at that reward, so none that costs as much scores higher.

    Args:
        grid: the blocks.
        scores: of everything in it.
        cost: what is limited.
        limit: in the cost's unit.
        share: of the limit.
        path: only networks of this path; unset: of any.

    Returns:
        The network; ``None`` if none was met.
    """
    found, low, high = None, 0.0, 1.0 / limit
    for _ in range(_REWARDS):
        by = high if found is None else (low + high) / 2
        choice = best_within(grid, scores.tilted(grid, cost, by), cost, limit, path)
        if choice is None:
            return None
        if cost.of(choice) >= share * limit:
            found, high = choice, by
        elif found is None:
            low, high = high, 4 * high
        else:
            low = by
    return found


def _options(costs: Sequence[float], scores: Sequence[float], more: float = 0.0) -> list[_Label]:
    return _front([(price, score + more, (number,)) for number, (price, score) in enumerate(zip(costs, scores, strict=True))])


def _join(first: Sequence[_Label], rest: Sequence[_Label], limit: float) -> list[_Label]:
    return _front([(a + c, b + d, (*x, *y)) for a, b, x in first for c, d, y in rest if a + c <= limit])


def _front(labels: Sequence[_Label]) -> list[_Label]:
    """Those that no other beats in both cost and score, cheapest first; thinned where they are many."""
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda label: (label[0], -label[1], label[2])):
        if not kept or label[1] > kept[-1][1]:
            kept.append(label)
    if len(kept) <= MOST_LABELS:
        return kept
    low, high = kept[0][0], kept[-1][0]
    bins: dict[int, _Label] = {}
    for label in kept[1:]:  # the last of a bin has its best score
        bins[int((label[0] - low) / (high - low) * MOST_LABELS)] = label
    return [kept[0], *bins.values()]


def _read(grid: Grid, chosen: Sequence[int]) -> Choice:
    """A choice from the numbers along it: target, operation of the head, operations of the layers, target, and so on."""
    path, heads, stacks, place = [0], [], [], 0
    while place < len(chosen):
        block, head = chosen[place : place + 2]
        depth = grid.depth(block)
        path.append(block)
        heads.append(head)
        stacks.append(tuple(chosen[place + 2 : place + 2 + depth]))
        place += 2 + depth
    return Choice(tuple(path), tuple(heads), tuple(stacks))
