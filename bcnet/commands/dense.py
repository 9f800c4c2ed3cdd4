"""``bcnet dense``: how many blocks, how wide, and where they shrink."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.app import RESUMES, Overrides, Say, Trust, app, console, runtime, stoppable
from bcnet.commands.latency import Amp
from bcnet.commands.models import read_shape
from bcnet.commands.networks import read_seeds
from bcnet.errors import UserError
from bcnet.formatting import human, plural

if TYPE_CHECKING:
    from bcnet.dense.config import DenseConfig
    from bcnet.dense.results import DenseRecord, TrainedNetwork
    from bcnet.dense.run import DenseRun

dense_app = typer.Typer(help="DenseNAS: how many blocks, how wide, and where they shrink.", no_args_is_help=True)
app.add_typer(dense_app, name="dense")

ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file with a grid, or a shipped config such as dense/digits.")]
DenseFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory made by 'bcnet dense train'.")]
BudgetText = Annotated[
    str | None, typer.Option("--budget", metavar="COST=VALUE", help="Such as flops=350M, params=2M, flops=0.5 or latency=15ms.")
]
Input = Annotated[str | None, typer.Option(metavar="CxHxW", help="Shape of an image.  [default: what the data of the config has]")]
Classes = Annotated[int | None, typer.Option(min=1, help="Number of classes.  [default: what the data of the config has]")]


def _shape(config: "DenseConfig", text: str | None, classes: int | None) -> tuple[tuple[int, int, int], int]:
    """Shape of an image and number of classes, without the images where the source has always the same."""
    known = {"digits": ((1, 8, 8), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
    source = config.data.source
    if source in known:
        shape, number = known[source]
    elif config.data.root is None and ":" not in source:
        shape, number = (3, config.data.image_size or 224, config.data.image_size or 224), 1000
    elif text is None or classes is None:
        from bcnet.dense.experiment import DenseExperiment

        data = DenseExperiment(config).data
        shape, number = data.input_shape, len(data.classes)
    else:
        shape, number = (3, 224, 224), 1000
    return read_shape(text, "") if text else shape, classes or number


@dense_app.command()
def space(config: ConfigName, overrides: Overrides = None, input: Input = None, num_classes: Classes = None, trust: Trust = False) -> None:
    """The blocks and edges of a grid, how many paths it has, and what its networks cost."""
    from bcnet.config import load_as
    from bcnet.dense.config import DenseConfig
    from bcnet.dense.costs import count_grid
    from bcnet.dense.grid import Grid
    from bcnet.dense.latency import read_latency

    settings = load_as(DenseConfig, config, overrides or (), trust=trust)
    grid = Grid(settings.grid)
    shape, classes = _shape(settings, input, num_classes)
    table = settings.cost.latency
    costs = count_grid(grid, shape, classes, [read_latency(table, grid, shape, classes)] if table else [])
    sizes = grid.map_sizes(shape)
    console.print(f"{grid.summary()}; images {'x'.join(map(str, shape))}, {classes:,} classes")
    for block in grid.used:
        targets = [edge.target for edge in grid.outgoing[block]]
        names = ["end" if target == grid.end else str(grid.config.widths[target]) for target in targets]
        height, width = sizes[block]
        layers = f", up to {plural(grid.depth(block), 'layer')}" if grid.depth(block) else ""
        console.print(
            f"  {grid.config.widths[block]:>4} channels at {height}x{width}, stage {grid.stages[block]}{layers} -> {', '.join(names)}"
        )
    idle = [str(width) for block, width in enumerate(grid.config.widths) if block not in grid.used]
    if idle:
        console.print(f"on no path: blocks of width {', '.join(idle)}")
    for name in costs.names:
        low, high = costs.range(name)
        console.print(f"{name}: {human(low)} to {costs.written(name, high)}")


@dense_app.command()
def cost(
    net: Annotated[str, typer.Argument(metavar="NET", help="A net_config, or a file with one.")],
    grid: Annotated[str, typer.Option(metavar="CONFIG", help="Its grid: the images, the stem, the blocks of a table.")] = "dense/mbv2",
    input: Annotated[str | None, typer.Option(metavar="CxHxW", help="Shape of an image.  [default: the grid's]")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Number of classes.  [default: the grid's]")] = None,
    stem_stride: Annotated[int | None, typer.Option(min=1, max=2, help="Of the first convolution.  [default: the grid's]")] = None,
    latency: Annotated[Path | None, typer.Option(metavar="FILE", help="A latency table of the grid.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Multiply-adds of one image and params of a network that is written as a net_config, and its latency by a table."""
    from bcnet.config import load_as
    from bcnet.dense.config import DenseConfig
    from bcnet.dense.costs import count_network
    from bcnet.dense.grid import Grid
    from bcnet.dense.latency import read_latency
    from bcnet.models.net_config import read_net_config

    text, where = _net_text(net)
    blocks = read_net_config(text, where)
    settings = load_as(DenseConfig, grid, trust=True)
    shape, classes = _shape(settings, input, num_classes)
    stride = stem_stride or settings.grid.stem_stride
    row: dict[str, float] = dict(count_network(blocks, shape, classes, stride))
    if latency is not None:
        table = Grid(settings.grid)
        row["latency"] = read_latency(latency, table, shape, classes).of(table.find(blocks))
    if as_json:
        sys.stdout.write(json.dumps(row) + "\n")
        return
    more = f"  {row['latency']:.2f} ms latency" if "latency" in row else ""
    console.print(f"{row['flops']:,} FLOPs  {row['params']:,} params{more}")
    images = "x".join(map(str, shape))
    console.print(f"with images {images}, {classes:,} classes and a stem of stride {stride}; --grid CONFIG takes another grid's")


def _net_text(net: str) -> tuple[str, str]:
    if net.lstrip().startswith("["):
        return net, "net_config"
    from bcnet.files import read_text

    return read_text(Path(net), "a net_config, which begins with [[, or a text file with one"), net


@dense_app.command()
def latency(
    config: ConfigName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write, such as table.json.")],
    overrides: Overrides = None,
    input: Input = None,
    num_classes: Classes = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; times are of one batch.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads.  [default: as many as torch likes]")] = None,
    amp: Annotated[Amp, typer.Option(help="Autocast to bf16 or fp16.")] = Amp.off,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for every operation; more is more precise.")] = 0.3,
    repeats: Annotated[int | None, typer.Option(min=1, help="Passes of each instead.")] = None,
    trust: Trust = False,
) -> None:
    """Measure every operation of a grid on this device, as a table that cost.latency takes; the same command goes on if stopped."""
    if out.suffix != ".json" or out.is_dir():
        raise UserError(f"--out {out}: the name of a table ends with .json")
    import torch

    from bcnet.config import load_as
    from bcnet.dense.config import DenseConfig
    from bcnet.dense.costs import GridCosts
    from bcnet.dense.grid import Grid
    from bcnet.dense.latency import measure_grid, read_latency
    from bcnet.machine import HALF_TYPES, resolve_device

    settings = load_as(DenseConfig, config, overrides or (), trust=trust)
    grid, (shape, classes) = Grid(settings.grid), _shape(settings, input, num_classes)
    grid.map_sizes(shape)
    place = resolve_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    options = {"device": place, "batch_size": batch_size, "half": HALF_TYPES[amp.value], "seconds": seconds, "repeats": repeats}
    with stoppable():
        table = measure_grid(grid, shape, classes, label="latency", out=out, **options)  # type: ignore[arg-type]
    low, high = GridCosts(grid, {"latency": read_latency(out, grid, shape, classes)}).range("latency")
    console.print(f"networks take {low:.3g} to {high:.3g} ms ({table.meta.device}, {plural(table.meta.threads, 'thread')})")
    console.print(f"table: {out}; search with: --budget latency={(low + high) / 3:.3g}ms cost.latency={out}")


@dense_app.command()
def train(
    config: ConfigName,
    overrides: Overrides = None,
    budget: BudgetText = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run directory.  [default: runs/CONFIG]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    trust: Trust = False,
) -> None:
    """Search a grid: train its super network and architecture, and derive a network that keeps the budget."""
    from bcnet.config import load_as
    from bcnet.dense.config import DenseConfig

    settings = load_as(DenseConfig, config, [*(overrides or ()), *([f"cost.budget={json.dumps(budget)}"] if budget else [])], trust=trust)
    folder = out or Path("runs") / "-".join(Path(config).with_suffix("").parts[-2:])
    with runtime(settings.device, then=RESUMES) as say:
        from bcnet.dense.run import DenseRun

        run = DenseRun.create(folder, settings, resume=resume)
        search(run, say)
        _derive(run, None, say)


def search(run: "DenseRun", say: Say) -> None:
    """Search and say how it went."""
    from bcnet.machine import amp_of

    experiment = run.experiment
    say(f"{experiment.grid.summary()}")
    parts = (("train", "training"), ("val", "held-out"), ("test", "test"))
    sizes = ", ".join(f"{experiment.data.num_images(part):,} {name}" for part, name in parts)  # type: ignore[arg-type]
    say(f"data: {sizes} images; device {experiment.device}{f', {amp_of(experiment.half)}' if experiment.half else ''}")
    found = run.train()
    last = found.course[-1]
    say(f"searched {found.step:,} steps in {found.history.seconds:,.1f} s; loss {last.loss:.3f}, held out {last.held_out_loss:.3f}")


def _derive(run: "DenseRun", budget: str | None, say: Say) -> None:
    from bcnet.distributed import process_rank

    if process_rank() != 0:
        return
    from bcnet.report.dense_page import collapse_sentence, write_dense_page

    record = run.derive(budget)
    for line in _found_lines(run, record):
        say(line)
    say(collapse_sentence(record))
    say(f"page: {write_dense_page(run)}")


def _found_lines(run: "DenseRun", record: "DenseRecord") -> list[str]:
    costs, best = run.experiment.costs, record.best
    said = ", ".join(f"{costs.written(name, value)} {name.replace('flops', 'FLOPs')}" for name, value in best.costs.items())
    asked = f"budget {record.budget.text}: " if record.budget else ""
    return [
        f"{asked}found {said}; {best.val_accuracy:.2f} % of held-out images with inherited weights, best of {len(record.candidates)}",
        best.net_config,
    ]


@dense_app.command()
def derive(folder: DenseFolder, overrides: Overrides = None, budget: BudgetText = None, trust: Trust = False) -> None:
    """Take the best network from a search, within its budget or another one; writes net_config, JSON, network and page."""
    from bcnet.dense.run import DenseRun

    run = DenseRun.open(folder, overrides or (), trust=trust)
    with runtime(run.config.device) as say:
        searched = run.searched
        if searched.step < searched.total_steps:
            say(f"note: the search of {folder} stands at step {searched.step:,} of {searched.total_steps:,}")
        if not searched.course:
            raise UserError(f"{folder}: the search has not finished an epoch; continue it with bcnet dense train --resume")
        _derive(run, budget, say)


@dense_app.command()
def refine(
    folder: DenseFolder,
    overrides: Overrides = None,
    budget: BudgetText = None,
    trust: Trust = False,
) -> None:
    """Search the widths of the network that was found, at the cost that it has: trains a width supernet in RUN/refined."""
    from bcnet.commands.app import finish
    from bcnet.commands.train import train_supernet
    from bcnet.config import load_config
    from bcnet.dense.run import DenseRun, same_cost
    from bcnet.experiment import Experiment, with_divisor
    from bcnet.run import Run

    found = DenseRun.open(folder, trust=trust).record()
    settings = load_config(folder / "refine.yaml", overrides or (), trust=trust)
    text = budget or same_cost(found)
    with runtime(settings.device) as say:
        if budget is None and found.budget is not None and found.budget.cost == "latency":
            say(f"note: the search kept {found.budget.text}; widths are searched at the FLOPs of what it found, which may take longer")
        Experiment(with_divisor(settings)).parse_budgets([text])  # before anything is written
        run = Run.create(folder / "refined", settings, resume=(folder / "refined" / "config.yaml").exists())
        train_supernet(run, say)
        record = run.search(text)
        say(f"found {record.best.widths}: {human(record.best.costs['flops'])} FLOPs, {human(record.best.costs['params'])} params")
        say(f"train it from scratch with: {run.command('retrain', f'--widths {record.best.widths}')}")
        finish(run, say)


@dense_app.command()
def retrain(
    folder: DenseFolder,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="S,S,...", help="Seeds.")] = "0,1,2",
    net: Annotated[
        list[str] | None,
        typer.Option("--net", metavar="NAME=NET", help="Train another network too: a net_config, or a file with one; repeatable."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train the network that was found from scratch over several seeds, and others beside it."""
    from bcnet.dense.run import FOUND, DenseRun
    from bcnet.distributed import process_rank
    from bcnet.models.net_config import read_net_config
    from bcnet.report.dense_page import write_dense_page

    run = DenseRun.open(folder, overrides or (), trust=trust)
    wanted = {FOUND: run.found()[1]}
    for entry in net or ():
        name, equals, value = entry.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum() or name in wanted:
            raise UserError(f"--net {entry[:60]!r} is not NAME=NET with a name of its own made of letters and digits")
        wanted[name] = read_net_config(*_net_text(value))
    numbers = read_seeds(seeds)
    with runtime(run.config.device) as say:
        for name, blocks in wanted.items():
            _say_trained(run.retrain(blocks, name, numbers), say)
        if process_rank() == 0:
            say(f"page: {write_dense_page(run)}")


def _say_trained(record: "TrainedNetwork", say: Say) -> None:
    from statistics import fmean, stdev

    spread = f" ± {stdev(record.acc):.2f}" if len(record.acc) > 1 else ""
    accuracy = f"test accuracy {fmean(record.acc):.2f}{spread} % over {plural(len(record.acc), 'seed')}"
    say(f"{record.name}: {accuracy}, {human(record.costs['flops'])} FLOPs, {human(record.costs['params'])} params")
