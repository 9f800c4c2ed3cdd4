"""The ``bcnet`` command. Heavy imports happen inside the commands, so that help and mistakes answer at once."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bcnet.errors import UserError

if TYPE_CHECKING:
    from bcnet.run import Run
    from bcnet.space.widths import Space, Widths

MOST_WIDTHS = 1_000_000

app = typer.Typer(
    name="bcnet",
    help="Network width search: how many channels should every layer of a CNN have?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=5.", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory made by 'bcnet train'.")]
WidthsOption = Annotated[
    str, typer.Option("--widths", metavar="W", help="One width string, a file with one per line, random:N (always the same N), or all.")
]
TruthOption = Annotated[
    str, typer.Option(metavar="FILE", help="Ground truth, such as Results_MobileNet.json, or channel_bench_digits, which is built in.")
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="channel_bench/mobilenet, timm/NAME, torchvision/NAME or package.module:factory.")
]
InputOption = Annotated[str | None, typer.Option("--input", metavar="CxHxW", help="Shape of one image.  [default: the model's usual one]")]
ClassesOption = Annotated[int, typer.Option(min=1, help="Number of logits.")]
BinsOption = Annotated[int, typer.Option(min=1, help="Bins K per group.")]
MinBinsOption = Annotated[int, typer.Option(min=1, help="Smallest width index k_min.")]
DivisorOption = Annotated[int | None, typer.Option(min=1, help="Channel counts are multiples of it where the full count is.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes of the user are one line on stderr and exit code 2."""
    from typer.main import get_command

    try:
        code = get_command(app).main(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="bcnet", standalone_mode=True)
    except UserError as error:
        code = _complain(str(error))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        code = _complain(f"{error.filename or 'output'}: {error.strerror}")
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            raise
        print(f"bcnet: {error}", file=sys.stderr)
        code = 128 + error.signal  # type: ignore[attr-defined]
    sys.exit(code)


def _complain(message: str) -> int:
    print(f"bcnet: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def _runtime(device: str = "auto") -> Iterator[Callable[..., None]]:
    """Prepare the process (allocator, torchrun) and give a print that speaks on rank 0 only.

    Raises:
        Interrupted: Ctrl-C outside a training; what was finished is on disk.
    """
    from bcnet.runtime import process_group, rank, resolve_device, tune_malloc
    from bcnet.training.trainer import Interrupted

    tune_malloc()
    with process_group(resolve_device(device)):
        try:
            yield (lambda *args, **kwargs: console.print(*args, **kwargs) if rank() == 0 else None)
        except KeyboardInterrupt:
            raise Interrupted("stopped by SIGINT; the same command goes on where it was", signal.SIGINT) from None


# Models and costs -----------------------------------------------------------------------------------------------------


def _shape(text: str | None, model: str) -> tuple[int, int, int]:
    from bcnet.models.factory import default_input

    if text is None:
        return default_input(model)
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
        if min(channels, height, width) < 1:
            raise ValueError
    except ValueError as error:
        raise UserError(f"--input {text!r} is not CxHxW, e.g. 3x32x32") from error
    return channels, height, width


def _trace_model(name: str, shape_text: str | None, num_classes: int, bins: int, min_bins: int, divisor: int | None) -> "Space":
    from bcnet.models.factory import build_model
    from bcnet.space.trace import trace
    from bcnet.supernet.proof import prove

    shape = _shape(shape_text, name)
    model = build_model(name, num_classes)
    space = trace(model, shape, bins=bins, min_bins=min_bins, divisor=divisor)
    prove(model, space, shape)
    return space


@app.command()
def space(
    model: ModelName,
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
) -> None:
    """Show the groups of a model and which layers are tied."""
    from bcnet.space.cost import CostTable, human

    found = _trace_model(model, input, num_classes, bins, min_bins, divisor)
    table = Table(box=None, pad_edge=False)
    for column in ("group", "channels", "unit", "layers whose outputs are tied"):
        table.add_column(column, justify="right" if column in ("channels", "unit") else "left", overflow="fold")
    for number, group in enumerate(found.groups, start=1):
        table.add_row(str(number), str(group.channels), str(group.unit), ", ".join(group.layers))
    console.print(f"{model}: {found.summary()}")
    console.print(table)
    for layer, why in found.fixed:
        console.print(f"fixed: {layer} ({why})")
    costs = CostTable(found)
    for cost in ("flops", "params"):
        low, high = costs.range(cost)
        console.print(f"{cost}: {human(low)} to {human(high)}" + (" multiply-adds of one image" if cost == "flops" else ""))
    console.print("proven: sliced equals extracted for the narrowest, the widest and random widths on both sides")


@app.command()
def cost(
    model: ModelName,
    widths: WidthsOption,
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """FLOPs (multiply-adds of one image) and params of width vectors."""
    from bcnet.space.cost import CostTable

    found = _trace_model(model, input, num_classes, bins, min_bins, divisor)
    wanted = read_widths(widths, found)
    costs = CostTable(found)
    values = [costs.of_widths(wanted, cost).tolist() for cost in ("flops", "params")]
    rows = {found.encode(w): {"flops": f, "params": p} for w, f, p in zip(wanted, *values, strict=True)}
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    for name, row in rows.items():
        console.print(f"{name}  {row['flops']:>14,} FLOPs  {row['params']:>12,} params")


def read_widths(text: str, space: "Space") -> "list[Widths]":
    """Width vectors from ``all``, ``random:N``, a file with one per line, or one width string.

    Raises:
        UserError: no such file, a string that is not of the space, more than the space holds or more than a million.
    """
    if text.startswith("random:"):
        count = text.removeprefix("random:")
        if not (count.isascii() and count.isdigit()):
            raise UserError(f"--widths {text}: {count!r} is not a number of width vectors")
        if not 0 < int(count) <= min(len(space), MOST_WIDTHS):
            raise UserError(f"--widths {text}: the space has {len(space):,} width vectors, and {MOST_WIDTHS:,} is the most")
        from bcnet.search.effects import balanced_sample

        return balanced_sample(space, int(count), seed=0)
    if text == "all":
        if len(space) > MOST_WIDTHS:
            raise UserError(
                f"--widths all: the space has {len(space):.3g} width vectors, more than {MOST_WIDTHS:,}; give a file with some of them"
            )
        return list(space.enumerate())
    path = Path(text)
    if path.is_file():
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--widths {text}: not a text file with one width string per line") from error
        found = []
        for number, line in enumerate(lines, start=1):
            if line and not line.startswith("#"):
                try:
                    found.append(space.decode(line))
                except UserError as error:
                    raise UserError(f"{path}, line {number}: {error}") from error
        if not found:
            raise UserError(f"--widths {text}: the file holds no width strings")
        return list(dict.fromkeys(found))
    if os.sep in text or "." in text:
        raise UserError(f"--widths {text}: no such file")
    return [space.decode(text)]


# Supernet and search --------------------------------------------------------------------------------------------------


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config such as digits/bcnetv2.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run directory.  [default: runs/CONFIG]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
) -> None:
    """Train a supernet."""
    from bcnet.config import load_config

    settings = load_config(config, overrides or ())
    folder = out or Path("runs") / "-".join(Path(config).with_suffix("").parts[-2:])
    with _runtime(settings.device) as say:
        from bcnet.run import Run

        run = Run.create(folder, settings, resume=resume)
        train_supernet(run, say)
        finish(run, say)


def train_supernet(run: "Run", say: Callable[..., None]) -> None:
    """Train and say how it went."""
    from bcnet.report.run_page import fairness_sentence

    say(f"{run.config.model.name}: {run.space.summary()}")
    sizes = f"{len(run.data.train):,} training, {len(run.data.val):,} search-validation, {len(run.data.test):,} test images"
    say(f"data: {sizes}; device {run.device}{', bf16' if run.bf16 else ''}")
    trainer = run.train()
    assert trainer.counts is not None
    losses = trainer.history.loss
    last = sum(losses[-50:]) / len(losses[-50:])
    say(f"trained {trainer.step:,} steps, {trainer.history.passes:,} passes in {trainer.history.seconds:,.1f} s; loss {last:.3f}")
    say(f"fairness: {fairness_sentence(run.strategy.name, trainer.counts.deviation)}")


def finish(run: "Run", say: Callable[..., None]) -> None:
    """Write the page of a run, on rank 0."""
    from bcnet.report.run_page import write_run_page
    from bcnet.runtime import rank

    if rank() == 0:
        say(f"page: {write_run_page(run)}")


@contextmanager
def _opened(folder: Path, overrides: Sequence[str] | None) -> "Iterator[tuple[Run, Callable[..., None]]]":
    from bcnet.run import Run

    run = Run.open(folder, overrides or ())
    with _runtime(run.config.device) as say:
        trainer = run.trained
        if trainer.step < trainer.total_steps:
            say(f"note: the training of {folder} stands at step {trainer.step:,} of {trainer.total_steps:,}")
        yield run, say


@app.command()
def score(
    folder: RunFolder,
    widths: WidthsOption,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write.  [default: RUN/scores.json]")] = None,
) -> None:
    """Score width vectors with a trained supernet."""
    from bcnet.config import METRIC_NAMES

    with _opened(folder, overrides) as (run, say):
        wanted = read_widths(widths, run.space)
        target = out or folder / "scores.json"
        scores = run.score(wanted, target)
        for name, value in sorted(scores.items(), key=lambda item: -item[1])[:10]:
            say(f"{name}  {value:.4f}")
        if run.config.score.additive:
            explained = run.scorer_for(len(wanted)).effects().explained
            say(f"from what widths are worth in {run.config.score.additive:,} scored ones: an additive model explains {explained:.1%}")
        say(f"{len(scores):,} scores ({METRIC_NAMES[run.config.score.metric]}, on the {' and the '.join(run.strategy.sides)}): {target}")


@app.command()
def search(
    folder: RunFolder,
    overrides: Overrides = None,
    budget: Annotated[str | None, typer.Option(metavar="COST=VALUE", help="flops=150M, flops=0.5 (of the full model), params=2M.")] = None,
    init: Annotated[str | None, typer.Option(metavar="prior|random", help="First generation.")] = None,
    algorithm: Annotated[str | None, typer.Option(metavar="evolution|random", help="How to search.")] = None,
) -> None:
    """Search the best width vector under a budget."""
    chosen = [*(overrides or ())]
    chosen += [f"search.{key}={value}" for key, value in (("init", init), ("algorithm", algorithm)) if value is not None]
    with _opened(folder, chosen) as (run, say):
        search_widths(run, budget, say)
        finish(run, say)


def search_widths(run: "Run", budget: str | None, say: Callable[..., None]) -> dict[str, Any]:
    """Search and say what was found."""
    from bcnet.config import METRIC_NAMES
    from bcnet.space.cost import human

    found = run.search(budget)
    best = found["best"]
    full = run.costs.range("flops")[1]
    share = f"{best['flops'] / full:.0%} of the full model"
    metric = found["settings"]["metric"]
    score = f"accuracy in the supernet {best['accuracy']:.2%}"
    if metric != "accuracy":
        score = f"{METRIC_NAMES[metric]} {best['score']:.4f}, {score}"
    costs = f"{human(best['flops'])} FLOPs ({share}), {human(best['params'])} params"
    additive = found["settings"]["additive"]
    scored = f"predicted from {additive:,} scored" if additive else "scored"
    say(f"best of {len(found['evaluated']):,} {scored}: {best['widths']}, {score}, {costs}")
    if found["settings"]["objective"] == "score_and_cost":
        say(f"Pareto front: {len(found['front'])} width vectors in {run.folder / 'search.json'}")
    return found


@app.command()
def rank(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="A scores.json.")],
    truth: TruthOption,
    budget: Annotated[list[str] | None, typer.Option(metavar="COST=VALUE", help="Budgets for the regret; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write ranking.html.  [default: beside SCORES]")] = None,
) -> None:
    """Say how well scores rank networks, beside FLOPs, params, sum of widths and the noise ceiling."""
    page = rank_scores(scores, truth, out or scores.parent, console.print, budget or ())
    console.print(f"page: {page}")


def rank_scores(scores: Path, truth: str, folder: Path, say: Callable[..., None], budgets: Sequence[str] = ()) -> Path:
    """Hold a score file against ground truth, say the result, and write it with its page; returns the page's path."""
    from bcnet.benchmark.ground_truth import find_truth, load_ground_truth
    from bcnet.benchmark.ranking import rank
    from bcnet.benchmark.scores import check_costs_of_scores, load_scores
    from bcnet.files import write_json

    file = find_truth(truth)
    loaded = load_ground_truth(file)
    found = load_scores(scores)
    check_costs_of_scores(scores, loaded, file.name)
    result = rank(found, loaded, budgets=budgets) | {"truth": file.name}
    write_json(folder / "ranking.json", result)
    from bcnet.report.ranking_page import write_ranking_page

    page = write_ranking_page(folder, found, loaded, result, scores.name)
    say(_ranking_table(result))
    if result["noise_ceiling"] is not None:
        seeds = result["num_seeds"]
        say(f"a perfect predictor would reach tau {result['noise_ceiling']:.3f} against means of {seeds} seeds (noise ceiling)")
    for row in result["regret"]:
        say(
            f"under {row['budget']}: picks {row['pick']} ({row['pick_accuracy']:.2f} %), best {row['best']} "
            f"({row['best_accuracy']:.2f} %), regret {row['regret']:.2f}"
        )
    return page


def _ranking_table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, title=f"{result['num_networks']:,} networks", title_justify="left")
    for column in ("predictor", "Kendall tau-b", "95 % interval", "Spearman", "Pearson"):
        table.add_column(column)
    for name, row in result["predictors"].items():
        tau = row["kendall"]
        interval = f"{tau['low']:.3f} .. {tau['high']:.3f}"
        table.add_row(name, f"{tau['value']:.3f}", interval, f"{row['spearman']['value']:.3f}", f"{row['pearson']['value']:.3f}")
    return table


@app.command()
def extract(
    folder: RunFolder,
    widths: Annotated[str, typer.Option(metavar="W", help="One width string.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write network.safetensors and network.json.")],
    overrides: Overrides = None,
) -> None:
    """Write a subnet as a plain network that loads without the supernet."""
    with _opened(folder, overrides) as (run, say):
        description = run.extract(run.space.decode(widths), out)
        costs = f"{description['flops']:,} FLOPs, {description['params']:,} params"
        say(f"{out}: {widths}, {costs}, search-validation accuracy {100 * description['val_accuracy']:.2f} %")
        say(f'load it with: network, description = bcnet.load_network(Path("{out}"))')


@app.command()
def retrain(
    folder: RunFolder,
    widths: Annotated[str, typer.Option(metavar="W", help="One width string.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="S,S,...", help="Seeds.")] = "0,1,2",
) -> None:
    """Train a width from scratch over several seeds, beside the uniform width of the same FLOPs."""
    with _opened(folder, overrides) as (run, say):
        retrain_widths(run, run.space.decode(widths), _seeds(seeds), say)
        finish(run, say)


def retrain_widths(run: "Run", widths: "Widths", seeds: list[int], say: Callable[..., None]) -> dict[str, Any]:
    """Retrain and say how the found and the uniform width did."""
    from statistics import fmean, stdev

    from bcnet.report.run_page import verdict
    from bcnet.space.cost import human

    results = run.retrain(widths, seeds)
    for kind, row in results.items():
        name = row.get("widths", "-".join(map(str, row["channels"])) + " channels")
        spread = f" +- {stdev(row['acc']):.2f}" if len(row["acc"]) > 1 else ""
        accuracy = f"test accuracy {fmean(row['acc']):.2f}{spread} % over {plural(len(row['acc']), 'seed')}"
        say(f"{kind:8} {name}: {accuracy}, {human(row['flops'])} FLOPs")
    say(verdict(results))
    return results


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r} is not a list such as 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: seeds must be different and not negative")
    return seeds


truth_app = typer.Typer(help="Ground truth: networks trained one by one.", no_args_is_help=True)
app.add_typer(truth_app, name="truth")


@truth_app.command("build")
def truth_build(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config such as digits/truth.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file to write.")],
    overrides: Overrides = None,
    widths: WidthsOption = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Networks per width.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Spread the workers over this Ray cluster.")] = None,
) -> None:
    """Train every width from scratch and write a ground-truth file in the format of Channel-Bench-Macro."""
    from bcnet.benchmark.build import build_truth
    from bcnet.config import load_config
    from bcnet.report.truth_page import describe_truth, truth_lines

    settings = load_config(config, overrides or ())
    with _runtime(settings.device) as say:
        from bcnet.benchmark.ground_truth import load_ground_truth
        from bcnet.run import Run

        space = Run(out.parent, settings).space
        say(f"{settings.model.name}: {space.summary()}; {seeds} seeds each on {workers} processes")
        build_truth(settings, out, read_widths(widths, space), seeds, workers=workers, ray_address=ray)
        for line in truth_lines(describe_truth(load_ground_truth(out))):
            say(line)


@truth_app.command("show")
def truth_show(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A ground-truth file, or channel_bench_digits, which is built in.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write truth.html.")] = Path(),
) -> None:
    """Ranges, noise ceiling and the best under budgets of a ground-truth file, drawn."""
    from bcnet.benchmark.ground_truth import find_truth, load_ground_truth
    from bcnet.report.truth_page import describe_truth, truth_lines, write_truth_page

    file = find_truth(name)
    truth = load_ground_truth(file)
    summary = describe_truth(truth)
    for line in truth_lines(summary):
        console.print(line)
    console.print(f"page: {write_truth_page(out, truth, summary, file.name)}")


@app.command()
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... [KEY=VALUE]...", help="Methods to compare, the first sets the number of passes; settings for all of them."
        ),
    ],
    truth: TruthOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs, the table and the page go.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per method.")] = 5,
) -> None:
    """Train several methods with equal passes over the images and say which ranks widths best."""
    from bcnet.benchmark.compare import compare
    from bcnet.benchmark.ground_truth import find_truth, load_ground_truth
    from bcnet.config import load_config
    from bcnet.report.compare_page import HEADER, compare_rows, write_compare_page
    from bcnet.run import Run

    file = find_truth(truth)
    loaded = load_ground_truth(file)
    names, overrides = ([one for one in configs if ("=" in one) == is_setting] for is_setting in (False, True))
    methods = {Path(name).stem: load_config(name, overrides) for name in names}
    if len(methods) < len(names):
        raise UserError("compare: two configs have the same file name; rename one")
    if not methods:
        raise UserError("compare: no config, only settings; name one such as digits/bcnetv2_taught")
    first = next(iter(methods.values()))
    with _runtime(first.device) as say:
        found = compare(methods, loaded, seeds, out, say)
        table = Table(box=None, pad_edge=False)
        for column in HEADER:
            table.add_column(column, justify="left" if column == "predictor" else "right", no_wrap=column == "predictor")
        for row in compare_rows(found):
            table.add_row(*row)
        say(table)
        groups = [group.name for group in Run(out, first).space.groups]
        say(f"page: {write_compare_page(out, found, loaded, groups, file.name)}")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write everything.")] = Path("quickstart"),
    overrides: Overrides = None,
) -> None:
    """Handwritten digits on the CPU in under three minutes: supernet, search, how well it ranks, retraining, one page."""
    from bcnet.config import load_config

    settings = load_config("digits/bcnetv2_taught", overrides or ())
    with _runtime(settings.device) as say:
        from bcnet.benchmark.compare import check_costs
        from bcnet.benchmark.ground_truth import CHANNEL_BENCH_DIGITS, find_truth, load_ground_truth
        from bcnet.run import Run

        run = Run.create(out, settings, resume=True)
        say(f"[bold]1/5[/bold] train one supernet ({settings.train.strategy}) that holds every width of {settings.model.name}")
        train_supernet(run, say)
        say("[bold]2/5[/bold] search the best width at half the FLOPs")
        best = search_widths(run, "flops=0.5", say)["best"]["widths"]
        say("[bold]3/5[/bold] score every width and ask ground truth (networks trained alone, ten each) how far scores can be trusted")
        try:
            check_costs(load_ground_truth(find_truth(CHANNEL_BENCH_DIGITS)), run.costs)
            run.score(list(run.space.enumerate()), out / "scores.json")
            rank_scores(out / "scores.json", CHANNEL_BENCH_DIGITS, out, say)
        except UserError as error:
            say(f"not ranked: {error}")
        say("[bold]4/5[/bold] train that width and the uniform one of the same FLOPs from scratch, three seeds each")
        retrain_widths(run, run.space.decode(best), [0, 1, 2], say)
        say("[bold]5/5[/bold] draw")
        finish(run, say)
