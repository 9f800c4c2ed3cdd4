"""The picture and the page of a ranking."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.results import Ranking
from bcnet.scoring.additive import WidthEffects
from bcnet.truth.ground_truth import GroundTruth
from bcnet.truth.ranking import left_out

MOST_GROUPS = 48  # whose effects are drawn


def write_ranking_page(folder: Path, scores: dict[str, float], truth: GroundTruth, ranking: Ranking, scores_name: str) -> Path:
    """Draw ``ranking.png`` and, where there are networks enough, ``effects.png``; write ``ranking.html``; returns the page's path."""
    part = truth.subset(truth.rows(list(scores), scores_name))
    values = np.array(list(scores.values()))
    plots.draw_ranking(folder / "ranking.png", values, part, ranking, f"{len(scores):,} networks")
    lead = f"{scores_name} against {ranking.truth}: {ranking.num_networks:,} of {ranking.num_in_truth:,} networks."
    page = Page("bcnet: how well do the scores rank?", lead)
    missing = [text(f"{line[0].upper()}{line[1:]}.") for line in left_out(scores, truth, ranking)]
    page.section("Correlation with ground truth", *correlation_parts(ranking), *missing)
    page.section("Picture", picture(folder / "ranking.png", "score against ground truth"))
    indices = _levels(part)
    of_score, of_truth = WidthEffects.fit(indices, values), WidthEffects.fit(indices, part.mean)
    if of_score is not None and of_truth is not None and indices.shape[1] <= MOST_GROUPS:
        plots.draw_effects(folder / "effects.png", {"score": of_score.effects / values.std(), "truth": of_truth.effects / part.mean.std()})
        shares = f"{100 * of_score.explained:.0f} % of the variance of the score and {100 * of_truth.explained:.0f} % of that"
        explained = f"{shares} of the truth"
        words = f"Additive models; they explain {explained}. Where the lines part, the score over- or undervalues a group."
        if part.has_channels:
            words += " Index 1 is the narrowest width of a group that was scored, 2 the next."
        page.section("What the width of each group is worth", picture(folder / "effects.png", "effects of widths"), text(words))
    regrets = [
        (row.budget, row.pick, row.best, *(f"{number:.2f}" for number in (row.pick_accuracy, row.best_accuracy, row.regret)))
        for row in ranking.regret
    ]
    columns = ("budget", "the scores pick", "truly best", "accuracy of the pick [%]", "of the best [%]", "regret [points]")
    if regrets or not missing:
        page.section("What picking by score would lose", table(columns, regrets))
    precisions = [(f"top {k}", f"{value:.2f}") for k, value in ranking.top_k_precision.items()]
    if precisions:
        page.section("How many of the best are found", table(("", "share of them among the highest scores"), precisions))
    target = folder / "ranking.html"
    page.write(target)
    return target


def _levels(truth: GroundTruth) -> npt.NDArray[np.int64]:
    """Width indices ``(N, groups)``; channel counts become the places 1, 2, ... among those that occur in their group."""
    if not truth.has_channels:
        return truth.indices
    return np.stack([np.unique(column, return_inverse=True)[1] + 1 for column in truth.indices.T], axis=1).astype(np.int64)


def correlation_parts(ranking: Ranking) -> tuple[str, str]:
    """The table of a ranking and a sentence on its ceiling."""
    rows = []
    for name, row in ranking.predictors.items():
        estimates = (row.kendall, row.spearman, row.pearson)
        rows.append((name.replace("_", " "), *(f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in estimates)))
    ceiling = ranking.noise_ceiling
    words = (
        f"A perfect predictor would reach tau {ceiling:.3f} against the means of {ranking.num_seeds} seeds."
        if ceiling is not None
        else "With one seed per network there is no noise ceiling."
    )
    header = ("predictor", "Kendall tau-b", "Spearman", "Pearson")
    return table(header, rows), text(words + " In brackets: 95 % bootstrap interval over the networks.")
