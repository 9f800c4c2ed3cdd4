"""How good are the widths that a search finds, and does the prior initial population help?

    python benchmarks/search_quality.py RUN [SECTION.KEY=VALUE ...] --truth FILE [--seeds 10] [--evaluations 200] [--population 20]

Scores every network of the truth with the trained supernet once. Then, under 25, 50 and 75 % of the full FLOPs, searches with
the prior initial population, with a random one, and at random, each with several search seeds and the same number of
evaluations. What a search holds for best after every evaluation is looked up in the truth. Writes ``search_quality.json``, ``.md``
and ``.png``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bcnet.files import write_json, write_text
from bcnet.machine import environment, tune_malloc
from bcnet.run import Run
from bcnet.search import SearchProblem, SearchResult
from bcnet.search.evolution import Evolution
from bcnet.search.random import RandomSearch
from bcnet.space.cost import Budget
from bcnet.space.widths import Widths
from bcnet.truth.compare import check_costs
from bcnet.truth.ground_truth import GroundTruth, find_truth, load_ground_truth
from bcnet.truth.ranking import DEFAULT_BUDGETS

WAYS = ("prior", "random", "random search")


def main() -> None:
    """Run the searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="as for `bcnet score`")
    parser.add_argument("--truth", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tune_malloc()
    run = Run.open(options.run, options.overrides)
    truth = load_ground_truth(find_truth(options.truth))
    check_costs(truth, run.costs)
    widths = [run.space.decode(name) for name in truth.names]
    scores = run.scorer.score_many(widths, "scoring")
    accuracy = dict(zip(widths, truth.mean.tolist(), strict=True))
    rows: dict[str, Any] = {}
    for text in DEFAULT_BUDGETS:
        budget = Budget.parse(text, run.costs)
        rows[text] = {"best": best_under(truth, budget), "exhaustive": None}
        allowed = [w for w in widths if run.costs.one(w, "flops") <= budget.limit]
        pick = max(allowed, key=lambda w: scores[w])
        rows[text]["exhaustive"] = {"widths": run.space.encode(pick), "accuracy": accuracy[pick]}
        for way in WAYS:
            results = [search(run, budget, way, seed, scores, options.population, options.evaluations) for seed in range(options.seeds)]
            curves = [curve(result, scores, accuracy, options.evaluations) for result in results]
            rows[text][way] = {
                "found": [run.space.encode(result.best) for result in results],
                "accuracy": [accuracy[result.best] for result in results],
                "score": [scores[result.best] for result in results],
                "accuracy_curve": np.mean([c[0] for c in curves], 0).tolist(),
                "score_curve": np.mean([c[1] for c in curves], 0).tolist(),
            }
    folder = options.out or options.run
    settings = {"seeds": options.seeds, "evaluations": options.evaluations, "population": options.population}
    write_json(folder / "search_quality.json", {"settings": settings, "budgets": rows, "environment": environment()})
    write_text(folder / "search_quality.md", table_of(rows))
    draw(folder / "search_quality.png", rows)
    print(table_of(rows))


def best_under(truth: GroundTruth, budget: Budget) -> dict[str, Any]:
    """The truly best network within a budget."""
    allowed = np.flatnonzero(truth.flops <= budget.limit)
    row = allowed[np.argmax(truth.mean[allowed])]
    return {"widths": truth.names[row], "accuracy": float(truth.mean[row])}


def search(run: Run, budget: Budget, way: str, seed: int, scores: dict[Widths, float], population: int, evaluations: int) -> SearchResult:
    """One search over the known scores."""

    def score_many(wanted: Sequence[Widths]) -> dict[Widths, float]:
        return {widths: scores[widths] for widths in wanted}

    records = run.trained.records
    assert records is not None
    problem = SearchProblem(run.space, run.costs, score_many, evaluations, (budget,), seed, records.sorted())
    rng = np.random.default_rng(seed)
    if way == "random search":
        return RandomSearch.search(problem, RandomSearch.Settings(batch_size=population), rng)
    return Evolution.search(problem, Evolution.Settings.model_validate({"population": population, "init": way}), rng)


def curve(result: SearchResult, scores: dict[Widths, float], accuracy: dict[Widths, float], length: int) -> tuple[list[float], list[float]]:
    """True accuracy and score of the best by score after every evaluation; a search that ended stays where it was."""
    held: Widths | None = None
    accuracies, best = [], []
    for widths in result.scores:
        held = widths if held is None or scores[widths] > scores[held] else held
        accuracies.append(accuracy[held])
        best.append(scores[held])
    missing = length - len(best)
    return accuracies + accuracies[-1:] * missing, best + best[-1:] * missing


def table_of(rows: dict[str, Any]) -> str:
    """Markdown: what was found and what it loses against the truly best."""
    lines = ["| budget | way | found (seed 0) | true accuracy [%] | regret [points] |", "| --- | --- | --- | --- | --- |"]
    for budget, row in rows.items():
        best = row["best"]["accuracy"]
        lines.append(f"| {budget} | truly best | {row['best']['widths']} | {best:.2f} | |")
        pick = row["exhaustive"]
        lines.append(f"| {budget} | best score of all | {pick['widths']} | {pick['accuracy']:.2f} | {best - pick['accuracy']:.2f} |")
        for way in WAYS:
            values = row[way]["accuracy"]
            spread = stdev(values) if len(values) > 1 else 0.0
            cells = (budget, way, row[way]["found"][0], f"{fmean(values):.2f} +- {spread:.2f}", f"{best - fmean(values):.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: dict[str, Any]) -> None:
    """Best score and its true accuracy against the number of evaluations, mean over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(rows), 6), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    for column, (budget, row) in enumerate(rows.items()):
        for way, colour in zip(WAYS, ("#2563eb", "#ea580c", "#94a3b8"), strict=True):
            for line, key in enumerate(("score_curve", "accuracy_curve")):
                values = row[way][key]
                axes[line][column].plot(np.arange(len(values)) + 1, values, color=colour, label=way)
        axes[1][column].axhline(row["best"]["accuracy"], color="black", linestyle=":", label="truly best")
        axes[0][column].set(title=budget)
        axes[1][column].set(xlabel="evaluations")
    axes[0][0].set(ylabel="best score so far")
    axes[1][0].set(ylabel="its true accuracy [%]")
    axes[1][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
