"""The file of a measured latency: typed, checked when it is read, and made a cost."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from bcnet.errors import UserError
from bcnet.latency.blocks import Block
from bcnet.latency.timing import START
from bcnet.machine import device_name
from bcnet.progress import notice
from bcnet.results import Record, read_record
from bcnet.space.cost import Cost
from bcnet.space.widths import Space
from bcnet.trees import dump_yaml

FORMAT: Literal["bcnet-latency-1"] = "bcnet-latency-1"
WHAT = f"a latency table of 'bcnet latency' (format {FORMAT!r})"

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PairKey = Annotated[str, Field(pattern=r"^\d+x\d+$")]


class LatencyMeta(Record):
    """What was measured, where and when."""

    model: str
    """Its name."""
    args: dict[str, Any] = Field(default_factory=dict)
    """It was made with, as of ``model.args``."""
    num_classes: int
    """Logits."""
    input: list[int]
    """``[C, H, W]`` of one image."""
    batch_size: int
    """Images at once; all times are of one batch."""
    device: str
    """Name of the processor or GPU."""
    device_type: Literal["cpu", "cuda"]
    """Where it ran."""
    threads: int
    """CPU threads."""
    clock: str
    """What was counted; with one CPU thread the time that it had the CPU, as if nothing else ran."""
    amp: Literal["off", "bf16", "fp16"]
    """Autocast."""
    torch: str
    """Version."""
    python: str
    """Version."""
    bcnet: str
    """Version."""
    date: str
    """Day of the last measurement, UTC."""
    seed: int
    """Of the choice of networks."""
    seconds_per_network: float
    """Time given to each."""
    repeats: int | None = None
    """Passes of each instead."""
    backend: Literal["eager", "compiled", "onnxruntime"] = "eager"
    """What ran the whole networks; layers are always timed in PyTorch, and their sum is fitted to what the backend took."""


class LayerLatency(Record):
    """A layer with everything that runs until the next one begins."""

    reads: str | list[str]
    """The group of its inputs, or several."""
    writes: str | list[str]
    """The group of its outputs, or several."""
    ms: dict[PairKey, Milliseconds]
    """``"16x32"`` -> milliseconds at 16 channels read and 32 written; none where several groups are read or written."""
    fit: tuple[Milliseconds, Milliseconds, Milliseconds, Milliseconds]
    """Milliseconds per 1, per entry read, per entry written, per product of the two: for pairs that were not measured."""


class LatencyCheck(Record):
    """How well whole networks are predicted that were measured without a look at their layers."""

    networks: int
    """How many."""
    spearman: float
    """Rank correlation of predicted and measured."""
    median_error: float
    """Median of |predicted - measured| / measured."""
    worst_error: float
    """The largest."""
    predicted_ms: tuple[float, ...] = ()
    """Of every one of them."""
    measured_ms: tuple[float, ...] = ()
    """Likewise."""


class LatencyNoise(Record):
    """How steady the machine was."""

    repeat: Milliseconds
    """Relative standard deviation (robust) of the full network's time, measured again and again, after correcting drift."""
    drift: Milliseconds
    """Relative range (10th to 90th percentile) of the uncorrected time of the reference network that ran in turns with all others."""
    reference_ms: Milliseconds
    """Median time of that network, which sets the level of all times."""
    reference_widths: str
    """Its width string."""


class LatencyTable(Record):
    """A file of `bcnet latency`."""

    format: Literal["bcnet-latency-1"]
    """Tells it from other files."""
    meta: LatencyMeta
    """What was measured, where and when."""
    groups: dict[str, list[int]]
    """Group -> its channel counts."""
    layers: dict[str, LayerLatency]
    """Name of a layer -> its times."""
    overhead_ms: Finite
    """Predicted is overhead + scale * sum of the layers."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """See ``overhead_ms``."""
    networks: int
    """Networks that were measured layer by layer."""
    covered: float
    """Share of all pairs of widths that were measured; the others are fitted."""
    full_ms: Milliseconds
    """The full network, measured."""
    narrowest_ms: Milliseconds
    """The narrowest network, measured."""
    noise: LatencyNoise
    """How steady the machine was."""
    held_out: LatencyCheck
    """On networks of uniformly drawn widths that nothing was fitted to."""


@dataclass(frozen=True)
class Measured:
    """Of which network a latency is wanted.

    Attributes:
        model: its name.
        num_classes: logits.
        input_shape: ``(C, H, W)`` of one image.
        args: it was made with, as of ``model.args``.
    """

    model: str
    num_classes: int
    input_shape: tuple[int, ...]
    args: Mapping[str, Any] = field(default_factory=dict)


def block_ms(block: Block, layer: LayerLatency, channels: Sequence[int]) -> float:
    """Milliseconds of a block: measured, else fitted."""
    if block.is_skipped(channels):
        return 0.0
    known = layer.ms.get(block.key(channels)) if block.is_pair else None
    return fitted_ms(block, layer.fit, channels) if known is None else known


def fitted_ms(block: Block, fit: Sequence[float], channels: Sequence[int]) -> float:
    """Milliseconds of a block as fitted to its entries."""
    return float(sum(coefficient * term for coefficient, term in zip(fit, block.terms(channels), strict=True)))


def read_latency(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        UserError: no such file, or not a whole table.
    """
    return read_record(path, LatencyTable, WHAT)


def load_latency(path: Path, space: Space, of: Measured | None = None) -> Cost:
    """The cost ``latency`` of a space, in milliseconds, as a table says; it is known for the choices of the groups only.

    Args:
        path: the file.
        space: of the model that was measured.
        of: what it is of; unset: only the groups and layers are compared.

    Raises:
        UserError: not a table, or of another model, input, number of classes, or other groups.
    """
    table = read_latency(path)
    if of is not None:
        _check_network(path, table.meta, of)
    blocks = _check_space(path, table, space)
    note_machine(path, table.meta)
    return to_cost(table, space, blocks)


def layer_times(path: Path, space: Space) -> dict[str, float]:
    """Milliseconds of every layer of the full network, with what runs until the next one begins, as a table says."""
    table = read_latency(path)
    full = space.channels(space.full)
    return {block.name: table.scale * block_ms(block, table.layers[block.name], full) for block in _check_space(path, table, space)}


def to_cost(table: LatencyTable, space: Space, blocks: Sequence[Block]) -> Cost:
    """Overhead, and the scaled sum of the blocks, as tables over pairs of groups."""
    builder = _Builder(space)
    for block in blocks:
        builder.add(block, table.layers[block.name])
    tables = {pair: table.scale * values for pair, values in builder.tables.items()}
    return Cost("latency", "ms", table.overhead_ms + table.scale * builder.const, tables)


class _Builder:
    """Sums blocks into tables over pairs of groups; indices that are no choices get what was fitted."""

    def __init__(self, space: Space) -> None:
        self.counts = space.channel_table()
        self.const = 0.0
        self.tables: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.float64]]] = {}

    def table(self, a: int, b: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.tables.setdefault((a, b), np.zeros((len(self.counts[a]), len(self.counts[b]))))

    def add(self, block: Block, layer: LayerLatency) -> None:
        groups = block.groups
        channels = [row[-1] for row in self.counts]
        if not groups:
            self.const += block_ms(block, layer, channels)
        elif len(groups) <= 2:
            a, b = groups[0], groups[-1]
            table = self.table(a, b)
            for i, j in product(range(len(self.counts[a])), range(len(self.counts[b]))):
                channels[b] = self.counts[b][j]
                channels[a] = self.counts[a][i]
                if a != b or i == j:
                    table[i, j] += block_ms(block, layer, channels)
        else:
            self._add_segments(block, layer)

    def _add_segments(self, block: Block, layer: LayerLatency) -> None:
        """The fit is linear in the entries of every segment and in their products."""
        const, per_input, per_output, per_product = layer.fit
        self.const += const
        for coefficient, side in ((per_input, block.inputs), (per_output, block.outputs)):
            for segment in side:
                self._add_product(coefficient, segment.group, segment.repeat, segment.channels, None, 1, 1)
        for one, other in product(block.inputs, block.outputs):
            self._add_product(per_product, one.group, one.repeat, one.channels, other.group, other.repeat, other.channels)

    def _add_product(
        self, coefficient: float, a: int | None, repeat_a: int, fixed_a: int, b: int | None, repeat_b: int, fixed_b: int
    ) -> None:
        left = repeat_a * np.array([fixed_a] if a is None else self.counts[a], dtype=np.float64)
        right = repeat_b * np.array([fixed_b] if b is None else self.counts[b], dtype=np.float64)
        values = coefficient * np.outer(left, right)
        if a is None and b is None:
            self.const += float(values[0, 0])
        elif a is None or b is None:
            group = a if b is None else b
            assert group is not None
            table = self.table(group, group)
            table += np.diag(values.ravel())
        elif a == b:
            table = self.table(a, a)
            table += np.diag(np.diag(values))
        else:
            table = self.table(min(a, b), max(a, b))
            table += values if a < b else values.T


def refuse_other_network(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any], command: str) -> None:
    """See that a table was measured with what is wanted here; ``command`` would measure that.

    Raises:
        UserError: names the first thing that differs.
    """
    for name, value in wanted.items():
        if known[name] != value:
            there, here = ("x".join(map(str, one)) if name == "input" else one for one in (known[name], value))
            raise UserError(f"{path}: was measured with {name} {there}, and here {name} is {here}; measure it with: {command}")


def _check_network(path: Path, meta: LatencyMeta, of: Measured) -> None:
    known = {"model": meta.model, "args": meta.args, "input": meta.input, "num_classes": meta.num_classes}
    wanted = {"model": of.model, "args": dict(of.args), "input": list(of.input_shape), "num_classes": of.num_classes}
    made_with = dump_yaml(dict(of.args), default_flow_style=True, width=math.inf).strip()
    refuse_other_network(path, known, wanted, "bcnet latency" + (f" --args {shlex.quote(made_with)}" if of.args else ""))


def _check_space(path: Path, table: LatencyTable, space: Space) -> list[Block]:
    again = "measure it with 'bcnet latency' and the same --bins, --min-bins, --divisor, --group and --exclude"
    names = [group.name for group in space.groups]
    if sorted(names) != sorted(table.groups):
        odd = sorted(set(names) ^ set(table.groups))
        raise UserError(
            f"{path}: was measured for {len(table.groups)} groups, and here are {len(names)}, which differ in {odd[0]!r}; {again}"
        )
    for group in space.groups:
        measured = table.groups[group.name]
        if not set(group.choices) <= set(measured):
            raise UserError(f"{path}: {group.name} was measured at {measured} channels, and here has {list(group.choices)}; {again}")
    layers = {layer.name: layer for layer in space.layers}
    blocks = []
    for name, entry in table.layers.items():
        layer = layers.get(name)
        if layer is None and name != START:
            raise UserError(f"{path}: was measured for a layer {name!r}, which this model has not; {again}")
        block = Block(name) if layer is None else Block(name, layer.inputs, layer.outputs, layer.skipped_if_equal)
        own = block.describe(space)
        if own != (entry.reads, entry.writes):
            raise UserError(f"{path}: {name} reads {entry.reads} and writes {entry.writes}, and here {own[0]} and {own[1]}; {again}")
        blocks.append(block)
    return blocks


class _Machine(Protocol):
    """The machine of a table."""

    @property
    def device(self) -> str: ...

    @property
    def device_type(self) -> str: ...

    @property
    def torch(self) -> str: ...


def note_machine(path: Path, meta: _Machine) -> None:
    """Say so where a table was measured on another machine, or with another PyTorch."""
    here = device_name(torch.device(meta.device_type))
    if (meta.device, meta.torch) != (here, str(torch.__version__)):
        notice(f"{path}: was measured on {meta.device} with torch {meta.torch}; here is {here} with torch {torch.__version__}")


def describe_groups(space: Space) -> Mapping[str, list[int]]:
    """The groups of a space and the channel counts that they may have."""
    return {group.name: list(group.choices) for group in space.groups}
