"""The table, the pictures and the page of a comparison of methods."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from bcnet.formatting import coefficient
from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.results import Comparison, PredictorRow, ScoredSeed
from bcnet.truth.compare import mean_row
from bcnet.truth.ground_truth import GroundTruth
from bcnet.truth.ranking import DEFAULT_BUDGETS

HEADER = ("predictor", "Kendall tau-b", "+-", "Spearman", "Pearson", "regret 25 %", "50 %", "75 %", "passes", "train s")


def compare_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row per method (mean over seeds) and baseline."""
    rows = []
    for name, method in comparison.methods.items():
        seeds = method.per_seed
        rows.append((name, *_cells(mean_row(seeds), _spread(seeds)), *_work(seeds)))
    for name, scored in comparison.competitors.items():
        rows.append((name, *_cells(mean_row(scored), _spread(scored)), *_work(scored)))
    rows += [(name, *_cells(row, ""), "", "") for name, row in comparison.baselines.items()]
    if comparison.noise_ceiling is not None:
        rows.append(("perfect predictor (ceiling)", f"{comparison.noise_ceiling:.3f}", *[""] * 8))
    return rows


def _spread(seeds: Sequence[ScoredSeed]) -> str:
    taus = [seed.kendall for seed in seeds]
    return f"{stdev(taus):.3f}" if len(taus) > 1 and not any(map(isnan, taus)) else "-"


def _work(seeds: Sequence[ScoredSeed]) -> tuple[str, str]:
    return f"{seeds[0].passes:,}", f"{fmean(seed.train_seconds for seed in seeds):.1f}"


def _cells(row: PredictorRow, deviation: str) -> tuple[str, ...]:
    correlations = (coefficient(row.kendall), deviation, *map(coefficient, (row.spearman, row.pearson)))
    return (*correlations, *(f"{row.regret[budget]:.2f}" if budget in row.regret else "" for budget in DEFAULT_BUDGETS))


def write_compare_page(folder: Path, comparison: Comparison, truth: GroundTruth, names: list[str], truth_name: str) -> Path:
    """Draw ``compare.png``, ``scatter.png`` and ``counts.png``, write ``index.html``; returns its path."""
    plots.draw_comparison(folder / "compare.png", comparison)
    scores = {name: np.array(method.per_seed[0].scores) for name, method in comparison.methods.items()}
    plots.draw_scatters(folder / "scatter.png", scores, truth.mean)
    plots.draw_counts(folder / "counts.png", {name: method.counts for name, method in comparison.methods.items()}, names)
    lead = f"{comparison.num_networks:,} networks of {truth_name}, {comparison.num_seeds} seeds per method, equal passes over the images."
    page = Page("bcnet: which training ranks widths best?", lead)
    page.section(
        "Ranking", table(HEADER, compare_rows(comparison)), picture(folder / "compare.png", "Kendall tau of methods and baselines")
    )
    words = "Regret is what picking the highest score under a budget loses, in points of accuracy, against the truly best."
    page.section("Score against truth", text(words), picture(folder / "scatter.png", "scatter per method, first seed"))
    page.section("How often every bin was trained", picture(folder / "counts.png", "training counts per bin"))
    target = folder / "index.html"
    page.write(target)
    return target
