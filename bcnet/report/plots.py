"""The pictures of a run: each function draws one PNG from plain values."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bcnet.files import write_atomic
from bcnet.formatting import coefficient, plural
from bcnet.report.page import narrow_form
from bcnet.results import Comparison, Ranking, Regret, SearchRecord, SearchSettings
from bcnet.scoring.metrics import METRICS
from bcnet.truth.ground_truth import GroundTruth

BLUE, LIGHT_BLUE, ORANGE, GREY, GREEN = "#2563eb", "#93c5fd", "#ea580c", "#94a3b8", "#16a34a"
MOST_LAYERS = 24
MOST_COLUMNS = 12  # groups whose channels are drawn as columns; more are drawn as rows
READABLE = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind a number that a line may cross
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.dpi": 110,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "text.parse_math": False,  # names are no formulas
    }
)


def _save(figure: Figure, path: Path) -> None:
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    plt.close(figure)


def _two_panels(path: Path, size: tuple[float, float], ratios: tuple[float, float], draw: Callable[[Axes, Axes], None]) -> None:
    """Two panels beside each other; and below each other, for narrow screens."""
    figure, axes = plt.subplots(1, 2, figsize=size, width_ratios=ratios)
    draw(*axes)
    _save(figure, path)
    figure, axes = plt.subplots(2, 1, figsize=(5, 2 * size[1]))
    draw(*axes)
    _save(figure, narrow_form(path))


def draw_training(
    path: Path,
    losses: Sequence[float],
    steps_per_epoch: int,
    passes: int,
    looks: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> None:
    """Training loss over epochs, every step faint and a moving average on top; beside it what was seen of subnets meanwhile.

    Args:
        path: of the picture.
        losses: of every step.
        steps_per_epoch: of the training.
        passes: of the training so far.
        looks: name of an accuracy -> epoch and value, 0..1, of every look.
    """
    values = np.asarray(losses)
    epochs = (np.arange(len(values)) + 1) / steps_per_epoch
    window = max(1, min(len(values) // 20, 200))
    smooth = np.convolve(values, np.ones(window) / window, "valid")

    def draw_loss(axes: Axes) -> None:
        axes.plot(epochs, values, color=BLUE, alpha=0.2, linewidth=0.7)
        axes.plot(epochs[window - 1 :], smooth, color=BLUE, label=f"mean of {plural(window, 'step')}" if window > 1 else "every step")
        axes.set(xlabel="epoch", ylabel="cross-entropy", title=f"Training loss ({passes:,} passes)")
        axes.set_ylim(min(smooth.min(), values.min()) * 0.95, np.quantile(values, 0.995) * 1.05)
        axes.legend(frameon=False)

    def draw_looks(axes: Axes) -> None:
        for (name, seen), colour in zip((looks or {}).items(), (ORANGE, GREEN, BLUE), strict=True):
            axes.plot(*zip(*seen, strict=True), "o-", color=colour, markersize=4, label=name.removesuffix("_accuracy"))
        axes.set(xlabel="epoch", title="Held-out accuracy of subnets")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False)

    def draw(left: Axes, right: Axes) -> None:
        draw_loss(left)
        draw_looks(right)

    if looks:
        _two_panels(path, (9, 3.4), (3, 2), draw)
        return
    figure, axes = plt.subplots(figsize=(7, 3.2))
    draw_loss(axes)
    _save(figure, path)


def draw_courses(path: Path, courses: Mapping[str, Sequence[tuple[int, float, float]]]) -> None:
    """Loss and learning rate of trainings: step, loss and rate of every row."""

    def draw(left: Axes, right: Axes) -> None:
        for name, rows in courses.items():
            steps, losses, rates = zip(*rows, strict=True) if rows else ((), (), ())
            left.plot(steps, losses, label=name)
            right.plot(steps, rates)
        left.set(xlabel="step", ylabel="cross-entropy", title="Training loss")
        right.set(xlabel="step", ylabel="learning rate", title="Learning rate")
        left.legend(frameon=False)

    _two_panels(path, (9, 3.2), (1, 1), draw)


def draw_fairness(path: Path, counts: Sequence[npt.NDArray[np.int64]], names: Sequence[str], title: str) -> None:
    """How often every bin of every group was trained, relative to the mean of its group."""
    groups, bins = len(counts), max(map(len, counts))
    relative = _padded([own / max(own.mean(), 1) for own in counts])
    figure, axes = plt.subplots(figsize=(min(2.6 + 0.75 * bins, 12), min(1.5 + 0.38 * groups, 14)))
    image = axes.imshow(relative, cmap="coolwarm", vmin=0.5, vmax=1.5, aspect="auto")
    if groups * bins <= 200:
        for row, own in enumerate(counts):
            for column, count in enumerate(own):
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(bins), [str(b + 1) for b in range(bins)])
    axes.set_yticks(range(groups) if groups <= 40 else [], names if groups <= 40 else None, fontsize=8)
    axes.set(xlabel="bin, from the left", ylabel="group", title=title)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="times trained / mean of the group")
    _save(figure, path)


def _padded(rows: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Rows of different lengths as one array, NaN where a row has ended."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = row
    return table


def metric_label(name: str) -> str:
    """What a score by a metric is called."""
    return METRICS[name].label if name in METRICS else name


def score_label(settings: SearchSettings) -> str:
    """What the scores of a search are called."""
    return "predicted true accuracy [%]" if settings.anchors else metric_label(settings.metric)


def draw_search(path: Path, search: SearchRecord) -> None:
    """Every evaluated width vector (cost against score), and the best score so far."""
    evaluated, cost = search.evaluated, search.settings.cost
    scale, unit = _unit(max(row.costs[cost] for row in evaluated))
    x = np.array([row.costs[cost] for row in evaluated]) / scale
    y = np.array([row.score for row in evaluated])

    def draw(left: Axes, right: Axes) -> None:
        dots = left.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=14)
        plt.colorbar(dots, ax=left, label="order of evaluation")
        on_front = set(search.front)
        front = sorted((row for row in evaluated if row.widths in on_front), key=lambda row: row.costs[cost])
        left.step([row.costs[cost] / scale for row in front], [row.score for row in front], where="post", color=GREY, label="front")
        best = search.best
        left.plot(best.costs[cost] / scale, best.score, marker="*", markersize=15, color=ORANGE, linestyle="", label=f"best {best.widths}")
        for budget in search.settings.budgets:
            if budget.cost == cost:
                left.axvline(
                    budget.limit / scale, color="black", linestyle=":", label="budget" if budget is search.settings.budgets[0] else None
                )
        others = [row for row in search.rows(search.passed.values()) if row.widths != best.widths]
        if others:
            places = [row.costs[cost] / scale for row in others], [row.score for row in others]
            left.plot(
                *places, marker="*", markersize=11, color=ORANGE, linestyle="", markeredgecolor="black", label="best of other budgets"
            )
        left.set(xlabel=cost.replace("flops", "FLOPs") + f" [{unit}]" * bool(unit), ylabel=score_label(search.settings))
        left.set_title(f"{len(evaluated)} width vectors evaluated")
        left.legend(frameon=False, fontsize=8)
        within = [search.keeps_budgets(row) for row in evaluated]
        so_far = np.maximum.accumulate(np.where(within, y, -np.inf))
        right.plot(np.arange(len(y)) + 1, np.where(np.isfinite(so_far), so_far, np.nan), color=BLUE, marker="." if len(y) < 100 else "")
        right.set(xlabel="width vectors evaluated", ylabel="best score so far within all budgets", title="Progress", xlim=(0, len(y) + 1))

    _two_panels(path, (9, 3.6), (3, 2), draw)


def draw_short(path: Path, search: SearchRecord) -> None:
    """Held-out accuracy of what a search trained for a short time, in order, by who proposed it; and the best so far."""
    proposers = {
        "score": ("score alone", BLUE),
        "uniform": ("uniform bins", GREY),
        "importance": ("importance of channels", GREEN),
        "varied": ("varied scores", "#a78bfa"),
        "corrected": ("corrected scores", ORANGE),
    }
    figure, axes = plt.subplots(figsize=(7, 3.4))
    y = np.array([100 * one.accuracy for one in search.short])
    places = np.arange(len(y)) + 1
    axes.step(places, np.maximum.accumulate(y), where="post", color="black", linewidth=0.8, label="best so far")
    for name, (label, colour) in proposers.items():
        own = np.array([one.proposed_by == name for one in search.short])
        if own.any():
            axes.plot(places[own], y[own], marker="o", linestyle="", color=colour, label=label)
    axes.set(xlabel="short trainings", ylabel="held-out accuracy [%]", xlim=(0.5, len(y) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def draw_widths(path: Path, names: Sequence[str], channels: dict[str, Sequence[int]]) -> None:
    """Channels of every group for several networks, from the input on; the first network is drawn as the frame."""
    place = np.arange(len(names))
    (frame, full), *others = channels.items()
    width = 0.8 / len(others)
    columns: list[tuple[str, Sequence[int], float, float, dict[str, Any]]] = [
        (frame, full, 0.0, 0.85, {"color": "none", "edgecolor": GREY})
    ]
    for number, ((name, values), colour) in enumerate(zip(others, (BLUE, ORANGE, GREEN), strict=False)):
        columns.append((name, values, -0.4 + width * (number + 0.5), width, {"color": colour}))
    if len(names) > MOST_COLUMNS:
        figure, axes = plt.subplots(figsize=(7, 1.4 + 0.3 * len(names)))
        for name, values, offset, thickness, style in columns:
            axes.barh(place + offset, values, height=thickness, label=name, **style)
        axes.set_yticks(place, names, fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set(xlabel="channels", title="Channels per group, from the input down")
    else:
        figure, axes = plt.subplots(figsize=(3 + 0.6 * len(names), 3.6))
        for name, values, offset, thickness, style in columns:
            axes.bar(place + offset, values, width=thickness, label=name, **style)
        axes.set_xticks(place, names, rotation=35, ha="right", fontsize=8)
        axes.set(ylabel="channels", title="Channels per group")
    axes.legend(frameon=False)
    _save(figure, path)


def draw_retraining(path: Path, results: dict[str, Sequence[float]]) -> None:
    """Test accuracy of networks trained after the search: one dot per seed, mean and standard deviation."""
    figure, axes = plt.subplots(figsize=(6.5, 1.2 + 0.5 * len(results)))
    for row, values in enumerate(results.values()):
        colour = ORANGE if row % 2 else BLUE  # found and uniform widths take turns
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        beside = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [0.0]  # so that equal ones are seen
        axes.plot(values, row + np.asarray(beside), "o", color=colour, alpha=0.5)
        axes.errorbar(np.mean(values), row, xerr=spread, fmt="D", color=colour, capsize=4)
    axes.set_yticks(range(len(results)), list(results))
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set(xlabel="test accuracy [%]", title="Seeds, mean and standard deviation")
    _save(figure, path)


def draw_ranking(path: Path, scores: npt.NDArray[np.float64], truth: GroundTruth, ranking: Ranking, title: str) -> None:
    """Score against ground truth, and Kendall tau beside the baselines and the ceiling."""
    size = max(3, min(20, 6000 / len(scores)))

    def draw(left: Axes, right: Axes) -> None:
        if truth.unknown("flops"):
            left.scatter(scores, truth.mean, color=BLUE, s=size, alpha=0.8)
        else:
            scale, unit = _unit(truth.flops.max())
            dots = left.scatter(scores, truth.mean, c=truth.flops / scale, cmap="viridis", s=size, alpha=0.8)
            plt.colorbar(dots, ax=left, label=f"FLOPs [{unit}]")
        left.set(xlabel="score", ylabel="true accuracy [%]", title=title)
        left.locator_params(axis="x", nbins=6)  # small negative scores are long words
        _tau_bars(right, ranking)

    _two_panels(path, (10, 4), (3, 2), draw)


def draw_payoff(path: Path, picks: Mapping[float, Regret], *, reference: str = "the full model") -> None:
    """True accuracy at every budget: of what the scores pick, of the truly best, of uniform and of random widths."""
    figure, axes = plt.subplots(figsize=(7.5, 4))
    shares, rows = np.array(list(picks)), list(picks.values())
    instead = [row.instead for row in rows]
    axes.step(shares, [row.best_accuracy for row in rows], where="post", color="black", linewidth=1, label="truly best")
    axes.step(shares, [row.pick_accuracy for row in rows], where="post", color=BLUE, linewidth=2, label="picked by score")
    columns = (
        ("best of ten random widths, all trained", GREEN, [one and one.random_best for one in instead]),
        ("uniform width", ORANGE, [one and one.uniform for one in instead]),
        ("random width", GREY, [one and one.random_mean for one in instead]),
    )
    for name, colour, values in columns:
        numbers = np.array(values, np.float64)  # None becomes NaN, and the line has a gap
        if np.isfinite(numbers).any():
            axes.plot(shares, numbers, color=colour, label=name)
    axes.set(xlabel=f"FLOPs at most, relative to {reference}", ylabel="true accuracy [%]", title="What a pick is worth at every budget")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False)
    _save(figure, path)


def draw_effects(path: Path, effects: dict[str, npt.NDArray[np.float64]]) -> None:
    """What the width of every group is worth on its own: a panel per group, a line per source; fewer in a row for narrow screens."""
    for target, columns in ((path, 8), (narrow_form(path), 3)):
        _draw_effects(target, effects, min(columns, next(iter(effects.values())).shape[0]))


def _draw_effects(path: Path, effects: dict[str, npt.NDArray[np.float64]], columns: int) -> None:
    groups, bins = next(iter(effects.values())).shape
    rows = -(-groups // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns + 1, 1.9 * rows + 0.6), sharex=True, sharey=True, squeeze=False)
    for group, axis in enumerate(axes.flat):
        if group >= groups:
            axis.set_visible(False)
            continue
        for (name, values), colour in zip(effects.items(), (BLUE, ORANGE), strict=True):
            axis.plot(np.arange(bins) + 1, values[group], "o-", color=colour, markersize=3, label=name)
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.set_title(f"group {group + 1}", fontsize=9)
    if bins <= 8:
        axes[0][0].set_xticks(range(1, bins + 1))
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.supxlabel("width index", fontsize=9)
    figure.supylabel("standard deviations", fontsize=9)
    _save(figure, path)


def draw_truth(path: Path, accuracy: npt.NDArray[np.float64], costs: Mapping[str, npt.NDArray[np.int64]], ceiling: Sequence[float]) -> None:
    """Histogram of accuracy above the noise ceiling against the number of seeds, then one of each cost above accuracy against it.

    Args:
        path: of the picture.
        accuracy: in per cent, ``(N,)``.
        costs: name -> values, ``(N,)``.
        ceiling: Kendall tau for 1, 2, ... seeds; empty where there is one seed only.
    """
    height, width = (2 if costs or ceiling else 1), 1 + len(costs)
    figure, axes = plt.subplots(height, width, figsize=(3.7 * width, 3 * height), squeeze=False)
    above, below = axes[0], axes[-1]
    units = [(name, *_unit(values.max()), values) for name, values in costs.items()]
    panels = [("accuracy [%]", accuracy), *((f"{name} [{unit}]", values / scale) for name, scale, unit, values in units)]
    for axis, (label, values) in zip(above, panels, strict=True):
        axis.hist(values, bins=50, color=BLUE)
        axis.set(xlabel=label, ylabel="networks")
    for axis, (label, values) in zip(below[1:], panels[1:], strict=True):
        axis.scatter(values, accuracy, s=4, alpha=0.5, color=BLUE)
        axis.set(xlabel=label, ylabel="accuracy [%]")
    if ceiling:
        below[0].plot(range(1, len(ceiling) + 1), ceiling, "o-", color=ORANGE)
        below[0].set(xlabel="seeds", ylabel="Kendall tau-b", title="Noise ceiling")
    elif costs:
        below[0].set_axis_off()
    _save(figure, path)


def draw_survey(path: Path, shares: Sequence[float], narrowest: Sequence[float]) -> None:
    """Histograms over models: the searched share of FLOPs, and FLOPs of the narrowest network relative to the model's."""
    labels = "share of FLOPs in searched layers", "FLOPs of the narrowest network / model's"

    def draw(*axes: Axes) -> None:
        for axis, values, label in zip(axes, (shares, narrowest), labels, strict=True):
            axis.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=BLUE)
            axis.set(xlabel=label, ylabel="models", xlim=(0, 1))

    _two_panels(path, (9, 3.2), (1, 1), draw)


def draw_latency(path: Path, predicted: Sequence[float], measured: Sequence[float], layers: Mapping[str, float]) -> None:
    """Predicted against measured milliseconds of networks that nothing was fitted to, and what the layers of the full network take.

    Args:
        path: of the picture.
        predicted: of every network.
        measured: likewise.
        layers: name -> milliseconds, in order; the longest `MOST_LAYERS` are drawn.
    """
    longest = sorted(layers, key=lambda name: -layers[name])[:MOST_LAYERS]
    shown = {name: value for name, value in layers.items() if name in longest}

    def draw(left: Axes, right: Axes) -> None:
        ends = [0.95 * min(*predicted, *measured), 1.05 * max(*predicted, *measured)]
        left.plot(ends, ends, color=GREY, linestyle="--", label="equal")
        left.plot(measured, predicted, "o", color=BLUE, label="networks that nothing was fitted to")
        left.set(xlabel="measured [ms]", ylabel="predicted [ms]", title="Whole networks")
        left.legend(frameon=False)
        right.barh(list(shown), list(shown.values()), color=BLUE)
        right.invert_yaxis()
        right.tick_params(axis="y", labelsize=7)
        title = "Layers of the full network" if len(shown) == len(layers) else f"The {len(shown)} longest of {len(layers)} layers"
        right.set(xlabel="ms, with what runs until the next layer", title=title)

    _two_panels(path, (10, 4.5), (1, 1), draw)


def draw_comparison(path: Path, comparison: Comparison) -> None:
    """Kendall tau of methods and competitors (bar: mean, dots: seeds) and of baselines, with the noise ceiling."""
    methods = {name: [seed.kendall for seed in method.per_seed] for name, method in comparison.methods.items()}
    taus = methods | {name: [seed.kendall for seed in seeds] for name, seeds in comparison.competitors.items()}
    rows = taus | {name: [row.kendall] for name, row in comparison.baselines.items()}
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.42 * len(rows)))
    for row, (name, values) in enumerate(rows.items()):
        mean = float(np.mean(values))
        axes.barh(row, np.nan_to_num(mean), color=BLUE if name in methods else LIGHT_BLUE if name in taus else GREY)
        if name in taus:
            axes.plot(values, [row] * len(values), "o", color=ORANGE, markersize=4)
        axes.text(np.nan_to_num([*values, 0]).max() + 0.015, row, coefficient(mean), va="center", fontsize=9, bbox=READABLE, zorder=3)
    _ceiling_line(axes, comparison.noise_ceiling)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.95)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.0)
    axes.set(xlabel="Kendall tau-b against ground truth", title="Supernets, other ways (light; dots: seeds) and baselines")
    _save(figure, path)


def draw_scatters(path: Path, scores: dict[str, npt.NDArray[np.float64]], accuracy: npt.NDArray[np.float64]) -> None:
    """Score against true accuracy, one panel per method."""
    figure, axes = plt.subplots(1, len(scores), figsize=(3.1 * len(scores), 3.2), sharey=True, squeeze=False)
    for axis, (name, values) in zip(axes[0], scores.items(), strict=True):
        axis.scatter(values, accuracy, s=max(3, min(20, 6000 / len(values))), alpha=0.5, color=BLUE)
        axis.set(xlabel="score", title=name)
    axes[0][0].set(ylabel="true accuracy [%]")
    _save(figure, path)


def draw_counts(path: Path, counts: dict[str, list[list[int]]], names: Sequence[str]) -> None:
    """How often every bin was trained, relative to the mean of its group: a line per group, a panel per method."""
    figure, axes = plt.subplots(1, len(counts), figsize=(3.1 * len(counts), 3), sharey=True, squeeze=False)
    for axis, (name, of_groups) in zip(axes[0], counts.items(), strict=True):
        for own, label in zip(of_groups, names, strict=True):
            axis.plot(np.arange(len(own)) + 1, np.array(own) / max(np.mean(own), 1), "o-", markersize=3, alpha=0.7, label=label)
        axis.set(xlabel="bin, from the left", title=name, xticks=range(1, max(map(len, of_groups)) + 1))
    axes[0][0].set(ylabel="times trained / mean", ylim=(0, None))
    if len(names) <= 8:
        axes[0][0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def _tau_bars(axes: Axes, ranking: Ranking) -> None:
    names = {"score": "this score", "flops": "FLOPs", "params": "params", "sum_of_widths": "sum of widths"}
    names = {key: name for key, name in names.items() if key in ranking.predictors}  # without costs that are not known
    for row, key in enumerate(names):
        tau = ranking.predictors[key].kendall
        value, low, high = (np.nan_to_num(part) for part in (tau.value, tau.low, tau.high))
        axes.barh(row, value, color=BLUE if key == "score" else GREY, xerr=[[max(0, value - low)], [max(0, high - value)]], capsize=3)
        axes.text(max(high, 0) + 0.02, row, coefficient(tau.value), va="center", fontsize=9, bbox=READABLE, zorder=3)
    _ceiling_line(axes, ranking.noise_ceiling)
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.0)
    axes.set(xlabel="Kendall tau-b (95 % bootstrap)")


def _ceiling_line(axes: Axes, ceiling: float | None) -> None:
    if ceiling is not None:
        axes.axvline(ceiling, color="black", linestyle="--")
        axes.text(ceiling, -0.62, f"ceiling {ceiling:.2f}", ha="center", fontsize=8, bbox=READABLE)


def _unit(largest: float) -> tuple[float, str]:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= scale:
            return scale, unit
    return 1.0, ""
