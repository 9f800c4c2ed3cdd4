"""The densely connected space: blocks of growing width, edges between those that are near, and the paths through them.

Fang et al., section 3.1: block i is connected to block j among the next ones where their stages differ by at most 1 and the ratio of
their feature maps is 1 or 2, which is the stride. A network is a path from the first block to the convolution at the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bcnet.dense.config import SKIP, GridConfig
from bcnet.errors import UserError
from bcnet.formatting import plural
from bcnet.models.net_config import BlockSpec, NetConfig


@dataclass(frozen=True)
class Edge:
    """A connection between two blocks.

    Attributes:
        source: number of the block that it leaves.
        target: number of the block that it reaches; the number of blocks stands for the convolution at the end.
        stride: 1 or 2.
    """

    source: int
    target: int
    stride: int


Path = tuple[int, ...]
"""Numbers of the blocks that a network consists of; the first is 0."""


@dataclass(frozen=True)
class Choice:
    """A network of a grid: a path, and the operations on it.

    Attributes:
        path: its blocks.
        heads: for every step of the path, the number of the operation that makes it.
        stacks: for every block of the path but the first, the numbers of the operations of all its layers, skipped ones included.
    """

    path: Path
    heads: tuple[int, ...]
    stacks: tuple[tuple[int, ...], ...]


class Grid:
    """The blocks and edges of a config.

    Args:
        config: its settings.

    Raises:
        UserError: no path leads from the first block to the end.

    Attributes:
        end: the node behind the last block.
        edges: those that lie on a path, in ascending order of target and, for each, nearest source first.
    """

    def __init__(self, config: GridConfig) -> None:
        self.config = config
        self.end = len(config.widths)
        self.stages = [*config.stages, config.stages[-1] + 1][: self.end + 1]
        everything = [
            Edge(source, target, stride)
            for target in range(1, self.end + 1)
            for source in range(target - 1, max(-1, target - 1 - config.adjoin), -1)
            if (stride := self._stride(source, target))
        ]
        reached, ends = {0}, {self.end}
        for edge in everything:  # ascending targets: a source is settled before it is asked for
            if edge.source in reached:
                reached.add(edge.target)
        for edge in sorted(everything, key=lambda edge: -edge.source):
            if edge.target in ends:
                ends.add(edge.source)
        self.used = sorted(reached & ends - {self.end})
        self.edges = tuple(e for e in everything if e.source in self.used and (e.target in self.used or e.target == self.end))
        if 0 not in ends:
            furthest = max(reached)
            raise UserError(
                f"grid: no path from the first block to the end: behind block {furthest + 1} (width {config.widths[furthest]}, map "
                f"{config.maps[furthest]}, stage {config.stages[furthest]}) none of the next {config.adjoin} is at most one stage and "
                "one stride of 2 away"
            )
        self.heads = tuple(edge for edge in self.edges if edge.target != self.end)
        self.outgoing = {i: tuple(e for e in self.edges if e.source == i) for i in self.used}
        self.incoming = {j: tuple(e for e in self.edges if e.target == j) for j in (*self.used, self.end)}

    def _stride(self, source: int, target: int) -> int:
        """Stride of the edge between two blocks; 0 where there is none."""
        if abs(self.stages[target] - self.stages[source]) > 1:
            return 0
        before = self.config.maps[source]
        if target == self.end:
            return int(before == self.config.maps[-1])
        after = self.config.maps[target]
        return 1 if before == after else 2 if before == 2 * after else 0

    @property
    def head_names(self) -> tuple[str, ...]:
        """Operations of an edge."""
        return tuple(self.config.head)

    @property
    def stack_names(self) -> tuple[str, ...]:
        """Operations of a stacked layer, being skipped last."""
        return (*self.config.stack, SKIP)

    def depth(self, block: int) -> int:
        """Stacked layers of a block at most."""
        return self.config.depths[block]

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Every stacked layer as (block, number)."""
        return tuple((block, layer) for block in self.used if block for layer in range(self.depth(block)))

    def map_sizes(self, image: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Height and width of every block's feature map.

        Args:
            image: ``(C, H, W)`` or ``(H, W)``.

        Raises:
            UserError: images so small that a stride would shrink nothing.
        """
        sizes = {0: tuple(-(-side // self.config.stem_stride) for side in image[-2:])}
        for edge in self.heads:
            before = sizes[edge.source]
            if edge.stride == 2 and min(before) < 2:
                raise UserError(
                    f"grid: block {edge.target + 1} would halve a feature map of {before[0]}x{before[1]} for images of "
                    f"{image[-2]}x{image[-1]}; give fewer different maps, or a smaller stem_stride"
                )
            sizes[edge.target] = tuple(-(-side // edge.stride) for side in before)
        return sizes  # type: ignore[return-value]

    # Paths -----------------------------------------------------------------------------------------------------------

    def num_paths(self) -> int:
        """How many paths there are, counted without listing them."""
        count = {self.end: 1}
        for block in reversed(self.used):
            count[block] = sum(count[edge.target] for edge in self.outgoing[block])
        return count[0]

    def num_networks(self) -> int:
        """How many different choices of path and operations there are."""
        stacked = len(self.stack_names)
        count = {self.end: 1}
        for block in reversed(self.used):
            own = 0
            for edge in self.outgoing[block]:
                inside = 1 if edge.target == self.end else len(self.head_names) * stacked ** self.depth(edge.target)
                own += inside * count[edge.target]
            count[block] = own
        return count[0]

    def paths(self, start: int = 0) -> Iterator[Path]:
        """All paths; there may be very many."""
        for edge in self.outgoing[start]:
            if edge.target == self.end:
                yield (start,)
            else:
                yield from ((start, *rest) for rest in self.paths(edge.target))

    def steps(self, path: Path) -> list[Edge]:
        """The edges of a path, the one to the end included."""
        known = {(edge.source, edge.target): edge for edge in self.edges}
        return [known[pair] for pair in zip(path, (*path[1:], self.end), strict=True)]

    def net_config(self, choice: Choice) -> NetConfig:
        """The text form's blocks of a network; layers that are skipped are left out."""
        config = self.config
        first = [BlockSpec(config.widths[0], config.widths[0], config.first, (), 1)] if config.first else []
        blocks = [
            BlockSpec(
                config.widths[edge.source],
                config.widths[edge.target],
                self.head_names[head],
                tuple(self.stack_names[operation] for operation in stack if self.stack_names[operation] != SKIP),
                edge.stride,
            )
            for edge, head, stack in zip(self.steps(choice.path)[:-1], choice.heads, choice.stacks, strict=True)
        ]
        if not first and not blocks:
            raise UserError("a path of the first block alone is no network")
        return NetConfig((*first, *blocks), config.last)

    def find(self, net: NetConfig) -> Choice:
        """The choice that a network is, with its layers in the first places of each block.

        Raises:
            UserError: it is no network of this grid; names the block.
        """
        config = self.config
        blocks = net.blocks[1:] if config.first else net.blocks
        if net.stem != config.widths[0] or net.last != config.last or (config.first and net.blocks[0].head != config.first):
            raise UserError("net_config: its stem, first block or last convolution is not that of the grid")
        path, heads, stacks = [0], [], []
        for number, block in enumerate(blocks, start=len(net.blocks) - len(blocks) + 1):
            edge = next((e for e in self.outgoing[path[-1]] if e.target != self.end and self._is(e, block)), None)
            names = [*block.stack, *[SKIP] * (self.depth(edge.target) - len(block.stack))] if edge else []
            if edge is None or len(names) > self.depth(edge.target) or not {block.head, *block.stack} <= {*config.head, *config.stack}:
                raise UserError(f"net_config: block {number} ({block.in_channels} to {block.channels}) is none of the grid")
            path.append(edge.target)
            heads.append(self.head_names.index(block.head))
            stacks.append(tuple(self.stack_names.index(name) for name in names))
        if all(edge.target != self.end for edge in self.outgoing[path[-1]]):
            raise UserError(f"net_config: no network of the grid ends with {config.widths[path[-1]]} channels")
        return Choice(tuple(path), tuple(heads), tuple(stacks))

    def _is(self, edge: Edge, block: BlockSpec) -> bool:
        widths = self.config.widths
        return (widths[edge.source], widths[edge.target], edge.stride) == (block.in_channels, block.channels, block.stride)

    def summary(self) -> str:
        """In a line."""
        return (
            f"{plural(len(self.used), 'block')}, {plural(len(self.edges), 'edge')}, {plural(self.num_paths(), 'path')}, "
            f"{self.num_networks():.3g} networks"
        )
