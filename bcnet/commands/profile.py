"""``bcnet profile``: what an experiment will cost before it is begun."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from bcnet.commands.app import Overrides, Say, Trust, app, console, runtime
from bcnet.commands.models import refuse_options
from bcnet.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcnet.config import Config
    from bcnet.experiment import Experiment
    from bcnet.space.cost import Budget


@app.command()
def profile(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(metavar="CONFIG|MODEL", help="As for `bcnet train`, or a model's name, which is then fed with noise.")
    ],
    overrides: Overrides = None,
    budget: Annotated[list[str] | None, typer.Option(metavar="COST=VALUE", help="flops=150M, flops=0.5, latency=3.5ms.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Training images to reckon with, for a MODEL.")] = 50_000,
    num_classes: Annotated[int, typer.Option(min=1, help="Number of logits, for a MODEL.")] = 10,
    input: Annotated[str | None, typer.Option(metavar="CxHxW", help="Shape of one image, for a MODEL.  [default: its usual one]")] = None,
    costs_only: Annotated[bool, typer.Option("--costs-only", help="Leave out time and memory, which take up to a minute or two.")] = False,
    trust: Trust = False,
) -> None:
    """Show what widths cost, how many meet a budget, and what training and search will take on this machine."""
    if not _is_model(config):
        refuse_options(context, ("images", "num_classes", "input"), "only for a MODEL: a config has its own")
    settings = (
        _config_of_model(config, overrides or (), images, num_classes, input) if _is_model(config) else _config(config, overrides, trust)
    )
    with runtime(settings.device) as say:
        from bcnet.experiment import Experiment

        experiment = Experiment(settings)
        _say_costs(experiment, experiment.parse_budgets(budget or ()), say)
        if not costs_only:
            _say_work(experiment, say)


def _config(name: str, overrides: "list[str] | None", trust: bool) -> "Config":
    from bcnet.config import load_config
    from bcnet.experiment import with_divisor

    return with_divisor(load_config(name, overrides or (), trust=trust))


def _is_model(name: str) -> bool:
    from bcnet.config import find_config
    from bcnet.models.factory import OWN_MODELS

    try:
        find_config(name)
    except UserError:
        return name in OWN_MODELS or name.startswith(("timm/", "torchvision/")) or ":" in name
    return False


def _config_of_model(name: str, overrides: "Sequence[str]", images: int, num_classes: int, input: str | None) -> "Config":
    """The default recipe for a model, with noise for images."""
    from bcnet.commands.models import read_shape
    from bcnet.config import apply_override, validate_config
    from bcnet.experiment import with_divisor

    shape = list(read_shape(input, name))
    data = {"source": "bcnet.data.noise:Noise", "num_val": 2000, "args": {"shape": shape, "classes": num_classes, "images": images}}
    tree: dict[str, Any] = {"model": {"name": name}, "data": data}
    for override in overrides:
        apply_override(tree, override)
    return with_divisor(validate_config(tree, f"profile {name}"))


def _say_costs(experiment: "Experiment", budgets: "Sequence[Budget]", say: Say) -> None:
    from bcnet.forecast import count_within, reach
    from bcnet.formatting import human

    costs = experiment.costs
    say(f"{experiment.config.model.name}: {costs.space.summary()}")
    table = Table(box=None, pad_edge=False)
    for column in ("cost", "narrowest", "typical", "widest", costs.model_name.replace("the ", "")):
        table.add_column(column, justify="left" if column == "cost" else "right")
    for row in reach(costs):
        whole = costs.of_model(row.name)
        cells = [costs.written(row.name, value) for value in (row.low, row.typical, row.high)]
        table.add_row(row.name.replace("flops", "FLOPs"), *cells, "-" if whole is None else costs.written(row.name, whole))
    console.print(table)
    if budgets:
        number, exact = count_within(costs, budgets)
        share = number / costs.space.size
        size = f"{costs.space.size:,}" if exact else human(costs.space.size)
        count = f"{int(number):,}" if exact else f"about {human(number)}" if number else "fewer than one in 200,000"
        kept = " and ".join(f"{one.cost} <= {costs.written(one.cost, one.limit)}" for one in budgets)
        say(f"{kept}: met by {count} of {size} width vectors ({share:.2%})")


def _say_work(experiment: "Experiment", say: Say) -> None:
    from bcnet.forecast import work
    from bcnet.formatting import duration

    found, recipe = work(experiment), experiment.config.train
    whole = duration(found.steps * found.step_seconds)
    say(
        f"training ({recipe.strategy.name}, {recipe.epochs:g} epochs of {experiment.data.num_images('train'):,} images in batches of "
        f"{recipe.batch_size}, passes per step: {found.passes}): {found.step_seconds:.3g} s per step, "
        f"{found.images_per_second:,.0f} images/s, {found.steps:,} steps: {whole}"
    )
    say(
        f"search ({experiment.config.search.algorithm.name}): {found.width_seconds:.3g} s per scored width vector, up to {found.widths:,}: "
        f"{duration(found.widths * found.width_seconds)}, less where they share layers"
    )
    if found.short_steps:
        say(
            f"short trainings: {experiment.config.search.short_trainings} of {experiment.short_steps:,} steps, up to "
            f"{found.short_step_seconds:.3g} s per step: up to {duration(found.short_steps * found.short_step_seconds)}"
        )
    whose = "GPU" if found.device == "cuda" else "process"
    say(f"memory: {'not known on this system' if found.gib is None else f'{found.gib:.2g} GiB of the {whose} at most'}")
