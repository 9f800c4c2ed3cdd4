"""Blocks of a network: a layer with everything that runs until the next one begins, and which widths its time depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from bcnet.latency.timing import START, TimedNetwork, WallClock
from bcnet.space.widths import Layer, Segment, Space


@dataclass(frozen=True)
class Block:
    """A layer with what runs until the next layer begins: its norm, activation, addition, pooling.

    Attributes:
        name: of the layer; ``(start)`` for what runs before the first one.
        inputs: segments that it reads.
        outputs: segments that it writes.
        skipped_if_equal: see `Layer`.
    """

    name: str
    inputs: tuple[Segment, ...] = ()
    outputs: tuple[Segment, ...] = ()
    skipped_if_equal: tuple[Segment, Segment] | None = None

    @property
    def groups(self) -> tuple[int, ...]:
        """Groups that its time depends on, ascending."""
        return tuple(sorted({one.group for one in (*self.inputs, *self.outputs, *(self.skipped_if_equal or ())) if one.group is not None}))

    @property
    def is_pair(self) -> bool:
        """Whether it reads channels of at most one group and writes those of at most one, so that its times are looked up."""
        return all(len(_groups(side)) <= 1 for side in (self.inputs, self.outputs)) and len(self.groups) <= 2

    def key(self, channels: Sequence[int]) -> str:
        """What its time is looked up by: channels of the group it reads and of the group it writes, ``"16x32"``."""
        return "x".join(str(_count(side, channels)) for side in (self.inputs, self.outputs))

    def entries(self, channels: Sequence[int]) -> tuple[int, int]:
        """Entries that it reads and writes at one position."""
        inputs, outputs = (sum(segment.entries(channels) for segment in side) for side in (self.inputs, self.outputs))
        return inputs, outputs

    def terms(self, channels: Sequence[int]) -> tuple[float, float, float, float]:
        """What a fit multiplies: 1, entries read, entries written, their product."""
        inputs, outputs = self.entries(channels)
        return 1.0, float(inputs), float(outputs), float(inputs * outputs)

    def is_skipped(self, channels: Sequence[int]) -> bool:
        """Whether it is not part of the network at these channels per group."""
        if self.skipped_if_equal is None:
            return False
        first, second = self.skipped_if_equal
        return first.entries(channels) == second.entries(channels)

    def describe(self, space: Space) -> tuple[str | list[str], str | list[str]]:
        """The groups that it reads and writes, by name; ``"3 channels"`` where they are not searched; a list where it is several."""
        sides = ([_name(one, space) for one in side] or ["nothing"] for side in (self.inputs, self.outputs))
        reads, writes = (names[0] if len(names) == 1 else names for names in sides)
        return reads, writes


def find_blocks(networks: Sequence[nn.Module], space: Space, images: torch.Tensor) -> list[Block]:
    """The blocks of the plain networks of a space, in the order in which they first begin.

    A norm right behind the layer whose outputs it normalises belongs to that layer's block.

    Args:
        networks: some of them, in evaluation mode; layers that are only part of others begin no block.
        space: its layers.
        images: ``(N, C, H, W)`` to run them on.
    """
    layers = {layer.name: layer for layer in space.layers if layer.tensors}
    behind: dict[str, set[str]] = {}
    for network in networks:
        order = [name for name, _ in TimedNetwork(network, images, WallClock(), layers=list(layers)).run()]
        for before, name in pairwise(order):
            behind.setdefault(name, set()).add(before)
    kept = [layer for name, layer in layers.items() if name in behind and not _is_merged(layer, [layers.get(one) for one in behind[name]])]
    return [Block(START), *(Block(layer.name, layer.inputs, layer.outputs, layer.skipped_if_equal) for layer in kept)]


def _is_merged(layer: Layer, before: Sequence[Layer | None]) -> bool:
    return layer.kind == "norm" and all(
        one is not None and one.outputs == layer.outputs and one.skipped_if_equal == layer.skipped_if_equal for one in before
    )


def _groups(segments: Sequence[Segment]) -> set[int | None]:
    return {segment.group for segment in segments if segment.group is not None}


def _count(segments: Sequence[Segment], channels: Sequence[int]) -> int:
    if len(segments) == 1 and segments[0].group is not None:
        return int(channels[segments[0].group])
    return int(np.sum([segment.entries(channels) for segment in segments], dtype=np.int64))


def _name(segment: Segment, space: Space) -> str:
    return f"{segment.channels} channels" if segment.group is None else space.groups[segment.group].name
