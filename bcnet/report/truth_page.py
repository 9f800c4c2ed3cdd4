"""What a ground-truth file holds: ranges, noise ceiling, the best under budgets; drawn."""

from pathlib import Path

import numpy as np

from bcnet.formatting import human
from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.results import Record, Regret
from bcnet.truth.ground_truth import GroundTruth
from bcnet.truth.ranking import noise_ceiling, regret


class TruthSummary(Record):
    """What a ground-truth file holds."""

    num_networks: int
    """Trained widths."""
    num_seeds: int
    """Trainings per width."""
    accuracy: tuple[float, float, float]
    """Lowest, median and highest mean accuracy in per cent."""
    flops: tuple[int, int]
    """Lowest and highest."""
    params: tuple[int, int]
    """Lowest and highest."""
    seed_noise: float | None
    """Standard deviation of one seed, in points; ``None`` with one seed."""
    noise_ceiling: list[float]
    """Tau of a perfect predictor against means of 1, 2, ... seeds."""
    best: list[Regret]
    """The truly best under 25, 50, 75 and 100 % of the largest FLOPs."""


def describe_truth(truth: GroundTruth) -> TruthSummary:
    """Ranges, spread, ceiling for 1..S seeds, best under 25, 50, 75 and 100 % of the largest FLOPs."""
    num_seeds = truth.acc.shape[1]
    floor = truth.flops.min() / truth.flops.max()
    ceilings = [noise_ceiling(truth.acc, seeds) for seeds in range(1, num_seeds + 1)]
    return TruthSummary(
        num_networks=len(truth),
        num_seeds=num_seeds,
        accuracy=(float(truth.mean.min()), float(np.median(truth.mean)), float(truth.mean.max())),
        flops=(int(truth.flops.min()), int(truth.flops.max())),
        params=(int(truth.params.min()), int(truth.params.max())),
        seed_noise=float(np.sqrt(truth.acc.var(1, ddof=1).mean())) if num_seeds > 1 else None,
        noise_ceiling=[ceiling for ceiling in ceilings if ceiling is not None],
        best=[regret(truth.mean, truth, f"flops={share}") for share in (0.25, 0.5, 0.75, 1.0) if share >= floor],
    )


def write_truth_page(folder: Path, truth: GroundTruth, summary: TruthSummary, name: str) -> Path:
    """Draw ``truth.png`` and write ``truth.html``; returns the page's path."""
    plots.draw_truth(folder / "truth.png", truth.mean, truth.flops, truth.params, summary.noise_ceiling)
    page = Page(f"bcnet: {name}", f"{len(truth):,} networks, {summary.num_seeds} seeds each. FLOPs are multiply-adds of one image.")
    page.section("Picture", picture(folder / "truth.png", "histograms of accuracy, FLOPs and params; accuracy against FLOPs"))
    rows = [(row.budget, row.best, row.best_accuracy) for row in summary.best]
    page.section("Best under a budget", table(("budget", "widths", "mean accuracy [%]"), rows))
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
        f"{summary.num_networks:,} networks, {summary.num_seeds} seeds each",
        f"accuracy {low:.2f} to {high:.2f} %, median {median:.2f} %",
        f"flops {human(summary.flops[0])} to {human(summary.flops[1])}",
        f"params {human(summary.params[0])} to {human(summary.params[1])}",
    ]
    if summary.seed_noise is not None:
        ceilings = ", ".join(f"{tau:.3f}" for tau in summary.noise_ceiling)
        lines.append(f"seed noise {summary.seed_noise:.2f} points; noise ceiling (tau) with 1 to {summary.num_seeds} seeds: {ceilings}")
    lines += [f"best under {row.budget}: {row.best}, {row.best_accuracy:.2f} %" for row in summary.best]
    return lines
