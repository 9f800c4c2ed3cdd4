"""What a ground-truth file holds: ranges, noise ceiling, the best under budgets; drawn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcnet.formatting import human, plural
from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.results import Record, Regret
from bcnet.truth.ground_truth import GroundTruth
from bcnet.truth.ranking import DEFAULT_BUDGETS, noise_ceiling, reachable_budgets, regret

_SHOWN = {"flops": "FLOPs", "params": "params"}
_NO_FLOPS = "The file does not say what its networks cost, so none is the best under a budget."


class TruthSummary(Record):
    """What a ground-truth file holds."""

    num_networks: int
    """Trained widths."""
    num_seeds: int
    """Trainings per width."""
    accuracy: tuple[float, float, float]
    """Lowest, median and highest mean accuracy in per cent."""
    costs: dict[str, tuple[int, int]]
    """Lowest and highest FLOPs and params, where the file knows them."""
    most_accurate: str
    """The network of the highest."""
    seed_noise: float | None
    """Standard deviation of one seed, in points; ``None`` with one seed."""
    noise_ceiling: list[float]
    """Tau of a perfect predictor against means of 1, 2, ... seeds."""
    best: list[Regret]
    """The truly best under 25, 50, 75 and 100 % of the full model's FLOPs."""


def describe_truth(truth: GroundTruth) -> TruthSummary:
    """Ranges, spread, ceiling for 1..S seeds, best under 25, 50, 75 and 100 % of the full model's FLOPs."""
    num_seeds = truth.acc.shape[1]
    ceilings = [noise_ceiling(truth.acc, seeds) for seeds in range(1, num_seeds + 1)]
    return TruthSummary(
        num_networks=len(truth),
        num_seeds=num_seeds,
        accuracy=(float(truth.mean.min()), float(np.median(truth.mean)), float(truth.mean.max())),
        most_accurate=truth.names[int(truth.mean.argmax())],
        costs={cost: (int(values.min()), int(values.max())) for cost, values in _costs(truth).items()},
        seed_noise=float(np.sqrt(truth.acc.var(1, ddof=1).mean())) if num_seeds > 1 else None,
        noise_ceiling=[ceiling for ceiling in ceilings if ceiling is not None],
        best=_best(truth),
    )


def _costs(truth: GroundTruth) -> dict[str, npt.NDArray[np.int64]]:
    return {cost: truth.cost(cost) for cost in ("flops", "params") if not truth.unknown(cost)}


def _best(truth: GroundTruth) -> list[Regret]:
    if truth.unknown("flops"):
        return []
    budgets = reachable_budgets(truth, (*DEFAULT_BUDGETS, "flops=1.0"))
    return [regret(truth.mean, truth, budget) for budget in budgets]


def write_truth_page(folder: Path, truth: GroundTruth, summary: TruthSummary, name: str) -> Path:
    """Draw ``truth.png`` and write ``truth.html``; returns the page's path."""
    costs = {_SHOWN[cost]: values for cost, values in _costs(truth).items()}
    plots.draw_truth(folder / "truth.png", truth.mean, costs, summary.noise_ceiling)
    about = f"{plural(len(truth), 'network')}, {_seeds(summary)}."
    page = Page(f"bcnet: {name}", f"{about} FLOPs are multiply-adds of one image." if "FLOPs" in costs else about)
    of = "".join(f", of {cost}, and accuracy against them" for cost in costs)
    page.section("Picture", picture(folder / "truth.png", f"histogram of accuracy{of}"))
    rows = [(row.budget, row.best, row.best_accuracy) for row in summary.best]
    if rows:
        page.section("Best under a budget", table(("budget", "widths", "mean accuracy [%]"), rows))
    else:
        page.section("Best", text(f"{summary.most_accurate}, {summary.accuracy[-1]:.2f} %. {_NO_FLOPS}"))
    ceilings = [(str(n), tau) for n, tau in enumerate(summary.noise_ceiling, start=1)]
    if ceilings:
        words = f"Standard deviation of one seed: {summary.seed_noise:.2f} points. A perfect predictor would reach, against the mean of"
        page.section("Noise", text(words), table(("seeds", "Kendall tau-b"), ceilings))
    target = folder / "truth.html"
    page.write(target)
    return target


def truth_lines(summary: TruthSummary) -> list[str]:
    """The summary for a terminal."""
    low, median, high = summary.accuracy
    lines = [
        f"{plural(summary.num_networks, 'network')}, {_seeds(summary)}",
        f"accuracy {low:.2f} to {high:.2f} %, median {median:.2f} %",
        *(f"{cost} {human(lowest)} to {human(highest)}" for cost, (lowest, highest) in summary.costs.items()),
    ]
    if summary.seed_noise is not None:
        ceilings = ", ".join(f"{tau:.3f}" for tau in summary.noise_ceiling)
        ceiling = f"; noise ceiling (tau) with 1 to {summary.num_seeds} seeds: {ceilings}" if ceilings else ""
        lines.append(f"seed noise {summary.seed_noise:.2f} points{ceiling}")
    if not summary.best:
        lines += [f"best: {summary.most_accurate}", _NO_FLOPS]
    lines += [f"best under {row.budget}: {row.best}, {row.best_accuracy:.2f} %" for row in summary.best]
    return lines


def _seeds(summary: TruthSummary) -> str:
    return "one training each" if summary.num_seeds == 1 else f"{summary.num_seeds} seeds each"
