"""The picture and the page of a ranking."""

from pathlib import Path
from typing import Any

import numpy as np

from bcnet.benchmark.ground_truth import GroundTruth, width_indices
from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.search.effects import WidthEffects

MOST_GROUPS = 48  # whose effects are drawn


def write_ranking_page(folder: Path, scores: dict[str, float], truth: GroundTruth, ranking: dict[str, Any], scores_name: str) -> Path:
    """Draw ``ranking.png`` and, where there are networks enough, ``effects.png``; write ``ranking.html``; returns the page's path."""
    part = truth.subset(truth.rows(list(scores), scores_name))
    values = np.array(list(scores.values()))
    plots.draw_ranking(folder / "ranking.png", values, part, ranking, f"{len(scores):,} networks")
    lead = f"{scores_name} against {ranking['truth']}: {ranking['num_networks']:,} of {ranking['num_in_truth']:,} networks."
    page = Page("bcnet: how well do the scores rank?", lead)
    page.section("Correlation with ground truth", *correlation_parts(ranking))
    page.section("Picture", picture(folder / "ranking.png", "score against ground truth"))
    widths = [width_indices(name) for name in part.names]
    effects = {name: WidthEffects.fit(widths, column) for name, column in (("score", values), ("truth", part.mean))}
    found = {name: effect for name, effect in effects.items() if effect is not None}
    if len(found) == len(effects) and len(widths[0]) <= MOST_GROUPS:
        in_deviations = {"score": found["score"].effects / values.std(), "truth": found["truth"].effects / part.mean.std()}
        plots.draw_effects(folder / "effects.png", in_deviations)
        explained = " and ".join(f"{100 * effect.explained:.0f} % of the variance of the {name}" for name, effect in found.items())
        words = f"Additive models; they explain {explained}. Where the lines part, the score over- or undervalues a group."
        page.section("What the width of each group is worth", picture(folder / "effects.png", "effects of widths"), text(words))
    rows = ranking["regret"]
    numbers = ("pick_accuracy", "best_accuracy", "regret")
    regrets = [(r["budget"], r["pick"], r["best"], *(f"{r[name]:.2f}" for name in numbers)) for r in rows]
    columns = ("budget", "the scores pick", "truly best", "accuracy of the pick [%]", "of the best [%]", "regret [points]")
    page.section("What picking by score would lose", table(columns, regrets))
    shares = [(f"top {k}", f"{value:.2f}") for k, value in ranking["top_k_precision"].items()]
    if shares:
        page.section("How many of the best are found", table(("", "share of them among the highest scores"), shares))
    target = folder / "ranking.html"
    page.write(target)
    return target


def correlation_parts(ranking: dict[str, Any]) -> tuple[str, str]:
    """The table of a ranking and a sentence on its ceiling."""
    names = ("kendall", "spearman", "pearson")
    rows = [
        (name.replace("_", " "), *(f"{row[c]['value']:.3f} ({row[c]['low']:.3f} to {row[c]['high']:.3f})" for c in names))
        for name, row in ranking["predictors"].items()
    ]
    ceiling = ranking["noise_ceiling"]
    words = (
        f"A perfect predictor would reach tau {ceiling:.3f} against the means of {ranking['num_seeds']} seeds."
        if ceiling is not None
        else "With one seed per network there is no noise ceiling."
    )
    header = ("predictor", "Kendall tau-b", "Spearman", "Pearson")
    return table(header, rows), text(words + " In brackets: 95 % bootstrap interval over the networks.")
