"""The pictures and the page of a run directory, from whatever the run holds so far."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bcnet.config import METRIC_NAMES
from bcnet.report import plots
from bcnet.report.page import Page, details, picture, table, text
from bcnet.report.ranking_page import correlation_parts
from bcnet.run import Run
from bcnet.space.cost import human


def write_run_page(run: Run) -> Path:
    """Draw every picture and write ``index.html``; returns its path."""
    config, folder = run.config, run.folder
    page = Page(
        f"bcnet: {config.train.strategy} on {config.model.name}, {config.data.source}",
        f"One weight-sharing supernet; {run.space.summary()}. FLOPs are multiply-adds of one image.",
    )
    search = _read(folder / "search.json")
    if search:
        _add_found(page, run, search)
    _add_retraining(page, run)
    _add_ranking(page, run)
    _add_training(page, run)
    if search:
        _add_search(page, run, search)
    _add_space(page, run)
    environment = _read(folder / "environment.json") or {}
    page.section(
        "How it was made",
        details("config", (folder / "config.yaml").read_text(encoding="utf-8")),
        details("environment", json.dumps(environment, indent=1)),
    )
    target = folder / "index.html"
    page.write(target)
    return target


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _add_found(page: Page, run: Run, search: dict[str, Any]) -> None:
    best = search["best"]
    full = {cost: run.costs.range(cost)[1] for cost in ("flops", "params")}
    channels = {
        "full model": [group.channels for group in run.space.groups],
        f"found {best['widths']}": run.space.channels(run.space.decode(best["widths"])),
        "uniform, same FLOPs": run.uniform_channels(best["flops"]),
    }
    words = (
        f"{best['widths']}: {human(best['flops'])} FLOPs ({best['flops'] / full['flops']:.0%} of the full model), "
        f"{human(best['params'])} params ({best['params'] / full['params']:.0%}), "
        f"{METRIC_NAMES[search['settings']['metric']]} {best['score']:.4f}, accuracy in the supernet {best['accuracy']:.2%}."
    )
    plots.draw_widths(run.folder / "widths.png", [g.name for g in run.space.groups], channels)
    page.section("The width that was found", text(words), picture(run.folder / "widths.png", "channels per group"))


def _add_retraining(page: Page, run: Run) -> None:
    """Every width that was retrained so far, each beside the uniform one of its FLOPs."""
    found = [_read(path) for path in sorted((run.folder / "retrain").glob("*.json"))]
    if not found:
        return
    entries = {}
    for one in found:
        entries[one["found"]["widths"]] = one["found"]
        entries[f"uniform like {one['found']['widths']}"] = one["uniform"]
    plots.draw_retraining(run.folder / "retraining.png", {name: entry["acc"] for name, entry in entries.items()})
    rows = [
        (name, human(entry["flops"]), human(entry["params"]), len(entry["acc"]), fmean(entry["acc"]), _spread(entry["acc"]))
        for name, entry in entries.items()
    ]
    header = ("width", "FLOPs", "params", "seeds", "test accuracy [%]", "standard deviation")
    verdicts = [text(f"{one['found']['widths']}: {verdict(one)}") for one in found]
    page.section("Trained from scratch", *verdicts, table(header, rows), picture(run.folder / "retraining.png", "accuracy per seed"))


def _add_ranking(page: Page, run: Run) -> None:
    """What ``bcnet rank`` found, if it was asked."""
    ranking = _read(run.folder / "ranking.json")
    if not ranking:
        return
    lead = f"The scores of {ranking['num_networks']:,} width vectors against {ranking['truth']}."
    parts = text(lead), *correlation_parts(ranking), picture(run.folder / "ranking.png", "score against ground truth")
    page.section("How far the scores can be trusted", *parts)


def _spread(values: list[float]) -> float | str:
    return round(stdev(values), 2) if len(values) > 1 else "-"


def verdict(retrained: dict[str, Any]) -> str:
    """One honest sentence on the found width against the uniform one."""
    found, uniform = retrained["found"]["acc"], retrained["uniform"]["acc"]
    difference = fmean(found) - fmean(uniform)
    if len(found) < 2:
        return f"One seed: found minus uniform is {difference:+.2f} points; one seed cannot tell whether that is noise."
    error = ((stdev(found) ** 2 + stdev(uniform) ** 2) / len(found)) ** 0.5
    if abs(difference) <= 2 * error:
        judgement = "that is within the noise of the seeds"
    else:
        judgement = "the found width is better" if difference > 0 else "the uniform width is better"
    return f"Found minus uniform: {difference:+.2f} points (standard error {error:.2f}, {len(found)} seeds each): {judgement}."


def _add_training(page: Page, run: Run) -> None:
    trainer = run.trained
    history, counts = trainer.history, trainer.counts
    assert counts is not None
    plots.draw_training(run.folder / "training.png", history.loss, trainer.batches.steps_per_epoch, history.passes)
    names = [group.name for group in run.space.groups]
    plots.draw_fairness(run.folder / "fairness.png", counts.counts, names, f"Times every bin was trained: {run.strategy.name}")
    images = history.passes * trainer.batches.batch_size
    words = (
        f"{trainer.step:,} of {trainer.total_steps:,} steps, {history.passes:,} forward-backward passes over {trainer.batches.batch_size} "
        f"images each, {history.seconds:,.0f} s ({images / max(history.seconds, 1e-9):,.0f} images/s counted per pass). "
        "A step's loss is the mean cross-entropy of its passes, with the labels or with the softmax of the pass that teaches."
    )
    page.section("Training", text(words), picture(run.folder / "training.png", "training loss"))
    page.section(
        "Fairness",
        text(fairness_sentence(run.strategy.name, counts.deviation)),
        picture(run.folder / "fairness.png", "training counts per bin"),
    )


def fairness_sentence(strategy: str, deviation: float) -> str:
    """What the training counts say."""
    if deviation == 0:
        return f"{strategy}: every bin of every group was trained exactly as often as the others of its group."
    return f"{strategy}: the training counts of the bins differ from the mean of their group by up to {deviation:.1%}."


def _add_search(page: Page, run: Run, search: dict[str, Any]) -> None:
    plots.draw_search(run.folder / "search.png", search)
    settings = search["settings"]
    words = (
        f"{settings['algorithm']} ({settings['init']} initial population), {len(search['evaluated']):,} width vectors "
        f"{'predicted from ' + str(settings['additive']) + ' ' if settings['additive'] else ''}scored"
        f"{', budget ' + settings['budget'] if settings['budget'] else ''}. Score: {METRIC_NAMES[settings['metric']]} on images "
        f"held out from training, on the {' and the '.join(run.strategy.sides)}."
    )
    scores = np.array([row["score"] for row in search["evaluated"]])
    top = sorted(search["evaluated"], key=lambda row: -row["score"])[:10]
    rows = [(row["widths"], row["score"], f"{row['accuracy']:.2%}", human(row["flops"]), human(row["params"])) for row in top]
    spread = f"Scores reach from {scores.min():.4f} to {scores.max():.4f}."
    best = table(("widths", "score", "accuracy", "FLOPs", "params"), rows)
    page.section("Search", text(words), text(spread), picture(run.folder / "search.png", "search"), best)


def _add_space(page: Page, run: Run) -> None:
    rows = [(str(n), g.name, g.channels, g.unit, len(g.layers)) for n, g in enumerate(run.space.groups, start=1)]
    page.section("Groups", table(("", "first layer", "channels", "unit", "layers tied"), rows))
