"""The pictures of a search of a grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator

from bcnet.dense.grid import Grid
from bcnet.dense.results import DenseRecord, EpochRecord
from bcnet.report.page import narrow_form
from bcnet.report.plots import BLUE, GREEN, GREY, ORANGE, _save, _two_panels, _unit


def draw_course(path: Path, record: DenseRecord, start: int) -> None:
    """Losses, costs of random and of the most probable network, and the factor of the cost's term, over epochs."""
    rows = record.epochs
    epochs = [row.epoch + 1 for row in rows]
    held_out = [(row.epoch + 1, row.held_out_loss) for row in rows if row.held_out_loss is not None]
    cost = record.budget.cost if record.budget else "flops"
    scale, unit = _unit(max(row.derived[cost] for row in rows))

    def draw(left: Axes, right: Axes) -> None:
        left.plot(epochs, [row.loss for row in rows], color=BLUE, label="weights' steps")
        if held_out:
            left.plot(*zip(*held_out, strict=True), color=ORANGE, label="architecture's steps, held-out images")
        left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
        right.plot(epochs, [row.expected[cost] / scale for row in rows], color=GREY, label="expected, random network")
        right.plot(epochs, [row.derived[cost] / scale for row in rows], color=BLUE, drawstyle="steps-mid", label="most probable network")
        right.plot(epochs[-1], record.best.costs[cost] / scale, "*", markersize=13, color=ORANGE, label="found")
        if record.budget:
            right.axhline(record.budget.limit / scale, color="black", linestyle=":", label=f"budget {record.budget.text}")
        right.set(xlabel="epoch", ylabel=f"{cost.replace('flops', 'FLOPs')} [{unit}]".replace(" []", ""), title="Cost")
        factor = right.twinx()
        factor.plot(epochs, [row.cost_weight for row in rows], color=GREEN, linewidth=0.8)
        factor.set_ylabel("factor of the cost's term", color=GREEN)
        for axes in (left, right):
            if 0 < start < len(rows):
                axes.axvline(start + 0.5, color=GREY, linewidth=0.8)
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    _two_panels(path, (9, 3.8), (1, 1), draw)


def draw_shares(path: Path, rows: Sequence[EpochRecord], start: int) -> None:
    """How much of a random network's layers each operation makes, over epochs: a collapse to one operation is seen here."""
    names = list(rows[0].shares)
    values = np.array([[row.shares[name] for row in rows] for name in names])
    edges = np.arange(len(rows) + 1) + 0.5

    def draw(axes: Axes) -> None:
        lower = np.zeros(len(rows))
        for number, (name, own) in enumerate(zip(names, values, strict=True)):
            colour = GREY if name == "skip" else plt.get_cmap("viridis")(number / max(1, len(names) - 1))
            axes.stairs(lower + own, edges, baseline=lower, fill=True, color=colour, label=name)
            lower = lower + own
        if 0 < start < len(rows):
            axes.axvline(start + 0.5, color="white", linewidth=1.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ends = (0.5, len(rows) + 0.5)
        axes.set(xlabel="epoch", ylabel="share of the layers", title="Operations of a random network", xlim=ends, ylim=(0, 1))

    for target, size, legend in (
        (path, (7, 3.4), {"loc": "center left", "bbox_to_anchor": (1, 0.5)}),
        (narrow_form(path), (5, 4.4), {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 2}),
    ):
        figure, axes = plt.subplots(figsize=size)
        draw(axes)
        axes.legend(frameon=False, fontsize=8, **legend)
        _save(figure, target)


def draw_grid(path: Path, grid: Grid, edges: Mapping[tuple[int, int], float], found: Sequence[int]) -> None:
    """The blocks by stage and width, every edge as dark as it is probable, and the path that was found."""
    config = grid.config
    nodes = [*grid.used, grid.end]
    places = {block: (block + 1, config.widths[block] if block != grid.end else config.widths[-1] * 1.12) for block in nodes}
    on_path = set(zip(found, (*found[1:], grid.end), strict=True))

    def draw(axes: Axes) -> None:
        for edge in grid.edges:
            pair = edge.source, edge.target
            arc = f"arc3,rad={0.18 * (nodes.index(edge.target) - nodes.index(edge.source) - 1):.2f}"  # so that no edge hides behind others
            colour, dark = (ORANGE, 1.0) if pair in on_path else (BLUE, 0.08 + 0.9 * edges[pair])
            ends = places[edge.source], places[edge.target]
            axes.add_patch(FancyArrowPatch(*ends, connectionstyle=arc, arrowstyle="-", color=colour, alpha=dark, linewidth=1.6, zorder=1))
        for block, place in places.items():
            axes.plot(*place, "o", color=ORANGE if block in found or block == grid.end else GREY, zorder=2)
            label = "end" if block == grid.end else str(config.widths[block])
            axes.annotate(label, place, textcoords="offset points", xytext=(5, 4), fontsize=8)
        for block in nodes[1:]:
            if grid.stages[block] != grid.stages[block - 1]:
                axes.axvline(block + 0.5, color=GREY, linewidth=0.5, linestyle=":")
        axes.set_xticks(range(1, grid.end + 1))
        axes.set(xlabel="block (lines part the stages)", ylabel="width", title="Probabilities of edges, and the path that was found")

    for target, size in ((path, (8, 4)), (narrow_form(path), (5, 4.6))):
        figure, axes = plt.subplots(figsize=size)
        draw(axes)
        _save(figure, target)
