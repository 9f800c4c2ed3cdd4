"""``bcnet extract`` and ``bcnet retrain``: networks of a found width."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.app import OneWidth, Overrides, RunFolder, Say, app, finish, opened
from bcnet.errors import UserError
from bcnet.formatting import human, plural

if TYPE_CHECKING:
    from bcnet.results import RetrainRecord
    from bcnet.run import Run
    from bcnet.space.widths import Widths


@app.command()
def extract(
    folder: RunFolder,
    widths: OneWidth,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write network.safetensors and network.json.")],
    overrides: Overrides = None,
) -> None:
    """Write a subnet as a plain network that loads without the supernet."""
    with opened(folder, overrides) as (run, say):
        description = run.extract(run.space.decode(widths), out)
        costs = f"{description['flops']:,} FLOPs, {description['params']:,} params"
        accuracy = f"search-validation accuracy {description['val_accuracy']:.2f} % (its left side; scores are of {_both(run)})"
        say(f"{out}: {widths}, {costs}, {accuracy}")
        say(f'load it with: network, description = bcnet.load_network(Path("{out}"))')


def _both(run: "Run") -> str:
    sides = run.experiment.strategy.sides
    return "the left alone, too" if len(sides) == 1 else f"the {' and the '.join(sides)} together"


@app.command()
def retrain(
    folder: RunFolder,
    widths: OneWidth,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="S,S,...", help="Seeds.")] = "0,1,2",
) -> None:
    """Train a width from scratch over several seeds, beside the uniform width of the same FLOPs."""
    with opened(folder, overrides) as (run, say):
        retrain_widths(run, run.space.decode(widths), _seeds(seeds), say)
        finish(run, say)


def retrain_widths(run: "Run", widths: "Widths", seeds: list[int], say: Say) -> "RetrainRecord":
    """Retrain and say how the found and the uniform width did."""
    from statistics import fmean, stdev

    from bcnet.report.run_page import verdict

    record = run.retrain(widths, seeds)
    for kind, row in (("found", record.found), ("uniform", record.uniform)):
        name = row.widths or "-".join(map(str, row.channels)) + " channels"
        spread = f" +- {stdev(row.acc):.2f}" if len(row.acc) > 1 else ""
        accuracy = f"test accuracy {fmean(row.acc):.2f}{spread} % over {plural(len(row.acc), 'seed')}"
        say(f"{kind:8} {name}: {accuracy}, {human(row.flops)} FLOPs")
    say(verdict(record))
    return record


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r} is not a list such as 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: seeds must be different and not negative")
    return seeds
