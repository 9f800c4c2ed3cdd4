"""The picture and the page of a ranking."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcnet.formatting import coefficient
from bcnet.report import plots
from bcnet.report.page import Page, links, picture, table, text
from bcnet.results import Ranking
from bcnet.scoring.additive import WidthEffects
from bcnet.truth.ground_truth import GroundTruth
from bcnet.truth.ranking import left_out, payoff

MOST_GROUPS = 48  # whose effects are drawn
REGRET_COLUMNS = (
    *("budget", "the scores pick", "truly best", "accuracy of the pick [%]", "of the best [%]", "regret [points]"),
    *("uniform width of this cost [%]", "random width of this cost [%]", "best of ten random ones [%]"),
)
REGRET_WORDS = (
    "True accuracies, in per cent. The uniform width of a cost is interpolated between the two uniform widths beside it; "
    "random widths are those of the truth that use at least 95 % of the budget; the best of ten is what training ten of them would give."
)


def write_ranking_page(folder: Path, scores: dict[str, float], truth: GroundTruth, ranking: Ranking, scores_name: str) -> Path:
    """Draw ``ranking.png`` and, where there are networks enough, ``effects.png``; write ``ranking.html``; returns the page's path."""
    part = truth.subset(truth.rows(list(scores), scores_name))
    values = np.array(list(scores.values()))
    plots.draw_ranking(folder / "ranking.png", values, part, ranking, f"{len(scores):,} networks")
    lead = f"{scores_name} against {ranking.truth}: {ranking.num_networks:,} of {ranking.num_in_truth:,} networks."
    page = Page("bcnet: how well do the scores rank?", lead)
    missing = [text(f"{line[0].upper()}{line[1:]}.") for line in left_out(scores, truth, ranking)]
    page.section("Correlation with ground truth", links(folder, {"index.html": "the run"}), *correlation_parts(ranking), *missing)
    indices = _levels(part)
    of_score, of_truth = WidthEffects.fit(indices, values), WidthEffects.fit(indices, part.mean)
    clouds = [] if of_truth is None else [text(clouds_sentence(of_truth, indices, part))]
    page.section("Picture", picture(folder / "ranking.png", "score against ground truth"), *clouds)
    if of_score is not None and of_truth is not None and indices.shape[1] <= MOST_GROUPS:
        plots.draw_effects(folder / "effects.png", {"score": of_score.effects / values.std(), "truth": of_truth.effects / part.mean.std()})
        shares = f"{100 * of_score.explained:.0f} % of the variance of the score and {100 * of_truth.explained:.0f} % of that"
        explained = f"{shares} of the truth"
        words = f"Additive models; they explain {explained}. Where the lines part, the score over- or undervalues a group."
        if part.has_channels:
            words += " Index 1 is the narrowest width of a group that was scored, 2 the next."
        page.section("What the width of each group is worth", picture(folder / "effects.png", "effects of widths"), text(words))
    if ranking.regret or not missing:
        page.section("What picking by score would lose", *_regret_parts(folder, scores, truth, ranking))
    precisions = [(f"top {k}", f"{value:.2f}") for k, value in ranking.top_k_precision.items()]
    if precisions:
        page.section("How many of the best are found", table(("", "share of them among the highest scores"), precisions))
    target = folder / "ranking.html"
    page.write(target)
    return target


def clouds_sentence(effects: WidthEffects, indices: npt.NDArray[np.int64], truth: GroundTruth) -> str:
    """What divides the points of a picture of accuracies into clouds: the largest step between two neighbouring widths of one group.

    Args:
        effects: additive model of the accuracies.
        indices: ``(N, groups)``, of the same networks.
        truth: of these networks.
    """
    steps = np.nan_to_num(np.diff(effects.effects, axis=1))
    group, level = np.unravel_index(np.abs(steps).argmax(), steps.shape)
    narrow = indices[:, group] <= level + 1
    below, above = (float(truth.mean[part].mean()) for part in (narrow, ~narrow))
    share = min(narrow.mean(), 1 - narrow.mean())
    at = "at its narrowest width" if level == 0 else f"at one of its {level + 1} narrowest widths"
    return (
        f"Where the points fall into clouds, widths of one group divide them. The largest step is that of group {group + 1} of "
        f"{indices.shape[1]}: networks that have it {at} reach {below:.2f} % in the mean, the others {above:.2f} % "
        f"(the smaller part is {100 * share:.0f} % of all)."
    )


def _regret_parts(folder: Path, scores: dict[str, float], truth: GroundTruth, ranking: Ranking) -> list[str]:
    """Draws ``payoff.png`` where the costs are known; the table of picks with it."""
    if not truth.unknown("flops"):
        of_all = np.full(len(truth), np.nan)
        of_all[truth.rows(list(scores), "scores")] = list(scores.values())
        reference = "the full model" if truth.knows_full("flops") else "the largest network of the truth"
        plots.draw_payoff(folder / "payoff.png", payoff(of_all, truth), reference=reference)
    return regret_parts(folder, ranking)


def regret_parts(folder: Path, ranking: Ranking) -> list[str]:
    """The table of picks, and the picture of the same at every budget where there is one."""
    rows = []
    for row in ranking.regret:
        others = (row.instead.uniform, row.instead.random_mean, row.instead.random_best) if row.instead else (None, None, None)
        accuracies = (row.pick_accuracy, row.best_accuracy, row.regret, *others)
        rows.append((row.budget, row.picked, row.best, *("" if one is None else f"{one:.2f}" for one in accuracies)))
    return [table(REGRET_COLUMNS, rows), picture(folder / "payoff.png", "accuracy of what is picked at every budget"), text(REGRET_WORDS)]


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
        cells = (f"{coefficient(one.value)} ({coefficient(one.low)} to {coefficient(one.high)})" for one in estimates)
        rows.append((name.replace("_", " "), *cells))
    ceiling = ranking.noise_ceiling
    words = (
        f"A perfect predictor would reach tau {ceiling:.3f} against the means of {ranking.num_seeds} seeds."
        if ceiling is not None
        else "With one seed per network there is no noise ceiling."
    )
    header = ("predictor", "Kendall tau-b", "Spearman", "Pearson")
    return table(header, rows), text(words + " In brackets: 95 % bootstrap interval over the networks.")
