"""``bcnet fit``."""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from bcnet.commands.app import Overrides, Trust, app, runtime
from bcnet.commands.networks import read_seeds
from bcnet.errors import UserError
from bcnet.formatting import human, plural


@app.command()
def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Such as timm/resnet18, cifar/resnet20 or package.module:factory.")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help="A YAML file or a shipped config with data and recipe.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write everything.  [default: runs/fit-MODEL]")] = None,
    seeds: Annotated[str, typer.Option(metavar="S,S,...", help="Seeds.")] = "0",
    trust: Trust = False,
) -> None:
    """Train a network as it is, by the settings under 'retrain'; the same command goes on where it was."""
    from bcnet.config import load_config, read_overrides

    if any(one.startswith("model.name=") for one in overrides or ()):
        raise UserError("model.name: MODEL says which network to train; leave it out")
    more = [f"model.name={model}", *(overrides or ())]
    settings = load_config(config, more, trust=trust) if config is not None else read_overrides(more)
    folder = out or Path("runs") / f"fit-{model.replace('/', '-').replace(':', '-')}"
    wanted = read_seeds(seeds)
    with runtime(settings.device) as say:
        from bcnet.distributed import process_rank
        from bcnet.fit import Fit
        from bcnet.report.fit_page import write_fit_page

        own = Fit(folder, settings)
        data = own.experiment.data
        say(f"{model}: {human(own.flops)} FLOPs, {human(own.params)} params")
        say(f"data: {data.num_images('full_train'):,} training, {data.num_images('test'):,} test images; device {own.experiment.device}")
        record = own.run(wanted)
        say(f"test accuracy {fmean(record.acc):.2f} % over {plural(len(record.acc), 'seed')}")
        if process_rank() == 0:
            say(f"page: {write_fit_page(own, record)}")
