"""``bcnet truth`` and ``bcnet compare``: ground truth, and methods held against it."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bcnet.commands.app import Overrides, Trust, TruthOption, WidthsOption, app, console, read_widths, runtime
from bcnet.errors import UserError

truth_app = typer.Typer(help="Ground truth: networks trained one by one.", no_args_is_help=True)
app.add_typer(truth_app, name="truth")


@truth_app.command("build")
def build(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config such as digits/truth.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file to write.")],
    overrides: Overrides = None,
    widths: WidthsOption = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Networks per width.")] = 3,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes.")] = os.cpu_count() or 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Spread the workers over this Ray cluster.")] = None,
    trust: Trust = False,
) -> None:
    """Train every width from scratch and write a ground-truth file in the format of Channel-Bench-Macro."""
    from bcnet.config import load_config

    settings = load_config(config, overrides or (), trust=trust)
    with runtime(settings.device) as say:
        from bcnet.experiment import Experiment
        from bcnet.report.truth_page import describe_truth, truth_lines
        from bcnet.truth.build import build_truth
        from bcnet.truth.ground_truth import load_ground_truth

        space = Experiment(settings).space
        say(f"{settings.model.name}: {space.summary()}; {seeds} seeds each on {workers} processes")
        build_truth(settings, out, read_widths(widths, space), seeds, workers=workers, ray_address=ray)
        for line in truth_lines(describe_truth(load_ground_truth(out))):
            say(line)


@truth_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A ground-truth file, or channel_bench_digits, which is built in.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write truth.html.")] = Path(),
) -> None:
    """Ranges, noise ceiling and the best under budgets of a ground-truth file, drawn."""
    from bcnet.report.truth_page import describe_truth, truth_lines, write_truth_page
    from bcnet.truth.ground_truth import find_truth, load_ground_truth

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
    competitors: Annotated[
        str, typer.Option(metavar="NAME,...|none", help="What else to ask: zero_cost, sensitivity, trained_alone.")
    ] = "zero_cost,sensitivity,trained_alone",
    trust: Trust = False,
) -> None:
    """Train several methods with equal passes over the images and say which ranks widths best."""
    from bcnet.config import load_config
    from bcnet.truth.ground_truth import find_truth, load_ground_truth

    file = find_truth(truth)
    ground_truth = load_ground_truth(file)
    names, overrides = ([one for one in configs if ("=" in one) == is_setting] for is_setting in (False, True))
    methods = {Path(name).stem: load_config(name, overrides, trust=trust) for name in names}
    if len(methods) < len(names):
        raise UserError("compare: two configs have the same file name; rename one")
    if not methods:
        raise UserError("compare: no config, only settings; name one such as digits/bcnetv2_distilled")
    first = next(iter(methods.values()))
    with runtime(first.device) as say:
        from bcnet.experiment import Experiment
        from bcnet.report.compare_page import HEADER, compare_rows, write_compare_page
        from bcnet.truth.compare import compare

        own = Experiment(first)
        ground_truth = ground_truth.in_space(own.costs)
        comparison = compare(methods, ground_truth, seeds, out, say, competitors=[] if competitors == "none" else competitors.split(","))
        table = Table(box=None, pad_edge=False)
        for column in HEADER:
            table.add_column(column, justify="left" if column == "predictor" else "right", no_wrap=column == "predictor")
        for row in compare_rows(comparison):
            table.add_row(*row)
        say(table)
        groups = [group.name for group in own.space.groups]
        say(f"page: {write_compare_page(out, comparison, ground_truth, groups, file.name)}")
