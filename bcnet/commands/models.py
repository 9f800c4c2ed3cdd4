"""``bcnet space`` and ``bcnet cost``: what a model can be cut into, and what its widths cost."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from bcnet.commands.app import WIDTHS_HELP, Trust, app, console, read_widths, stoppable
from bcnet.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from bcnet.space.cost import CostTable
    from bcnet.space.widths import Space

MODEL_HELP = (
    "channel_bench/mobilenet, channel_bench/resnet, cifar/resnet20, digits/resnet, timm/NAME, torchvision/NAME or package.module:factory."
)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
InputOption = Annotated[str | None, typer.Option("--input", metavar="CxHxW", help="Shape of one image.  [default: the model's usual one]")]
ClassesOption = Annotated[int, typer.Option(min=1, help="Number of logits.")]
ArgsOption = Annotated[
    str | None, typer.Option("--args", metavar="YAML", help="What the model is made with, as model.args has it: '{cifar_stem: true}'.")
]
BinsOption = Annotated[int, typer.Option(min=1, help="Bins K per group.")]
MinBinsOption = Annotated[int, typer.Option(min=1, help="Smallest width index k_min.")]
DivisorOption = Annotated[
    int | None,
    typer.Option(min=1, help="Channel counts are multiples of it where the full count is.  [default: 8 for timm and torchvision]"),
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="PATTERN=N,N,...", help="Channel counts of the groups with a layer of that name; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Layers whose groups stay whole; may be repeated.")
]
CostOption = Annotated[
    list[str] | None,
    typer.Option("--cost", metavar="package.module:name|TABLE.json", help="A cost beside FLOPs and params; may be repeated."),
]

WidenOption = Annotated[
    float, typer.Option("--widen", help="Make the supernet this many times as wide as the model; fractions mean the model.")
]


@dataclass(frozen=True)
class Asked:
    """How to trace a model, as the command line says it."""

    input: str | None
    num_classes: int
    bins: int
    min_bins: int
    divisor: int | None
    groups: Sequence[str]
    exclude: Sequence[str]
    costs: Sequence[str]
    widen: float
    args: dict[str, Any]


def read_shape(text: str | None, model: str) -> tuple[int, int, int]:
    """``(C, H, W)`` from ``CxHxW``, else what the model is usually run on."""
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


def read_args(text: str | None) -> dict[str, Any]:
    """What a model is made with, from a mapping in YAML."""
    from bcnet.config import read_overrides

    try:
        return {} if text is None else read_overrides([f"model.args={text}"]).model.args
    except UserError as error:
        raise UserError(f"--args {text!r} is no mapping in YAML, e.g. '{{cifar_stem: true}}'") from error


def read_choices(texts: Sequence[str]) -> dict[str, list[int]]:
    """Pattern -> channel counts from ``PATTERN=N,N,...``."""
    lists = {}
    for text in texts:
        pattern, _, counts = text.partition("=")
        try:
            lists[pattern] = [int(count) for count in counts.split(",")]
        except ValueError as error:
            raise UserError(f"--group {text!r} is not PATTERN=N,N,..., e.g. blocks.*.conv1=4,8,12,16") from error
    return lists


def trace_asked(name: str, asked: Asked) -> "tuple[nn.Module, Space, Space | None]":
    """The plain model, its proven space, and the space of the model before it was widened, if it was."""
    from bcnet.models.factory import build_model, default_divisor
    from bcnet.supernet.proof import trace, trace_for_channels
    from bcnet.supernet.widen import check_factor, widen

    check_factor(asked.widen, "--widen")
    shape = read_shape(asked.input, name)
    lists = read_choices(asked.groups)
    model, plain = build_model(name, asked.num_classes, args=asked.args), None
    divisor = asked.divisor or default_divisor(name)
    if asked.widen > 1:
        plain = trace_for_channels(model, shape, exclude=asked.exclude)
        model = widen(model, plain, asked.widen, divisor=divisor)
    space = trace(model, shape, bins=asked.bins, min_bins=asked.min_bins, divisor=divisor, choices=lists, exclude=asked.exclude)
    return model, space, plain


def _trace_model(name: str, asked: Asked) -> "CostTable":
    from bcnet.experiment import load_cost
    from bcnet.latency.table import Measured
    from bcnet.space.cost import CostTable

    _, space, plain = trace_asked(name, asked)
    of = Measured(name, asked.num_classes, read_shape(asked.input, name), asked.args)
    return CostTable(space, [load_cost(cost, space, of) for cost in asked.costs], plain)


def _say_model(costs: "CostTable") -> None:
    if costs.model is not None:
        console.print(f"the model itself, before it was widened: {costs.of_model('flops'):,} FLOPs, {costs.of_model('params'):,} params")


@app.command()
def space(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    args: ArgsOption = None,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    group: GroupOption = None,
    exclude: ExcludeOption = None,
    cost: CostOption = None,
    widen: WidenOption = 1.0,
    every: Annotated[
        str | None,
        typer.Option("--all", metavar="timm|torchvision|FILE", help="Look at all models of a library, or at those that a file names."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the page of --all, which goes on where it was.")] = Path("survey"),
    limit: Annotated[float, typer.Option(min=1, help="Seconds for one model of --all.")] = 300.0,
    trust: Trust = False,
) -> None:
    """Show the groups of a model and which layers are tied; or, with --all, what can be searched in many models."""
    from bcnet.formatting import human

    if (model is None) == (every is None):
        raise UserError("give the name of a MODEL, or --all timm, --all torchvision or --all FILE")
    refuse_options(context, ("out", "limit") if every is None else _OF_ONE_MODEL, "only for --all" if every is None else "not for --all")
    if model is None:
        _survey(str(every), input, out, limit, trust)
        return
    asked = Asked(input, num_classes, bins, min_bins, divisor, group or (), exclude or (), cost or (), widen, read_args(args))
    costs = _trace_model(model, asked)
    groups = costs.space.groups
    table = Table(box=None, pad_edge=False)
    of_model = ["of the model"] if costs.model is not None else []
    columns = ["group", "channels", *of_model, "unit", "layers whose outputs are tied"] + (["choices"] if group else [])
    for column in columns:
        table.add_column(column, justify="right" if column in ("channels", "of the model", "unit") else "left", overflow="fold")
    for number, one in enumerate(groups, start=1):
        choices = [", ".join(map(str, one.choices))] if group else []
        own = [str(costs.model_channels[number - 1])] if costs.model is not None else []
        table.add_row(str(number), str(one.channels), *own, str(one.unit), ", ".join(one.layers), *choices)
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
    _say_model(costs)
    console.print(
        "proven on both sides, for the narrowest, the widest and random widths: sliced equals extracted, also in training, and the whole "
        "with zeroed channels"
    )


_OF_ONE_MODEL = "num_classes", "args", "bins", "min_bins", "divisor", "group", "exclude", "cost", "widen"


def refuse_options(context: typer.Context, names: Sequence[str], how: str) -> None:
    """See that none of some options was given, which would do nothing: ``how`` says why."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"--{name.replace('_', '-')} is {how}")


def _survey(every: str, input: str | None, out: Path, limit: float, trust: bool) -> None:
    from bcnet.models.factory import list_models
    from bcnet.plugins import refuse_untrusted
    from bcnet.progress import ProgressBar
    from bcnet.report.survey_page import write_survey_page
    from bcnet.supernet.survey import SurveyRow, survey

    names = list_models(every)
    refuse_untrusted((("a model", name) for name in names if ":" in name), every, trust)
    shape = read_shape(input, "")
    out.mkdir(parents=True, exist_ok=True)
    bar = ProgressBar(f"space --all {every}", len(names), 0)

    def tick(done: int, row: SurveyRow) -> None:
        what = f"{row.groups} groups, {row.share:.0%} of FLOPs" if row.groups else "refused"
        bar.update(done, f"{row.model}: {what}")

    with stoppable(), bar:
        rows = survey(names, shape, out / "survey.csv", limit=limit, tick=tick)
    page = write_survey_page(out, rows, every)
    searched = [row for row in rows if row.groups]
    unequal = [row.model for row in searched if not row.equal]
    console.print(f"{len(searched)} of {len(rows)} models can be searched; refused: {len(rows) - len(searched)}")
    console.print(f"FLOPs are PyTorch's own to the last digit in {len(searched) - len(unequal)} of {len(searched)}")
    console.print(f"table: {out / 'survey.csv'}, page: {page}")


OptionalWidths = Annotated[str | None, typer.Option("--widths", metavar="W", help=WIDTHS_HELP)]
ChannelsOption = Annotated[
    str | None,
    typer.Option("--channels", metavar="FILE[:KEY]", help="A JSON list of channel counts, one per layer, such as published networks have."),
]


@app.command()
def cost(
    context: typer.Context,
    model: ModelName,
    widths: OptionalWidths = None,
    channels: ChannelsOption = None,
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    args: ArgsOption = None,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    group: GroupOption = None,
    exclude: ExcludeOption = None,
    cost: CostOption = None,
    widen: WidenOption = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """FLOPs (multiply-adds of one image), params and other costs of width vectors, or of channel counts that need not be choices."""
    if (widths is None) == (channels is None):
        raise UserError("give --widths W, or --channels FILE with a list of channel counts; one of the two")
    asked = Asked(input, num_classes, bins, min_bins, divisor, group or (), exclude or (), cost or (), widen, read_args(args))
    if channels is not None:
        refuse_options(context, _OF_CHOICES, "not for --channels")
        _cost_of_channels(model, asked, channels, as_json)
        return
    costs = _trace_model(model, asked)
    wanted = read_widths(str(widths), costs.space)
    columns = {name: costs.of_widths(wanted, name).tolist() for name in costs.names}
    rows = {costs.space.encode(w): {name: column[n] for name, column in columns.items()} for n, w in enumerate(wanted)}
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    _say_model(costs)
    for name, row in rows.items():
        more = "".join(f"  {costs.written(other, value):>10} {other}" for other, value in row.items() if other not in ("flops", "params"))
        console.print(f"{name}  {row['flops']:>14,} FLOPs  {row['params']:>12,} params{more}")


_OF_CHOICES = "bins", "min_bins", "divisor", "group", "widen"


def _cost_of_channels(name: str, asked: Asked, file: str, as_json: bool) -> None:
    from bcnet.experiment import load_cost
    from bcnet.latency.table import Measured
    from bcnet.models.factory import build_model
    from bcnet.space.channel_lists import match_channels, read_channels
    from bcnet.space.cost import CostTable
    from bcnet.supernet.proof import trace_for_channels

    counts = read_channels(file)
    shape = read_shape(asked.input, name)
    space = trace_for_channels(build_model(name, asked.num_classes, args=asked.args), shape, exclude=asked.exclude)
    found = match_channels(counts, space, file)
    of = Measured(name, asked.num_classes, shape, asked.args)
    costs = CostTable(space, [load_cost(cost, space, of) for cost in asked.costs])
    row = {cost: costs.of_channels(found.channels, cost).item() for cost in costs.names}
    if as_json:
        by_group = {group.name: count for group, count in zip(space.groups, found.channels, strict=True)}
        sys.stdout.write(json.dumps({"channels": by_group, "order": found.order} | row) + "\n")
        return
    more = "".join(f"  {costs.written(other, value):>10} {other}" for other, value in row.items() if other not in ("flops", "params"))
    console.print(f"{file}  {row['flops']:>14,} FLOPs  {row['params']:>12,} params{more}")
    wider = sum(count > group.channels for group, count in zip(space.groups, found.channels, strict=True))
    console.print(f"read as {found.order}; {wider} of {len(space.groups)} groups are wider than the model's")
