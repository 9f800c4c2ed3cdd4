"""The super network: every operation of every edge and layer of a grid, of which a pass computes some (Fang et al., section 3.2).

A block's input is the sum over its incoming edges of one operation each, times the edge's probability; stacked layers follow. BN has no
weight and bias here, so that all operations give outputs of the same scale.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bcnet.dense.config import SKIP
from bcnet.dense.grid import Choice, Grid
from bcnet.dense.superkernel import SlicedConv2d, share_kernels
from bcnet.models.densenas import ChainNetwork, conv_bn, init_weights, make_operation


@dataclass(frozen=True)
class Active:
    """What a pass through the whole grid computes.

    Attributes:
        edges: probabilities of edges, as `Architecture.edges` gives them.
        heads: numbers of the operations of every edge ``(edges, 1 or 2)``.
        stacks: the same of every layer.
        head_shares: what every one of these counts for; ``None``: the only one counts fully.
        stack_shares: the same of the layers.
    """

    edges: Tensor
    heads: Tensor
    stacks: Tensor
    head_shares: Tensor | None = None
    stack_shares: Tensor | None = None


class SuperNetwork(nn.Module):
    """All networks of a grid, with shared weights.

    Args:
        grid: its blocks and edges.
        num_classes: number of logits.
        in_channels: of an image.
        superkernel: whether the operations of a mixed one share their weights; see `bcnet.dense.superkernel`.

    Attributes:
        active: what a pass computes: a part of every mixed operation, or a `Choice`, one network alone.
    """

    def __init__(self, grid: Grid, num_classes: int, in_channels: int = 3, *, superkernel: bool = False) -> None:
        super().__init__()
        self.grid, self.num_classes, self.in_channels = grid, num_classes, in_channels
        config, widths = grid.config, grid.config.widths
        self.stem = conv_bn(in_channels, widths[0], 3, stride=config.stem_stride, affine=False)
        self.first: nn.Module = make_operation(config.first, widths[0], widths[0], 1, affine=False) if config.first else nn.Identity()
        self.heads = nn.ModuleList(_mixed(grid.head_names, widths[edge.source], widths[edge.target], edge.stride) for edge in grid.heads)
        self.stacks = nn.ModuleList(_mixed(grid.stack_names, widths[block], widths[block], 1) for block, _ in grid.layers)
        self.shared = nn.ModuleList(share_kernels(mixed) for mixed in (*self.heads, *self.stacks) if superkernel)  # type: ignore[arg-type]
        self.lasts = nn.ModuleDict(
            {str(edge.source): conv_bn(widths[edge.source], config.last, 1, affine=False) for edge in grid.incoming[grid.end]}
        )
        self.classifier = nn.Linear(config.last, num_classes)
        init_weights(self)
        self.head_number = {(edge.source, edge.target): number for number, edge in enumerate(grid.heads)}
        self.layer_number = {layer: number for number, layer in enumerate(grid.layers)}
        self.edge_place = {
            (edge.source, edge.target): (row, column)
            for row, block in enumerate(grid.used)
            for column, edge in enumerate(grid.outgoing[block])
        }
        self.active: Active | Choice | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        assert self.active is not None
        x = self.first(self.stem(images))
        features = self._one(x, self.active) if isinstance(self.active, Choice) else self._all(x, self.active)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits

    def _all(self, x: Tensor, active: Active) -> Tensor:
        grid, at = self.grid, {0: x}
        heads, stacks = active.heads.tolist(), active.stacks.tolist()
        for block in grid.used[1:]:
            parts = []
            for edge in grid.incoming[block]:
                number = self.head_number[edge.source, block]
                shares = None if active.head_shares is None else active.head_shares[number]
                mixed = _mix(self.heads[number], heads[number], shares, at[edge.source])
                parts.append(active.edges[self.edge_place[edge.source, block]] * mixed)
            total = sum(parts[1:], parts[0])
            for layer in range(grid.depth(block)):
                number = self.layer_number[block, layer]
                shares = None if active.stack_shares is None else active.stack_shares[number]
                total = _mix(self.stacks[number], stacks[number], shares, total)
            at[block] = total
        ends = [
            active.edges[self.edge_place[edge.source, grid.end]] * self.lasts[str(edge.source)](at[edge.source])
            for edge in grid.incoming[grid.end]
        ]
        features: Tensor = sum(ends[1:], ends[0])
        return features

    def _one(self, x: Tensor, choice: Choice) -> Tensor:
        for operation in self.operations(choice):
            x = operation(x)
        return x

    def operations(self, choice: Choice) -> Iterator[nn.Module]:
        """The modules behind the first block that a network consists of, in order; skipped layers are left out."""
        for step, pair in enumerate(zip(choice.path[:-1], choice.path[1:], strict=True)):
            yield self.heads[self.head_number[pair]][choice.heads[step]]  # type: ignore[index]
            yield from self._stacked(pair[1], choice.stacks[step])
        yield self.lasts[str(choice.path[-1])]

    def _stacked(self, block: int, operations: Sequence[int]) -> Iterator[nn.Module]:
        for layer, number in enumerate(operations):
            if self.grid.stack_names[number] != SKIP:
                yield self.stacks[self.layer_number[block, layer]][number]  # type: ignore[index]

    def extract(self, choice: Choice) -> ChainNetwork:
        """A network of the grid on its own, with the weights that it has here; BN gets the weight 1 and the bias 0."""
        net = self.grid.net_config(choice)
        network = ChainNetwork(self.num_classes, net_config=net, in_channels=self.in_channels, stem_stride=self.grid.config.stem_stride)
        blocks = [part for block in network.blocks for part in block.operations()]  # type: ignore[operator]
        own = [*([self.first] if self.grid.config.first else []), *self.operations(choice)]
        sources = [self.stem, *own, self.classifier]
        for source, target in zip(sources, [network.stem, *blocks, network.last, network.classifier], strict=True):
            _copy(source, target)
        return network


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Give an operation the weights and statistics of one of the super network, whose BN has no weight and no bias."""
    state = source.state_dict()
    state |= {f"{name}.weight": module.weight for name, module in source.named_modules() if isinstance(module, SlicedConv2d)}
    missing, unexpected = target.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(isinstance(target.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d) for name in missing)


def _mixed(names: Sequence[str], inputs: int, outputs: int, stride: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Identity() if name == SKIP else make_operation(name, inputs, outputs, stride, affine=False) for name in names)


def _mix(operations: Any, numbers: Sequence[int], shares: Tensor | None, x: Tensor) -> Tensor:
    outputs = [operations[number](x) for number in numbers]
    if shares is None:
        return outputs[0]  # type: ignore[no-any-return]
    weighted = [share * output for share, output in zip(shares, outputs, strict=True)]
    total: Tensor = sum(weighted[1:], weighted[0])
    return total
