"""``bcnet extract`` and ``bcnet retrain``: networks of a found width."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.app import OneWidth, Overrides, RunFolder, Say, Trust, app, finish, opened, widths_of_run
from bcnet.errors import UserError
from bcnet.formatting import human, plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bcnet.results import RetrainRecord
    from bcnet.run import Run
    from bcnet.space.widths import Widths


@app.command()
def extract(
    folder: RunFolder,
    widths: OneWidth,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the files and README.md, which says what each is.")],
    overrides: Overrides = None,
    formats: Annotated[
        str | None,
        typer.Option(
            metavar="torch,onnx|none",
            help="What runs without bcnet: network.pt2 (torch.export), network.onnx.  [default: torch, and onnx where it is installed]",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a subnet as a plain network: weights and description, a torch.export program, ONNX, and a model card."""
    from bcnet.report.model_card import write_model_card
    from bcnet.results import Speed
    from bcnet.supernet.export import FORMATS, export_network, onnx_is_installed
    from bcnet.supernet.extract import trust_argument

    wanted = (
        _formats(formats, list(FORMATS)) if formats is not None else [form for form in FORMATS if form != "onnx" or onnx_is_installed()]
    )
    with opened(folder, overrides, trust) as (run, say):
        chosen = widths_of_run(widths, run)
        network, description = run.extract(chosen, out)
        costs = f"{description['flops']:,} FLOPs, {description['params']:,} params"
        accuracy = f"search-validation accuracy {description['val_accuracy']:.2f} % (its left side; scores are of {_both(run)})"
        say(f"{out}: {run.space.encode(chosen)}, {costs}, {accuracy}")
        say(f"it takes {Speed.model_validate(description['speed']).sentence}")
        failures = []
        for form in wanted:
            try:
                say(f"{export_network(out, network, description['input_shape'], form)}: gives what the network gives")
            except UserError as error:
                failures.append(str(error))
        say(f"{write_model_card(out, description)}: what the files are and how to load them")
        say(f'load it with: network, description = bcnet.load_network(Path("{out.as_posix()}"){trust_argument(description)})')
        if formats is None and not onnx_is_installed():
            say("no ONNX: pip install 'bcnet[export]'")
        if failures:
            raise UserError("; ".join(failures))


def _formats(text: str, known: list[str]) -> list[str]:
    asked = [] if text == "none" else text.split(",")
    for form in asked:
        if form not in known:
            raise UserError(f"--formats {text!r}: {form!r} is none of {', '.join(known)}; several are joined by a comma, or it is none")
    return asked


def _both(run: "Run") -> str:
    sides = run.experiment.strategy.sides
    return "the left alone, too" if len(sides) == 1 else f"the {' and the '.join(sides)} together"


@app.command()
def retrain(
    folder: RunFolder,
    widths: Annotated[str, typer.Option("--widths", metavar="W[,W...]", help="As of extract (such as best), or several joined by commas.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="S,S,...", help="Seeds.")] = "0,1,2",
    together: Annotated[
        bool, typer.Option("--together", help="Train the widths in one network with batch norms of their own, and split it afterwards.")
    ] = False,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the supernet's weights, the found width and the uniform one alike.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Train the full model beside them: what do fewer FLOPs cost?")] = False,
    random: Annotated[int, typer.Option(min=0, metavar="N", help="Train so many random widths of the same FLOPs beside them.")] = 0,
    trust: Trust = False,
) -> None:
    """Train widths over several seeds, each beside the uniform width of the same FLOPs; from scratch unless told otherwise."""
    with opened(folder, overrides, trust) as (run, say):
        wanted = [widths_of_run(one.strip(), run) for one in widths.split(",")]
        if len(set(wanted)) < len(wanted):
            raise UserError(f"--widths {widths!r}: one stands there twice")
        if together and len(wanted) < 2:
            raise UserError(f"--together wants at least two widths, joined by commas, and --widths is {widths!r}")
        if together and inherit:
            raise UserError("--together trains from scratch: leave out --inherit")
        if together and (full or random):
            raise UserError("--together trains the given widths alone: leave out --full and --random")
        if together:
            retrain_together(run, wanted, read_seeds(seeds), say)
        else:
            for one in wanted:
                retrain_widths(run, one, read_seeds(seeds), say, inherit=inherit, full=full, num_random=random)
        finish(run, say, then=run.command("extract", f"--widths {widths.partition(',')[0]} --out network"))


def retrain_together(run: "Run", widths: "Sequence[Widths]", seeds: list[int], say: Say) -> None:
    """Train widths in one network and say how each did, beside those that were trained alone."""
    record, known = run.retrain_together(widths, seeds), run.trained_alone()
    for row in record.together:
        alone = known.get(str(row.widths))
        beside = f"; alone {_accuracy(alone.acc)}" if alone else f"; alone: {run.command('retrain', f'--widths {row.widths}')}"
        say(f"{row.widths}: test accuracy {_accuracy(row.acc)} over {plural(len(row.acc), 'seed')}, {human(row.flops)} FLOPs{beside}")


def _accuracy(values: "Sequence[float]") -> str:
    from statistics import fmean, stdev

    return f"{fmean(values):.2f}{f' +- {stdev(values):.2f}' if len(values) > 1 else ''} %"


def retrain_widths(run: "Run", widths: "Widths", seeds: list[int], say: Say, **options: "Any") -> "RetrainRecord":
    """Retrain as `bcnet.run.Run.retrain` does and say how the found width, the uniform one and others did."""
    from bcnet.report.run_page import others, verdict

    record = run.retrain(widths, seeds, **options)
    say(f"start: {'from scratch' if record.start == 'scratch' else 'the weights that the supernet has for each width'}")
    rows = {"found": record.found, "uniform": record.uniform} | ({"full": record.full} if record.full else {})
    for kind, row in rows.items():
        name = row.widths or "-".join(map(str, row.channels)) + " channels"
        costs = f"{human(row.flops)} FLOPs, {human(row.params)} params"
        say(f"{kind:8} {name}: test accuracy {_accuracy(row.acc)} over {plural(len(row.acc), 'seed')}, {costs}")
    for line in (verdict(record), *others(record)):
        say(line)
    return record


def read_seeds(text: str) -> list[int]:
    """Seeds from ``0,1,2``.

    Raises:
        UserError: it is something else.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r} is not a list such as 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: seeds must be different and not negative")
    return seeds
