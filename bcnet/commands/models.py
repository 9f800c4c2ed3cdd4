"""``bcnet space`` and ``bcnet cost``: what a model can be cut into, and what its widths cost."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bcnet.commands.app import WidthsOption, app, console, read_widths
from bcnet.errors import UserError

if TYPE_CHECKING:
    from bcnet.space.cost import CostTable

MODEL_HELP = "channel_bench/mobilenet, channel_bench/resnet, digits/resnet, timm/NAME, torchvision/NAME or package.module:factory."
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
InputOption = Annotated[str | None, typer.Option("--input", metavar="CxHxW", help="Shape of one image.  [default: the model's usual one]")]
ClassesOption = Annotated[int, typer.Option(min=1, help="Number of logits.")]
BinsOption = Annotated[int, typer.Option(min=1, help="Bins K per group.")]
MinBinsOption = Annotated[int, typer.Option(min=1, help="Smallest width index k_min.")]
DivisorOption = Annotated[int | None, typer.Option(min=1, help="Channel counts are multiples of it where the full count is.")]
GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="PATTERN=N,N,...", help="Channel counts of the groups with a layer of that name; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Layers whose groups stay whole; may be repeated.")
]
CostOption = Annotated[
    list[str] | None, typer.Option("--cost", metavar="package.module:name", help="A cost beside FLOPs and params; may be repeated.")
]


@dataclass(frozen=True)
class _Asked:
    """How to trace a model, as the command line says it."""

    input: str | None
    num_classes: int
    bins: int
    min_bins: int
    divisor: int | None
    groups: Sequence[str]
    exclude: Sequence[str]
    costs: Sequence[str]


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


def _choices(texts: Sequence[str]) -> dict[str, list[int]]:
    lists = {}
    for text in texts:
        pattern, _, counts = text.partition("=")
        try:
            lists[pattern] = [int(count) for count in counts.split(",")]
        except ValueError as error:
            raise UserError(f"--group {text!r} is not PATTERN=N,N,..., e.g. blocks.*.conv1=4,8,12,16") from error
    return lists


def _trace_model(name: str, asked: _Asked) -> "CostTable":
    from bcnet.experiment import load_cost
    from bcnet.models.factory import build_model
    from bcnet.space.cost import CostTable
    from bcnet.supernet.proof import trace

    shape = _shape(asked.input, name)
    lists = _choices(asked.groups)
    model = build_model(name, asked.num_classes)
    space = trace(model, shape, bins=asked.bins, min_bins=asked.min_bins, divisor=asked.divisor, choices=lists, exclude=asked.exclude)
    return CostTable(space, [load_cost(cost, space) for cost in asked.costs])


@app.command()
def space(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    group: GroupOption = None,
    exclude: ExcludeOption = None,
    cost: CostOption = None,
    every: Annotated[
        str | None,
        typer.Option("--all", metavar="timm|torchvision|FILE", help="Look at all models of a library, or at those that a file names."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the page of --all, which goes on where it was.")] = Path("survey"),
    limit: Annotated[float, typer.Option(min=1, help="Seconds for one model of --all.")] = 300.0,
) -> None:
    """Show the groups of a model and which layers are tied; or, with --all, what can be searched in many models."""
    from bcnet.formatting import human

    if (model is None) == (every is None):
        raise UserError("give the name of a MODEL, or --all timm, --all torchvision or --all FILE")
    _refuse(context, ("out", "limit") if every is None else _OF_ONE_MODEL, "only" if every is None else "not")
    if model is None:
        _survey(str(every), input, out, limit)
        return
    costs = _trace_model(model, _Asked(input, num_classes, bins, min_bins, divisor, group or (), exclude or (), cost or ()))
    groups = costs.space.groups
    table = Table(box=None, pad_edge=False)
    columns = ["group", "channels", "unit", "layers whose outputs are tied"] + (["choices"] if group else [])
    for column in columns:
        table.add_column(column, justify="right" if column in ("channels", "unit") else "left", overflow="fold")
    for number, one in enumerate(groups, start=1):
        choices = [", ".join(map(str, one.choices))] if group else []
        table.add_row(str(number), str(one.channels), str(one.unit), ", ".join(one.layers), *choices)
    console.print(f"{model}: {costs.space.summary()}")
    console.print(table)
    for layer, why in costs.space.fixed:
        console.print(f"fixed: {layer} ({why})")
    across = [layer.name for layer in costs.space.layers if layer.across and layer.is_searched]
    if across:
        console.print(f"normalised over the channels that are active: {across[0]}" + (f" and {len(across) - 1} more" if across[1:] else ""))
    if costs.space.fixed_flops:
        console.print(f"in no layer that is known: {human(costs.space.fixed_flops)} multiply-adds (attention, functions), at every width")
    for name in costs.names:
        low, high = costs.range(name)
        unit = costs.costs[name].unit
        console.print(f"{name}: {human(low)} to {human(high)}" + ("" if name == "params" else f" {unit}"))
    console.print(
        "proven on both sides, for the narrowest, the widest and random widths: sliced equals extracted, also in training, and the whole "
        "with zeroed channels"
    )


_OF_ONE_MODEL = "num_classes", "bins", "min_bins", "divisor", "group", "exclude", "cost"


def _refuse(context: typer.Context, names: Sequence[str], how: str) -> None:
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"--{name.replace('_', '-')} is {how} for --all")


def _survey(every: str, input: str | None, out: Path, limit: float) -> None:
    from bcnet.models.factory import list_models
    from bcnet.progress import ProgressBar
    from bcnet.report.survey_page import write_survey_page
    from bcnet.supernet.survey import SurveyRow, survey

    names = list_models(every)
    shape = _shape(input, "")
    out.mkdir(parents=True, exist_ok=True)
    bar = ProgressBar(f"space --all {every}", len(names), 0)

    def tick(done: int, row: SurveyRow) -> None:
        what = f"{row.groups} groups, {row.share:.0%} of FLOPs" if row.groups else "refused"
        bar.update(done, f"{row.model}: {what}")

    with bar:
        rows = survey(names, shape, out / "survey.csv", limit=limit, tick=tick)
    page = write_survey_page(out, rows, every)
    searched = [row for row in rows if row.groups]
    unequal = [row.model for row in searched if not row.equal]
    console.print(f"{len(searched)} of {len(rows)} models can be searched; refused: {len(rows) - len(searched)}")
    console.print(f"FLOPs are PyTorch's own to the last digit in {len(searched) - len(unequal)} of {len(searched)}")
    console.print(f"table: {out / 'survey.csv'}, page: {page}")


@app.command()
def cost(
    model: ModelName,
    widths: WidthsOption,
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    group: GroupOption = None,
    exclude: ExcludeOption = None,
    cost: CostOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """FLOPs (multiply-adds of one image), params and other costs of width vectors."""
    from bcnet.formatting import human

    costs = _trace_model(model, _Asked(input, num_classes, bins, min_bins, divisor, group or (), exclude or (), cost or ()))
    wanted = read_widths(widths, costs.space)
    columns = {name: costs.of_widths(wanted, name).tolist() for name in costs.names}
    rows = {costs.space.encode(w): {name: column[n] for name, column in columns.items()} for n, w in enumerate(wanted)}
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    for name, row in rows.items():
        more = "".join(f"  {human(value):>10} {other}" for other, value in row.items() if other not in ("flops", "params"))
        console.print(f"{name}  {row['flops']:>14,} FLOPs  {row['params']:>12,} params{more}")
