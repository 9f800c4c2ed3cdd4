"""``bcnet rank``: how far scores can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bcnet.commands.app import Say, TruthOption, app, console
from bcnet.formatting import coefficient

if TYPE_CHECKING:
    from bcnet.results import Ranking, Regret


@app.command()
def rank(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="A scores.json.")],
    truth: TruthOption,
    budget: Annotated[list[str] | None, typer.Option(metavar="COST=VALUE", help="Budgets for the regret; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write ranking.html.  [default: beside SCORES]")] = None,
) -> None:
    """Say how well scores rank networks, beside FLOPs, params, sum of widths and the noise ceiling."""
    page = rank_scores(scores, truth, out or scores.parent, console.print, budget or ())
    console.print(f"page: {page}")


def rank_scores(scores: Path, truth: str, folder: Path, say: Say, budgets: Sequence[str] = ()) -> Path:
    """Hold a score file against ground truth, say the result, and write it with its page; returns the page's path."""
    from bcnet.truth.ground_truth import find_truth, load_ground_truth
    from bcnet.truth.ranking import left_out, rank
    from bcnet.truth.score_files import check_costs_of_scores, load_scores

    truth_file = find_truth(truth)
    ground_truth = load_ground_truth(truth_file)
    score_file = load_scores(scores)
    if check_costs_of_scores(score_file, scores, ground_truth, truth_file.name):
        ground_truth = ground_truth.with_costs(score_file.costs, score_file.meta.get("full"))
    else:
        say(f"the supernet saw images of another size than the networks of {truth_file.name}; FLOPs are those of the truth")
    ranking = rank(score_file.scores, ground_truth, budgets=budgets, truth_name=truth_file.name)
    ranking.write(folder / "ranking.json")
    from bcnet.report.ranking_page import write_ranking_page

    page = write_ranking_page(folder, score_file.scores, ground_truth, ranking, scores.name)
    say(_ranking_table(ranking))
    if ground_truth.has_channels:
        say(f"accuracies in {truth_file.name} are {ground_truth.meta['accuracy']}")
    for line in left_out(score_file.scores, ground_truth, ranking):
        say(line)
    if ranking.noise_ceiling is not None:
        seeds = ranking.num_seeds
        say(f"a perfect predictor would reach tau {ranking.noise_ceiling:.3f} against means of {seeds} seeds (noise ceiling)")
    for row in ranking.regret:
        say(
            f"under {row.budget}: picks {row.picked} ({row.pick_accuracy:.2f} %), best {row.best} "
            f"({row.best_accuracy:.2f} %), regret {row.regret:.2f}{_instead(row)}"
        )
    return page


def _instead(row: "Regret") -> str:
    if row.instead is None:
        return ""
    uniform = f"the uniform width {row.instead.uniform:.2f} %, " if row.instead.uniform is not None else ""
    return f"; at this cost {uniform}a random width {row.instead.random_mean:.2f} %, the best of ten {row.instead.random_best:.2f} %"


def _ranking_table(ranking: "Ranking") -> Table:
    table = Table(box=None, pad_edge=False, title=f"{ranking.num_networks:,} networks", title_justify="left")
    for column in ("predictor", "Kendall tau-b", "95 % interval", "Spearman", "Pearson"):
        table.add_column(column)
    for name, row in ranking.predictors.items():
        tau, rho, r = (coefficient(one.value) for one in (row.kendall, row.spearman, row.pearson))
        table.add_row(name, tau, f"{coefficient(row.kendall.low)} .. {coefficient(row.kendall.high)}", rho, r)
    return table
