"""Latency tables of a grid: the authors' published ones, and those that are measured here.

The published form is a list ``[stem and first block, blocks, last, classifier]`` of milliseconds: for every block but the first
``[heads, stack]`` with a row of operations per incoming edge (nearest block first) and per stacked layer (skipped last), then one number
per block that the last convolution may read (nearest first). A table that is measured here holds the same beside what it was measured on.
"""

import platform
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bcnet.dense.config import SKIP, GridConfig
from bcnet.dense.costs import GridCost
from bcnet.dense.grid import Grid
from bcnet.errors import UserError
from bcnet.files import read_json
from bcnet.latency.part import PartFile
from bcnet.latency.table import note_machine, refuse_other_network
from bcnet.latency.timing import TimedNetwork, clock_of, random_images, visit
from bcnet.locks import locked
from bcnet.machine import amp_of, device_name
from bcnet.models.densenas import conv_bn, make_operation
from bcnet.models.layout import to_device
from bcnet.progress import ProgressBar
from bcnet.results import Record, check_record
from bcnet.version import __version__

FORMAT: Literal["bcnet-dense-latency-1"] = "bcnet-dense-latency-1"
PART_FORMAT = "bcnet-dense-latency-part-1"
WHAT = "a latency table of a grid"
Rows = Sequence[Sequence[float]]


class DenseLatencyMeta(Record):
    """What was measured, where and when."""

    grid: GridConfig
    """The grid."""
    num_classes: int
    """Logits."""
    input: list[int]
    """``[C, H, W]`` of one image."""
    batch_size: int
    """Images at once; all times are of one batch."""
    amp: Literal["off", "bf16", "fp16"]
    """Autocast."""
    device: str
    """Name of the processor or GPU."""
    device_type: Literal["cpu", "cuda"]
    """Where it ran."""
    threads: int
    """CPU threads."""
    clock: str
    """What took the time."""
    turns: int
    """Passes of every operation, in turns with a reference."""
    reference_ms: float
    """Median time of the reference."""
    date: str
    """Day."""
    torch: str
    """Version."""
    python: str
    """Version."""
    bcnet: str
    """Version."""


class DenseLatencyTable(Record):
    """A measured table: the published form beside its circumstances."""

    format: Literal["bcnet-dense-latency-1"]
    """Version of this form."""
    meta: DenseLatencyMeta
    """What was measured."""
    table: list[Any]
    """In the published form."""


def read_latency(path: Path, grid: Grid, image: Sequence[int], num_classes: int) -> GridCost:
    """A table as a cost of a grid.

    Args:
        path: a JSON file, of either form; a published one does not say what it was measured on.
        grid: must be that of the table.
        image: ``(C, H, W)`` of one image, likewise.
        num_classes: number of logits, likewise.

    Raises:
        UserError: no such file, not such a table, or one of another grid, input or number of classes; names the first thing that does
            not fit.
    """
    tree = read_json(path, WHAT)
    if isinstance(tree, dict):
        known = check_record(path, tree, DenseLatencyTable, WHAT)
        other = [name for name, value in known.meta.grid if value != getattr(grid.config, name)]
        if other:
            raise UserError(f"{path}: a table of another grid: {other[0]} is {getattr(known.meta.grid, other[0])} there")
        wanted = {"input": list(image), "num_classes": num_classes}
        refuse_other_network(path, known.meta.model_dump(include=set(wanted)), wanted, "bcnet dense latency")
        note_machine(path, known.meta)
        tree = known.table
    return _Reader(path, grid).read(tree)


class _Reader:
    def __init__(self, path: Path, grid: Grid) -> None:
        self.path, self.grid = path, grid

    def read(self, tree: Any) -> GridCost:
        grid, expected = self.grid, len(self.grid.config.widths) - 1
        if not isinstance(tree, list) or len(tree) != 4 or not isinstance(tree[1], list):
            raise UserError(f"{self.path}: not {WHAT}: wanted [stem and first block, blocks, last, classifier]")
        if len(tree[1]) != expected:
            raise UserError(f"{self.path}: a table of another grid: it has {len(tree[1])} blocks behind the first, the grid {expected}")
        heads: dict[tuple[int, int], list[float]] = {}
        stacks: dict[tuple[int, int], list[float]] = {}
        for block in grid.used[1:]:
            where = f"block {block + 1} (width {grid.config.widths[block]})"
            entry = tree[1][block - 1]
            if not isinstance(entry, list) or len(entry) != 2:
                raise UserError(f"{self.path}: not {WHAT}: {where} is no [heads, stack]")
            rows = self._rows(entry[0], len(grid.head_names), f"{where}, heads")
            if len(rows) != len(grid.incoming[block]):
                raise self._misfit(where, len(rows), "connections", len(grid.incoming[block]))
            heads |= {(edge.source, block): row for edge, row in zip(grid.incoming[block], rows, strict=True)}
            layers = self._rows(entry[1], len(grid.stack_names), f"{where}, stack")
            if len(layers) < grid.depth(block):
                raise self._misfit(where, len(layers), "stacked layers", grid.depth(block))
            stacks |= {(block, layer): layers[layer] for layer in range(grid.depth(block))}
        (lasts,) = self._rows([tree[2]], len(grid.incoming[grid.end]), "the last convolution")
        ((before, behind),) = self._rows([[tree[0], tree[3]]], 2, "stem and classifier")
        ends = {edge.source: ms for edge, ms in zip(grid.incoming[grid.end], lasts, strict=True)}
        return GridCost("latency", "ms", before + behind, heads, stacks, ends)

    def _rows(self, rows: Any, columns: int, where: str) -> list[list[float]]:
        def is_ms(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")

        if not isinstance(rows, list) or not all(isinstance(row, list) and all(map(is_ms, row)) for row in rows):
            raise UserError(f"{self.path}: not {WHAT}: {where}: wanted rows of milliseconds")
        for row in rows:
            if len(row) != columns:
                raise self._misfit(where, len(row), "numbers", columns)
        return [[float(value) for value in row] for row in rows]

    def _misfit(self, where: str, there: int, what: str, here: int) -> UserError:
        return UserError(f"{self.path}: a table of another grid: {where}: {there} {what} there, {here} in the grid")


# Measuring -------------------------------------------------------------------------------------------------------------


def measure_grid(
    grid: Grid,
    image: Sequence[int],
    num_classes: int,
    *,
    device: torch.device,
    batch_size: int = 1,
    half: torch.dtype | None = None,
    seconds: float = 0.2,
    repeats: int | None = None,
    label: str = "",
    out: Path,
) -> DenseLatencyTable:
    """Measure every operation of a grid and write its table; a process that was killed goes on where it was.

    Each operation runs in turns with one and the same reference (see `bcnet.latency.timing`).

    Args:
        grid: its blocks.
        image: ``(C, H, W)`` of one image.
        num_classes: number of logits.
        device: where.
        batch_size: images at once.
        half: what to autocast to, bf16 or fp16; unset: not at all.
        seconds: for every operation, the reference included.
        repeats: so many passes of each instead.
        label: shown beside the progress bar.
        out: the table's file; what is measured on the way stands beside it, in ``OUT.part``.

    Returns:
        The table. Operations of the same widths, size and stride are measured once.

    Raises:
        UserError: the file to go on from is of other settings or damaged, nothing can be written, or another process measures it.
    """
    config, widths, sizes = grid.config, grid.config.widths, grid.map_sizes(image)
    clock = clock_of(device)

    def timed(module: nn.Module, channels: int, size: Sequence[int]) -> TimedNetwork:
        shape = (channels, *size) if size else (channels,)
        images = random_images(shape, batch_size, device)
        return TimedNetwork(to_device(module, device).eval(), images, clock, half=half)

    reference = timed(make_operation("mbconv_k3_t6", widths[0], widths[0], 1), widths[0], sizes[0])
    wanted: dict[tuple[Any, ...], Callable[[], TimedNetwork]] = {}

    def want(name: str, inputs: int, outputs: int, stride: int, block: int) -> tuple[Any, ...]:
        key = (name, inputs, outputs, stride, sizes[block])
        wanted[key] = lambda: timed(_operation(name, inputs, outputs, stride), inputs, sizes[block])
        return key

    heads = {e: [want(name, widths[e.source], widths[e.target], e.stride, e.source) for name in grid.head_names] for e in grid.heads}
    stacks = {block: [want(name, widths[block], widths[block], 1, block) for name in grid.stack_names] for block in grid.used[1:]}
    lasts = [want("last", widths[edge.source], config.last, 1, edge.source) for edge in grid.incoming[grid.end]]
    stem: list[nn.Module] = [conv_bn(image[0], widths[0], 3, stride=config.stem_stride)]
    stem += [make_operation(config.first, widths[0], widths[0], 1)] if config.first else []
    wanted["stem",] = lambda: timed(nn.Sequential(*stem), image[0], image[1:])
    wanted["classifier",] = lambda: timed(nn.Linear(config.last, num_classes), config.last, ())

    circumstances: dict[str, Any] = {
        "grid": config,
        "num_classes": num_classes,
        "input": list(image),
        "batch_size": batch_size,
        "amp": amp_of(half),
        "device": device_name(device),
        "device_type": "cuda" if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock.name,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "bcnet": __version__,
    }
    header = {"format": PART_FORMAT, "seconds": seconds, "repeats": repeats, **circumstances, "grid": config.model_dump(mode="json")}
    with locked(out):
        part = PartFile(out.with_name(out.name + ".part"), header, {"grid": "another grid"})
        part.check_plan([{"operation": _spell(key)} for key in wanted])
        with ProgressBar(label, len(wanted), len(part.lines)) as bar:
            for key, make in list(wanted.items())[len(part.lines) :]:
                seen = visit(make(), reference, seconds=seconds, repeats=repeats)
                part.append({"operation": _spell(key), "ratio": seen.ratio, "reference_ms": seen.reference_ms, "turns": seen.turns})
                bar.update(len(part.lines), f"{seen.ratio * seen.reference_ms:.3g} ms")
        unit = sorted(line["reference_ms"] for line in part.lines)[len(part.lines) // 2]
        times = {key: float(line["ratio"] * unit) for key, line in zip(wanted, part.lines, strict=True)}
        blocks = [
            [
                [[times[key] for key in heads[edge]] for edge in grid.incoming.get(block, ())],
                [[times[key] for key in stacks[block]] for _ in range(grid.depth(block))] if block in stacks else [],
            ]
            for block in range(1, grid.end)
        ]
        meta = DenseLatencyMeta(
            **circumstances,
            turns=min(line["turns"] for line in part.lines),
            reference_ms=unit,
            date=datetime.now(timezone.utc).date().isoformat(),
        )
        rows = [times["stem",], blocks, [times[key] for key in lasts], times["classifier",]]
        table = DenseLatencyTable(format=FORMAT, meta=meta, table=rows)
        table.write(out)
        part.path.unlink(missing_ok=True)
    return table


def _spell(key: tuple[Any, ...]) -> str:
    """An operation in a word, such as ``mbconv_k3_t3:16-24/2@32x32``."""
    name, *rest = key
    if not rest:
        return str(name)
    inputs, outputs, stride, size = rest
    return f"{name}:{inputs}-{outputs}/{stride}@{'x'.join(map(str, size))}"


def _operation(name: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    if name == SKIP:
        return nn.Identity()
    return conv_bn(inputs, outputs, 1) if name == "last" else make_operation(name, inputs, outputs, stride)
