"""The pictures and the page of a run directory, from whatever the run holds so far."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np

from bcnet.errors import UserError
from bcnet.experiment import LOOKED_AT
from bcnet.formatting import human
from bcnet.progress import notice
from bcnet.report import plots
from bcnet.report.page import Page, commands, details, links, picture, table, text
from bcnet.report.ranking_page import correlation_parts, regret_parts
from bcnet.results import EvaluatedWidths, RetrainedWidth, RetrainRecord, SearchRecord
from bcnet.run import Run
from bcnet.training.fairness import fairness_sentence
from bcnet.training.watch import read_rows

T = TypeVar("T")


def write_run_page(run: Run) -> Path:
    """Draw every picture and write ``index.html``; returns its path."""
    config, folder = run.config, run.folder
    page = Page(
        f"bcnet: {config.train.strategy.name} on {config.model.name}, {config.data.source}",
        f"One weight-sharing supernet; {run.space.summary()}.",
    )
    search = _if_whole(page, run.search_record)
    if search:
        _add_found(page, run, search)
    _add_retraining(page, run)
    _add_together(page, run)
    _add_ranking(page, run)
    _add_training(page, run)
    if search:
        _add_search(page, run, search)
    _add_space(page, run)
    page.section("What next", commands(_next_commands(run, search)))
    page.section(
        "How it was made",
        details("config", (folder / "config.yaml").read_text(encoding="utf-8")),
        details("environment", json.dumps(_if_whole(page, run.environment), indent=1)),
    )
    target = folder / "index.html"
    page.write(target)
    return target


def _if_whole(page: Page, read: Callable[[], T]) -> T | None:
    """A part of the run, if it can be read; else the page says what is wrong with it, and has all the others."""
    try:
        return read()
    except UserError as error:
        notice(f"{error}; the page leaves it out")
        page.section("Left out", text(str(error)))
        return None


def _add_found(page: Page, run: Run, search: SearchRecord) -> None:
    best = search.best
    full = {cost: run.costs.of_model(cost) for cost in ("flops", "params")}
    channels = {
        "full model" if run.costs.model is None else "widened model": [group.channels for group in run.space.groups],
        f"found {best.widths}": run.space.channels(run.space.decode(best.widths)),
        "uniform, same FLOPs": run.experiment.uniform_channels(best.costs["flops"]),
    }
    if run.costs.model is not None:
        channels["model"] = run.costs.model_channels
    flops, params = best.costs["flops"], best.costs["params"]
    words = (
        f"{best.widths}: {human(flops)} FLOPs ({flops / full['flops']:.0%} of {run.costs.model_name}), "
        f"{human(params)} params ({params / full['params']:.0%}), "
        f"{plots.score_label(search.settings)} {best.score:.4f}, {search.settings.accuracy_words} {best.accuracy:.2%}."
    )
    plots.draw_widths(run.folder / "widths.png", [g.name for g in run.space.groups], channels)
    speed = _if_whole(page, run.speed)
    if speed is not None and speed.widths == best.widths:
        words += f" Measured: {speed.sentence}."
    places = zip(run.space.groups, run.space.decode(best.widths), *list(channels.values())[:3], strict=True)
    rows = [(group.name, f"{index} of {group.bins}", own, full, uniform) for group, index, full, own, uniform in places]
    header = ("group (its first layer)", "width", "channels", "of", "uniform")
    meaning = f"What {best.widths} means, from left to right:"
    page.section(
        "The width that was found",
        text(words),
        picture(run.folder / "widths.png", "channels per group"),
        text(meaning),
        table(header, rows),
    )


_STARTS = {"scratch": "from scratch", "inherited": "from the supernet's weights"}


def _add_retraining(page: Page, run: Run) -> None:
    """Every width that was retrained so far, each beside the uniform one of its FLOPs."""
    retrainings = _if_whole(page, run.retrainings)
    if not retrainings:
        return
    entries = {}
    for one in retrainings:
        name = f"{one.found.widths}{', inherited' if one.start == 'inherited' else ''}"
        entries[name] = one.found
        entries[f"uniform like {name}"] = one.uniform
        if one.full is not None:
            entries["full model" if one.start == "scratch" else "full model, inherited"] = one.full
    plots.draw_retraining(run.folder / "retraining.png", {name: entry.acc for name, entry in entries.items()})
    rows = [
        (name, human(entry.flops), human(entry.params), len(entry.acc), fmean(entry.acc), _spread(entry.acc))
        for name, entry in entries.items()
    ]
    header = ("width", "FLOPs", "params", "seeds", "test accuracy [%]", "standard deviation")
    verdicts = [text(" ".join([f"{one.found.widths}, {_STARTS[one.start]}:", verdict(one), *others(one)])) for one in retrainings]
    heading = "Trained from scratch" if all(one.start == "scratch" for one in retrainings) else "Trained after the search"
    page.section(heading, *verdicts, table(header, rows), picture(run.folder / "retraining.png", "accuracy per seed"))


def _add_together(page: Page, run: Run) -> None:
    """Width vectors trained in one network, each beside itself alone."""
    known = _if_whole(page, run.trained_alone) or {}
    rows = [
        (row.widths, human(row.flops), len(row.acc), fmean(row.acc), _spread(row.acc), *_alone(known.get(str(row.widths))))
        for record in _if_whole(page, run.togethers) or ()
        for row in record.together
    ]
    if rows:
        lead = "Several width vectors as one network: shared weights, batch norms of their own; split into plain networks afterwards."
        header = ("width", "FLOPs", "seeds", "test accuracy [%]", "standard deviation", "trained alone [%]", "standard deviation")
        page.section("Trained together", text(lead), table(header, rows))


def _alone(row: RetrainedWidth | None) -> tuple[object, object]:
    return (fmean(row.acc), _spread(row.acc)) if row else ("-", "-")


def _add_ranking(page: Page, run: Run) -> None:
    """What ``bcnet rank`` found, if it was asked."""
    ranking = _if_whole(page, run.ranking)
    if ranking is None:
        return
    lead = f"The scores of {ranking.num_networks:,} width vectors against the ground truth {ranking.truth}."
    top = ", ".join(f"{value:.0%} of the best {k}" for k, value in ranking.top_k_precision.items())
    found = text(f"Among as many of the highest scores are {top}.") if top else ""
    more = links(run.folder, {"ranking.html": "all of the ranking", "truth.html": "the ground truth"})
    pictures = picture(run.folder / "ranking.png", "score against ground truth"), picture(run.folder / "effects.png", "effects of widths")
    page.section("How far the scores can be trusted", text(lead), *correlation_parts(ranking), found, *pictures, more)
    if ranking.regret:
        page.section("What picking by score is worth", *regret_parts(run.folder, ranking))


def _spread(values: list[float]) -> float | str:
    return round(stdev(values), 2) if len(values) > 1 else "-"


def verdict(retrained: RetrainRecord) -> str:
    """One honest sentence on the found width against the uniform one, by Welch's t-test."""
    found, uniform = retrained.found.acc, retrained.uniform.acc
    difference = fmean(found) - fmean(uniform)
    if len(found) < 2:
        return f"One seed: found minus uniform is {difference:+.2f} points; one seed cannot tell whether that is noise."
    tested = welch(found, uniform)
    if tested is None:
        return f"Found minus uniform: {difference:+.2f} points; no seed differs from another, so how much of it is noise cannot be told."
    low, high, p = tested
    if p >= 0.05:
        judgement = "that is within the noise of the seeds"
    else:
        judgement = "the found width is better" if difference > 0 else "the uniform width is better"
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    how = f"95 % interval {low:+.2f} to {high:+.2f}, {chance} by Welch's t-test, {len(found)} seeds each"
    return f"Found minus uniform: {difference:+.2f} points ({how}): {judgement}."


def others(retrained: RetrainRecord) -> list[str]:
    """What the full model and random widths say about the found width, a sentence each."""
    lines, found = [], retrained.found
    if retrained.full is not None:
        lost = fmean(retrained.full.acc) - fmean(found.acc)
        tested = welch(retrained.full.acc, found.acc) if len(found.acc) > 1 else None
        interval = f" (95 % interval {tested[0]:+.2f} to {tested[1]:+.2f})" if tested else ""
        lines.append(f"The full model, with {retrained.full.flops / found.flops:.2f} times the FLOPs: {lost:+.2f} points{interval}.")
    if retrained.random:
        accuracies = [one.acc[0] for one in retrained.random]
        beaten = sum(accuracy < fmean(found.acc) for accuracy in accuracies)
        best = f"mean {fmean(accuracies):.2f} %, best {max(accuracies):.2f} %"
        lines.append(f"{len(accuracies)} random widths of these FLOPs: {best}; the found width's mean is above {beaten} of them.")
    return lines


def welch(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float] | None:
    """The 95 % interval of the difference of two means, and the p-value of its being zero; variances may differ.

    ``None`` where neither varies: noise that was not seen may still be there, for accuracies are counts of few test images.

    Args:
        one: at least two values.
        other: at least two values.
    """
    from scipy.stats import ttest_ind

    if len(set(one)) == len(set(other)) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one of the two that does not vary, which is all right
        test = ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _add_training(page: Page, run: Run) -> None:
    trainer, strategy = run.trained, run.config.train.strategy.name
    history, counts = trainer.history, trainer.counts
    assert counts is not None
    steps = trainer.batches.steps_per_epoch
    rows = [row for row in _if_whole(page, lambda: read_rows(run.folder / "progress.csv")) or [] if LOOKED_AT[0] in row]
    looks = {name: [(row["step"] / steps, row[name]) for row in rows] for name in LOOKED_AT} if rows else {}
    plots.draw_training(run.folder / "training.png", history.loss, steps, history.passes, looks)
    names = [group.name for group in run.space.groups]
    plots.draw_fairness(run.folder / "fairness.png", counts.counts, names, f"Times every bin was trained: {strategy}")
    images = history.passes * trainer.batches.batch_size
    words = (
        f"{trainer.step:,} of {trainer.total_steps:,} steps, {history.passes:,} forward-backward passes over {trainer.batches.batch_size} "
        f"images each, {history.seconds:,.0f} s ({images / max(history.seconds, 1e-9):,.0f} images/s counted per pass). "
        "A step's loss is the mean cross-entropy of its passes, with the labels or with the softmax of the pass that teaches."
    )
    page.section("Training", text(words), picture(run.folder / "training.png", "training loss"))
    added = "The supernet has a bin or more than a width can have, so that every width has an exact complement. "
    is_one_line = counts.deviation == 0 and len(names) > plots.MOST_COLUMNS
    page.section(
        "Fairness",
        text((added if run.experiment.strategy.wide else "") + fairness_sentence(strategy, counts.deviation)),
        "" if is_one_line else picture(run.folder / "fairness.png", "training counts per bin"),
    )


def _add_search(page: Page, run: Run, search: SearchRecord) -> None:
    plots.draw_search(run.folder / "search.png", search)
    settings = search.settings
    init = settings.of_algorithm("init")
    predicted = f"predicted from {settings.additive} " if settings.additive else ""
    budgets = "".join(f", budget {budget.text}" for budget in settings.budgets)
    words = (
        f"{settings.algorithm}{f' ({init} initial population)' if init else ''}, {len(search.evaluated):,} width vectors {predicted}scored"
        f"{budgets}. Score: {plots.metric_label(settings.metric)} on images held out from training, on the "
        f"{' and the '.join(run.experiment.strategy.sides)}"
    )
    corrected = f", corrected by the true accuracies of {settings.anchors:,} networks: {plots.score_label(settings)}"
    words += f"{corrected if settings.anchors else ''}."
    scores = np.array([row.score for row in search.evaluated])
    spread = f"Scores reach from {scores.min():.4f} to {scores.max():.4f}."
    parts = [text(words), text(spread), picture(run.folder / "search.png", "search")]
    if len(search.passed) > 1:
        parts += [text("The best within each budget alone:"), _evaluated(search, search.rows(search.passed.values()), list(search.passed))]
    if search.short:
        plots.draw_short(run.folder / "short.png", search)
        short = sorted(search.short, key=lambda one: one.cross_entropy)
        rows = zip(short, search.rows([one.widths for one in short]), strict=True)
        cells = [
            (one.widths, one.proposed_by, f"{one.accuracy:.2%}", one.cross_entropy, row.score, human(row.costs["flops"]))
            for one, row in rows
        ]
        header = ("widths", "proposed by", "held-out accuracy", "cross-entropy", "score", "FLOPs")
        parts += [text(f"{search.short_sentence}."), picture(run.folder / "short.png", "short trainings"), table(header, cells)]
    top = sorted((row for row in search.evaluated if search.keeps_budgets(row)), key=lambda row: -row.score)[:10]
    parts += [text("The highest scores within all budgets:"), _evaluated(search, top)]
    page.section("Search", *parts)
    front = search.rows(search.front)
    lead = f"No other that was scored beats one of these in both score and {settings.cost.replace('flops', 'FLOPs')}; cheapest first."
    page.section(f"Pareto front: {len(front)} width vectors", text(lead), _evaluated(search, front))


def _evaluated(search: SearchRecord, rows: Sequence[EvaluatedWidths], budgets: Sequence[str] = ()) -> str:
    names, accuracy = list(rows[0].costs), search.settings.accuracy_words
    header = (*(["budget"] if budgets else []), "widths", "score", accuracy, *(name.replace("flops", "FLOPs") for name in names))
    cells = [(row.widths, row.score, f"{row.accuracy:.2%}", *(human(row.costs[name]) for name in names)) for row in rows]
    return table(header, [(budget, *row) for budget, row in zip(budgets, cells, strict=True)] if budgets else cells)


def _next_commands(run: Run, search: SearchRecord | None) -> list[str]:
    """What most would do now, ready to paste."""
    if search is None:
        return [run.search_command, run.command("score", "--widths random:300")]
    lines = [run.command("extract", f"--widths {search.best.widths} --out network")]
    if not run.retrainings():
        lines.insert(0, run.command("retrain", f"--widths {search.best.widths} --seeds 0,1,2"))
    return lines


def _add_space(page: Page, run: Run) -> None:
    rows = [(str(n), g.name, g.channels, g.unit, len(g.layers)) for n, g in enumerate(run.space.groups, start=1)]
    page.section("Groups", table(("", "first layer", "channels", "unit", "layers tied"), rows))
