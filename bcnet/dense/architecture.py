"""What is learned about a grid: probabilities of edges and operations, and the expected cost of a network under them.

Fang et al., section 3.3: every block has a parameter beta per outgoing edge, every edge and every stacked layer a parameter alpha per
operation; their softmax is the probability with which a random network takes them.
"""

import torch
from torch import Tensor, nn

from bcnet.dense.costs import GridCost
from bcnet.dense.grid import Grid


class Architecture(nn.Module):
    """Parameters of edges and operations, all equal at first.

    Args:
        grid: the blocks and edges.
        dtype: of the parameters.

    Attributes:
        beta: one per edge ``(blocks, most outgoing edges)``, in the order of `Grid.outgoing`; what is not an edge stays unused.
        head: one per edge and operation ``(edges but those to the end, operations)``, in the order of `Grid.heads`.
        stack: one per layer and operation ``(layers, operations and skip)``, in the order of `Grid.layers`.
    """

    is_edge: Tensor

    def __init__(self, grid: Grid, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.grid = grid
        most = max(len(edges) for edges in grid.outgoing.values())
        is_edge = torch.zeros(len(grid.used), most, dtype=torch.bool)
        self.edge_place: dict[tuple[int, int], tuple[int, int]] = {}
        for row, block in enumerate(grid.used):
            for column, edge in enumerate(grid.outgoing[block]):
                is_edge[row, column] = True
                self.edge_place[edge.source, edge.target] = row, column
        self.register_buffer("is_edge", is_edge, persistent=False)
        self.beta = nn.Parameter(torch.zeros(is_edge.shape, dtype=dtype))
        self.head = nn.Parameter(torch.zeros(len(grid.heads), len(grid.head_names), dtype=dtype))
        self.stack = nn.Parameter(torch.zeros(len(grid.layers), len(grid.stack_names), dtype=dtype))
        self.temperature = 1.0

    def edges(self) -> Tensor:
        """Probability of every edge among those that leave its block; 0 where there is none."""
        return (self.beta / self.temperature).masked_fill(~self.is_edge, -torch.inf).softmax(1)

    def heads(self) -> Tensor:
        """Probability of every operation of an edge."""
        return (self.head / self.temperature).softmax(1)

    def stacks(self) -> Tensor:
        """Probability of every operation of a layer."""
        return (self.stack / self.temperature).softmax(1)

    def visits(self) -> dict[int, float]:
        """Probability with which a random path goes through a block."""
        edges = self.edges().detach().tolist()
        reach = dict.fromkeys(self.grid.used, 0.0) | {0: 1.0}
        for block in self.grid.used:
            for edge in self.grid.outgoing[block]:
                if edge.target != self.grid.end:
                    row, column = self.edge_place[block, edge.target]
                    reach[edge.target] += reach[block] * edges[row][column]
        return reach

    def operation_shares(self) -> dict[str, float]:
        """How much of the layers of a random network each operation makes, skipped layers counted as ``skip``."""
        grid, visits = self.grid, self.visits()
        edges, heads, stacks = (part.detach().double() for part in (self.edges(), self.heads(), self.stacks()))
        total = dict.fromkeys([*grid.head_names, *grid.stack_names], 0.0)
        for number, edge in enumerate(grid.heads):
            weight = visits[edge.source] * float(edges[self.edge_place[edge.source, edge.target]])
            for name, probability in zip(grid.head_names, heads[number].tolist(), strict=True):
                total[name] += weight * probability
        for number, (block, _) in enumerate(grid.layers):
            for name, probability in zip(grid.stack_names, stacks[number].tolist(), strict=True):
                total[name] += visits[block] * probability
        whole = sum(total.values())
        return {name: value / whole for name, value in total.items()}


class ExpectedCost:
    """The expected cost of a random network, exactly, and with gradients: section 3.3's chained estimation.

    From the end, ``cost_i = sum_j edge_ij (head_ij + stack_j + cost_j)``, where ``head_ij`` and ``stack_j`` are expectations over
    operations. Choices are independent and costs are sums, so this is the expectation over all networks.

    Args:
        architecture: its probabilities.
        cost: of everything in the grid.
    """

    def __init__(self, architecture: Architecture, cost: GridCost) -> None:
        self.architecture, grid = architecture, architecture.grid
        like = architecture.head
        self.const = cost.const

        def tensor(rows: list[list[float]], columns: int) -> Tensor:
            return torch.tensor(rows, dtype=torch.float64).to(like).reshape(len(rows), columns)

        self.heads = tensor([list(cost.heads[e.source, e.target]) for e in grid.heads], len(grid.head_names))
        self.stacks = tensor([list(cost.stacks[key]) for key in grid.layers], len(grid.stack_names))
        self.lasts = {block: like.new_tensor(value) for block, value in cost.lasts.items()}
        self.head_number = {(edge.source, edge.target): number for number, edge in enumerate(grid.heads)}
        layers: dict[int, list[int]] = {block: [] for block in grid.used}
        for number, (block, _) in enumerate(grid.layers):
            layers[block].append(number)
        self.layers = layers

    def __call__(self) -> Tensor:
        """The expectation, a scalar in the cost's unit."""
        architecture, grid = self.architecture, self.architecture.grid
        edges = architecture.edges()
        heads = (architecture.heads() * self.heads).sum(1)
        layers = (architecture.stacks() * self.stacks).sum(1)
        stack = {block: layers[numbers].sum() for block, numbers in self.layers.items()}
        rest: dict[int, Tensor] = {}
        for row, block in reversed(list(enumerate(grid.used))):
            terms = [
                self.lasts[block]
                if edge.target == grid.end
                else heads[self.head_number[block, edge.target]] + stack[edge.target] + rest[edge.target]
                for edge in grid.outgoing[block]
            ]
            rest[block] = (edges[row, : len(terms)] * torch.stack(terms)).sum()
        return rest[0] + self.const
