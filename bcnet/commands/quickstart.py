"""``bcnet quickstart``: a whole experiment in one command."""

from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.app import Overrides, app, finish, runtime
from bcnet.commands.networks import retrain_widths
from bcnet.commands.rank import rank_scores
from bcnet.commands.score import search_widths
from bcnet.commands.train import train_supernet
from bcnet.errors import UserError


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write everything.")] = Path("quickstart"),
    overrides: Overrides = None,
) -> None:
    """Handwritten digits on two CPU cores in two minutes or so: supernet, search, how well it ranks, retraining, one page."""
    from bcnet.config import load_config

    settings = load_config("digits/bcnetv2_distilled", overrides or ())
    with runtime(settings.device) as say:
        from bcnet.run import Run
        from bcnet.truth.ground_truth import CHANNEL_BENCH_DIGITS, find_truth, load_ground_truth

        run = Run.create(out, settings, resume=True)
        say(
            f"[bold]1/5[/bold] train one supernet ({settings.train.strategy.name}) that holds every width of {settings.model.name}",
            markup=True,
        )
        train_supernet(run, say)
        say("[bold]2/5[/bold] search the best width at half the FLOPs", markup=True)
        best = search_widths(run, ["flops=0.5"], say).best.widths
        say(
            "[bold]3/5[/bold] score every width and ask ground truth (networks trained alone, ten each) how far scores can be trusted",
            markup=True,
        )
        try:
            load_ground_truth(find_truth(CHANNEL_BENCH_DIGITS)).in_space(run.costs)
            run.score(list(run.space.enumerate()), out / "scores.json")
            rank_scores(out / "scores.json", CHANNEL_BENCH_DIGITS, out, say)
        except UserError as error:
            say(f"not ranked: {error}")
        say(
            "[bold]4/5[/bold] train that width, the uniform one of the same FLOPs and the full model from scratch, ten seeds each",
            markup=True,
        )
        retrain_widths(run, run.space.decode(best), list(range(10)), say, full=True)
        say("[bold]5/5[/bold] draw", markup=True)
        finish(run, say)
