"""``bcnet score`` and ``bcnet search``: what a trained supernet says of widths."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.app import Overrides, RunFolder, Say, Trust, WidthsOption, app, finish, named_widths_of_run, opened
from bcnet.errors import UserError
from bcnet.formatting import human

if TYPE_CHECKING:
    from bcnet.results import EvaluatedWidths, SearchRecord
    from bcnet.run import Run


AnchorsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="True accuracies of some widths (as of 'bcnet truth build'): additive scores are corrected by them."),
]


@app.command()
def score(
    folder: RunFolder,
    widths: WidthsOption,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write.  [default: RUN/scores.json]")] = None,
    anchors: AnchorsOption = None,
    trust: Trust = False,
) -> None:
    """Score width vectors with a trained supernet."""
    with opened(folder, overrides, trust) as (run, say):
        _take_anchors(run, anchors, say)
        wanted = named_widths_of_run(widths, run)
        target = out or folder / "scores.json"
        if run.config.score.additive:
            how = (
                f"{run.config.score.additive:,} random width vectors are evaluated, and the {len(wanted):,} asked for predicted from these"
            )
            say(f"score.additive: {how} (score.additive=null evaluates what is asked for)")
        known, before = len(run.scorer.evaluations), time.perf_counter()
        scores = run.score(wanted, target)
        evaluated = len(run.scorer.evaluations) - known
        each = f", {(time.perf_counter() - before) / evaluated:.2g} s each" if evaluated else ""
        say(f"{evaluated:,} width vectors evaluated now{each}; {known:,} had been before")
        for name, value in sorted(scores.items(), key=lambda item: -item[1])[:10]:
            say(f"{name}  {value:.4f}")
        if run.config.score.additive:
            explained = run.scorer.effects().explained
            say(f"from what widths are worth in {run.config.score.additive:,} scored ones: an additive model explains {explained:.1%}")
        sides = " and the ".join(run.experiment.strategy.sides)
        what = f"true accuracy, predicted from {len(run.scorer.anchors):,} anchors and the" if anchors else ""
        say(f"{len(scores):,} scores ({what or run.experiment.metric.label}{' supernet' if anchors else ''}, on the {sides}): {target}")


@app.command()
def search(
    folder: RunFolder,
    overrides: Overrides = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COST=VALUE",
            help="flops=150M, flops=0.5 (of the model), params=2M; may be repeated: all hold, or greedy passes one after the other.",
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="evolution, greedy, random or your own package.module:Class.  [default: the run's]"),
    ] = None,
    init: Annotated[str | None, typer.Option(metavar="prior|random", help="First generation of evolution.  [default: the run's]")] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="score|score_and_cost", help="Best score, or a Pareto front.  [default: the run's]")
    ] = None,
    anchors: AnchorsOption = None,
    short_trainings: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Train N widths for a short time from the supernet's weights; the best of them is found.  [default: the run's]",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Search the best width vector under budgets."""
    options: tuple[tuple[str, object], ...] = (
        ("search.algorithm", algorithm),
        ("search.algorithm.init", init),
        ("search.algorithm.objective", objective),
        ("search.short_trainings", short_trainings),
    )
    chosen = [*(overrides or ()), *(f"{key}={value}" for key, value in options if value is not None)]
    with opened(folder, chosen, trust) as (run, say):
        _take_anchors(run, anchors, say)
        search_widths(run, budget or (), say)
        finish(run, say, then=f"{run.command('extract', '--widths best --out network')}, or {run.command('retrain', '--widths best')}")


def _take_anchors(run: "Run", file: str | None, say: Say) -> None:
    """Let the true accuracies of a file correct the scores.

    Raises:
        UserError: it holds none of this space's widths, or scores are not additive.
    """
    if file is None:
        return
    from bcnet.truth.ground_truth import find_truth, load_ground_truth

    if not run.config.score.additive or not run.config.score.shape:
        raise UserError("--anchors correct an additive model: they want score.additive=N and score.effects=smooth")
    truth = load_ground_truth(find_truth(file))
    try:
        run.scorer.anchors = dict(zip(truth.widths_in(run.space), truth.mean.tolist(), strict=True))
    except UserError as error:
        raise UserError(f"--anchors {file}: {error}") from error
    say(f"corrected by the true accuracies of {len(run.scorer.anchors):,} networks in {file}")


def search_widths(run: "Run", budgets: Sequence[str], say: Say) -> "SearchRecord":
    """Search, measure how fast the best is, and say what was found."""
    from bcnet.distributed import process_rank

    record = run.search(*budgets)
    best, settings = record.best, record.settings
    flops, params = best.costs["flops"], best.costs["params"]
    share = f"{flops / run.costs.of_model('flops'):.0%} of {run.costs.model_name}"
    words = _accuracy(record, best)
    if run.scorer.anchors:
        words = f"predicted true accuracy {best.score:.2f} %, {words}"
    elif settings.metric != "accuracy":
        words = f"{run.experiment.metric.label} {best.score:.4f}, {words}"
    others = "".join(f", {run.costs.written(name, value)} {name}" for name, value in best.costs.items() if name not in ("flops", "params"))
    scored = f"predicted from {settings.additive:,} scored" if settings.additive else "scored"
    costs = f"{human(flops)} FLOPs ({share}), {human(params)} params{others}"
    chance = 1 / len(run.experiment.data.classes)
    if best.accuracy < chance + min(0.5 * chance, 0.05 * (1 - chance)):
        say(f"the supernet has learned next to nothing (chance is {chance:.0%}), so its scores mean little: train longer")
    what = f"best of {len(record.short):,} trained for a short time" if record.short else f"best of {len(record.evaluated):,} {scored}"
    say(f"{what}: {best.widths}, {words}, {costs}")
    if record.short:
        say(record.short_sentence)
    if process_rank() == 0:
        speed = run.measure(run.space.decode(best.widths))
        speed.write(run.folder / "speed.json")
        say(f"it takes {speed.sentence}")
    if len(record.passed) > 1:
        for text, row in zip(record.passed, record.rows(record.passed.values()), strict=True):
            say(f"within {text}: {_words(record, row)}")
    if settings.of_algorithm("objective") == "score_and_cost":
        say(f"Pareto front of score and {settings.cost}, cheapest first:")
        for row in record.rows(record.front):
            say(f"  {_words(record, row)}")
        say(f"any of them is a network: {run.command('extract', f'--widths {record.front[0]} --out network')}")
    return record


def _words(record: "SearchRecord", row: "EvaluatedWidths") -> str:
    costs = ", ".join(f"{human(value)} {'FLOPs' if name == 'flops' else name}" for name, value in row.costs.items())
    return f"{row.widths}  {row.score:.4f}, {_accuracy(record, row)}, {costs}"


def _accuracy(record: "SearchRecord", row: "EvaluatedWidths") -> str:
    return f"{record.settings.accuracy_words} {row.accuracy:.2%}"
