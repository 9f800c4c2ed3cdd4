"""``bcnet train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.app import RESUMES, Overrides, Say, Trust, app, finish, runtime

if TYPE_CHECKING:
    from bcnet.run import Run


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config such as digits/bcnetv2.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run directory.  [default: runs/CONFIG]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    trust: Trust = False,
) -> None:
    """Train a supernet."""
    from bcnet.config import load_config

    settings = load_config(config, overrides or (), trust=trust)
    folder = out or Path("runs") / "-".join(Path(config).with_suffix("").parts[-2:])
    with runtime(settings.device, then=RESUMES) as say:
        from bcnet.run import Run

        run = Run.create(folder, settings, resume=resume)
        train_supernet(run, say)
        finish(run, say, then=run.search_command)


def train_supernet(run: "Run", say: Say) -> None:
    """Train and say how it went."""
    from bcnet.machine import amp_of
    from bcnet.training.fairness import fairness_sentence
    from bcnet.training.trainer import FLUSH_STEPS

    experiment = run.experiment
    say(f"{run.config.model.name}: {run.space.summary()}")
    parts = (("train", "training"), ("val", "search-validation"), ("test", "test"))
    sizes = ", ".join(f"{experiment.data.num_images(part):,} {name}" for part, name in parts)  # type: ignore[arg-type]
    say(f"data: {sizes} images; device {experiment.device}{f', {amp_of(experiment.half)}' if experiment.half else ''}")
    trainer = run.train()
    assert trainer.counts is not None
    losses = trainer.history.loss
    last = sum(losses[-FLUSH_STEPS:]) / len(losses[-FLUSH_STEPS:])  # as the last line of the bar has it
    say(f"trained {trainer.step:,} steps, {trainer.history.passes:,} passes in {trainer.history.seconds:,.1f} s; loss {last:.3f}")
    say(f"fairness: {fairness_sentence(run.config.train.strategy.name, trainer.counts.deviation)}")
