"""How good are the widths that searches find: greedy slimming, evolution, random search; and does the prior help?

    python benchmarks/search_quality.py RUN [SECTION.KEY=VALUE ...] --truth FILE [--seeds 10] [--evaluations 200] [--population 20]
    python benchmarks/search_quality.py SCORES.json [--truth FILE] [...]

A RUN scores every network of the truth with its trained supernet once; SCORES.json holds scores of a whole space already (without
the training's loss records, so without the prior). Greedy slimming descends once past 25, 50 and 75 % of the full FLOPs, by score
and by score per FLOP. The others search under each budget with several seeds and the same number of evaluations, and once more with
as many as greedy had made when it passed the budget. What a search finds is looked up in the truth, if there is one. Then each makes
a Pareto front with as many evaluations as the whole descent, of which the hypervolume is compared. Writes ``search_quality.json``,
``.md`` and ``.png``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bcnet.files import write_json, write_text
from bcnet.machine import environment, tune_malloc
from bcnet.models.factory import build_model, default_input
from bcnet.run import Run
from bcnet.search import SearchProblem, SearchResult
from bcnet.search.evolution import Evolution
from bcnet.search.greedy import GreedySlimming
from bcnet.search.random import RandomSearch
from bcnet.space.cost import CostTable, parse_budgets
from bcnet.space.trace import trace
from bcnet.space.widths import Widths
from bcnet.truth.ground_truth import find_truth, load_ground_truth
from bcnet.truth.ranking import DEFAULT_BUDGETS
from bcnet.truth.score_files import load_scores

GREEDY = {"greedy": False, "greedy per FLOP": True}


@dataclass(frozen=True)
class Known:
    """Scores of a whole space, and maybe true accuracies."""

    costs: CostTable
    scores: dict[Widths, float]
    accuracy: dict[Widths, float]
    records: Sequence[tuple[float, Widths]]

    def problem(self, budgets: Sequence[str], evaluations: int, seed: int) -> SearchProblem:
        """A search among them."""
        parsed = parse_budgets(budgets, self.costs, passed=True)
        return SearchProblem(self.costs.space, self.costs, self._look_up, evaluations, parsed, seed, self.records)

    def _look_up(self, wanted: Sequence[Widths]) -> dict[Widths, float]:
        return {widths: self.scores[widths] for widths in wanted}

    def best_under(self, budget: str, values: dict[Widths, float]) -> Widths:
        """The best of all within a budget."""
        problem = self.problem([budget], 0, 0)
        return max((widths for widths in values if problem.keeps_budgets(widths)), key=lambda widths: values[widths])


def main() -> None:
    """Run the searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RUN|SCORES.json")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="as for `bcnet score`")
    parser.add_argument("--truth", help="a RUN needs one")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tune_malloc()
    known = from_run(options) if options.source.is_dir() else from_scores(options.source, options.truth)
    descents = {way: descend(known, per_cost) for way, per_cost in GREEDY.items()}
    rows: dict[str, Any] = {}
    for place, budget in enumerate(DEFAULT_BUDGETS):
        rows[budget] = {"best score of all": described(known, [known.best_under(budget, known.scores)])}
        if known.accuracy:
            rows[budget]["truly best"] = described(known, [known.best_under(budget, known.accuracy)])
        for way, descent in descents.items():
            alone = descend(known, GREEDY[way], budget)
            rows[budget][way] = described(known, [descent.passed[place]]) | {"evaluations": len(alone.scores)}
        as_greedy = rows[budget]["greedy"]["evaluations"]
        for evaluations in (as_greedy, options.evaluations):
            for way in ways(known):
                results = [search(known, budget, way, seed, evaluations, options.population) for seed in range(options.seeds)]
                curves = [curve(result, known, evaluations) for result in results]
                rows[budget][f"{way}, {evaluations}"] = described(known, [result.best for result in results]) | {
                    "evaluations": evaluations,
                    "score_curve": np.mean([c[0] for c in curves], 0).tolist(),
                    "accuracy_curve": np.mean([c[1] for c in curves], 0).tolist(),
                }
    fronts = compare_fronts(known, descents, options.population, options.seeds)
    folder = options.out or (options.source if options.source.is_dir() else options.source.parent)
    settings = {"seeds": options.seeds, "evaluations": options.evaluations, "population": options.population}
    found = {"settings": settings, "budgets": rows, "hypervolume": fronts, "environment": environment()}
    write_json(folder / "search_quality.json", found)
    write_text(folder / "search_quality.md", table_of(rows, fronts))
    draw(folder / "search_quality.png", rows)
    print(table_of(rows, fronts))


def from_run(options: argparse.Namespace) -> Known:
    """All networks of the truth, scored by a trained supernet."""
    run = Run.open(options.source, options.overrides)
    truth = load_ground_truth(find_truth(options.truth)).in_space(run.costs)
    widths = truth.widths_in(run.space)
    records = run.trained.records
    accuracy = dict(zip(widths, truth.mean.tolist(), strict=True))
    return Known(run.costs, run.scorer.score_many(widths, "scoring"), accuracy, records.sorted() if records else [])


def from_scores(path: Path, truth_name: str | None) -> Known:
    """A file of scores of a whole space."""
    file = load_scores(path)
    model = file.meta["config"]["model"]["name"]
    costs = CostTable(trace(build_model(model, 10), default_input(model)))
    scores = {costs.space.decode(name): score for name, score in file.scores.items()}
    accuracy = {}
    if truth_name:
        truth = load_ground_truth(find_truth(truth_name)).in_space(costs)
        accuracy = dict(zip(truth.widths_in(costs.space), truth.mean.tolist(), strict=True))
    return Known(costs, scores, accuracy, [])


def ways(known: Known) -> list[str]:
    """Searches with a number of evaluations."""
    return [*(["evolution, prior"] if known.records else []), "evolution, random", "random search"]


def descend(known: Known, per_cost: bool, *budgets: str) -> SearchResult:
    """One greedy descent."""
    wanted = budgets or sorted(DEFAULT_BUDGETS, reverse=True)
    problem = known.problem(wanted, 1, 0)
    result = GreedySlimming.search(problem, GreedySlimming.Settings(per_cost=per_cost), np.random.default_rng(0))
    by_budget = dict(zip(wanted, result.passed, strict=True))
    return replace(result, passed=[by_budget[budget] for budget in budgets or DEFAULT_BUDGETS])


def search(known: Known, budget: str, way: str, seed: int, evaluations: int, population: int) -> SearchResult:
    """One search under a budget."""
    problem, rng = known.problem([budget], evaluations, seed), np.random.default_rng(seed)
    if way == "random search":
        return RandomSearch.search(problem, RandomSearch.Settings(batch_size=population), rng)
    init = way.removeprefix("evolution, ")
    return Evolution.search(problem, Evolution.Settings.model_validate({"population": population, "init": init}), rng)


def compare_fronts(known: Known, descents: dict[str, SearchResult], population: int, seeds: int) -> dict[str, list[float]]:
    """Hypervolume of FLOPs and score, relative to that of the whole space's front, with equal evaluations."""
    evaluations = len(descents["greedy"].scores)
    fronts = {way: [result.front] for way, result in descents.items()}
    settings = Evolution.Settings.model_validate({"population": population, "init": "random", "objective": "score_and_cost"})
    for way in ("evolution, score and cost", "random search"):
        fronts[way] = []
        for seed in range(seeds):
            problem, rng = known.problem([DEFAULT_BUDGETS[-1]], evaluations, seed), np.random.default_rng(seed)
            if way == "random search":
                result = RandomSearch.search(problem, RandomSearch.Settings(batch_size=population), rng)
            else:
                result = Evolution.search(problem, settings, rng)
            fronts[way].append(result.front)
    full = known.costs.range("flops")[1]
    limit = known.problem([DEFAULT_BUDGETS[-1]], 0, 0).budgets[0].limit
    lowest = known.scores[known.costs.space.narrowest]
    whole = SearchResult.of_scores(known.scores, [], known.problem([], 0, 0)).front

    def volume(front: Sequence[Widths]) -> float:
        from pymoo.indicators.hv import HV

        points = [(known.costs.one(w, "flops") / full, -known.scores[w]) for w in front if known.costs.one(w, "flops") <= limit]
        return float(HV(ref_point=np.array([limit / full, -lowest]))(np.array(points)))

    return {f"{way} ({evaluations} evaluations)": [volume(front) / volume(whole) for front in found] for way, found in fronts.items()}


def described(known: Known, found: Sequence[Widths]) -> dict[str, Any]:
    """Width strings, scores and true accuracies."""
    row: dict[str, Any] = {"found": [known.costs.space.encode(widths) for widths in found], "score": [known.scores[w] for w in found]}
    return row | ({"accuracy": [known.accuracy[widths] for widths in found]} if known.accuracy else {})


def curve(result: SearchResult, known: Known, length: int) -> tuple[list[float], list[float]]:
    """Score and true accuracy of the best by score after every evaluation; a search that ended stays where it was."""
    held: Widths | None = None
    best, accuracies = [], []
    for widths in result.scores:
        held = widths if held is None or known.scores[widths] > known.scores[held] else held
        best.append(known.scores[held])
        accuracies.append(known.accuracy.get(held, float("nan")))
    missing = length - len(best)
    return best + best[-1:] * missing, accuracies + accuracies[-1:] * missing


def table_of(rows: dict[str, Any], fronts: dict[str, list[float]]) -> str:
    """Markdown: what was found, and what it loses against the truly best or the highest score."""
    true = "truly best" in next(iter(rows.values()))
    key, unit, digits = ("accuracy", "true accuracy [%]", 2) if true else ("score", "score", 4)
    lines = [f"| budget | way | evaluations | found (seed 0) | {unit} | regret |", "| --- | --- | --- | --- | --- | --- |"]
    for budget, ways in rows.items():
        best = max(ways["truly best" if true else "best score of all"][key])
        for way, row in ways.items():
            values = row[key]
            spread = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
            number, mean = row.get("evaluations", ""), fmean(values)
            lines.append(f"| {budget} | {way} | {number} | {row['found'][0]} | {mean:.{digits}f}{spread} | {best - mean:.{digits}f} |")
    lines += ["", "| way | hypervolume of the front, relative to the whole space's |", "| --- | --- |"]
    for way, values in fronts.items():
        spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
        lines.append(f"| {way} | {fmean(values):.4f}{spread} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: dict[str, Any]) -> None:
    """Best score and its true accuracy against the number of evaluations, mean over the seeds; greedy as a point."""
    from matplotlib.figure import Figure

    true = "truly best" in next(iter(rows.values()))
    keys = ("score", "accuracy")[: 1 + true]
    figure = Figure(figsize=(4 * len(rows), 3 * len(keys)), layout="constrained")
    axes = figure.subplots(len(keys), len(rows), squeeze=False)
    colours = ("#2563eb", "#ea580c", "#94a3b8")
    for column, (budget, ways) in enumerate(rows.items()):
        most = max(row.get("evaluations", 0) for row in ways.values())
        curves = {way: row for way, row in ways.items() if "score_curve" in row and row["evaluations"] == most}
        for line, key in enumerate(keys):
            for (way, row), colour in zip(curves.items(), reversed(colours), strict=False):
                values = row[f"{key}_curve"]
                axes[line][column].plot(np.arange(len(values)) + 1, values, color=colour, label=way.rpartition(",")[0])
            for way, marker in zip(GREEDY, ("*", "P"), strict=True):
                axes[line][column].plot(ways[way]["evaluations"], ways[way][key][0], marker, color="black", markersize=9, label=way)
        axes[0][column].set(title=budget)
        axes[-1][column].set(xlabel="evaluations")
        if true:
            axes[1][column].axhline(ways["truly best"]["accuracy"][0], color="black", linestyle=":", label="truly best")
    for line, name in enumerate(("best score so far", "its true accuracy [%]")[: len(keys)]):
        axes[line][0].set(ylabel=name)
    axes[-1][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
