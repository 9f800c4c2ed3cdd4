"""What makes a supernet rank well: one factor changed at a time, every recipe trained over several seeds, one table.

    python benchmarks/study.py [configs/study/digits.yaml] [--out runs/study] [--only FACTOR ...]

Runs every recipe of the list through ``bcnet compare`` with as many passes over the images as the default recipe makes
(but for the factors listed under ``free_passes``). What is done already is not done again. Writes ``study.json``, ``study.md`` and
``study.png`` into the folder.
"""

import argparse
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from bcnet.config import load_config
from bcnet.files import write_json, write_text
from bcnet.machine import environment, tune_malloc
from bcnet.truth.compare import compare
from bcnet.truth.ground_truth import GroundTruth, find_truth, load_ground_truth

DEFAULT = "default"
SCORES = {"accuracy": "accuracy", "cross-entropy": "cross_entropy", "KL": "kl"}  # heads of the table's columns, and their metrics
Factors = dict[str, dict[str, dict[str, Any]]]  # factor -> recipe -> its row


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=Path("configs/study/digits.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--only", nargs="*", help="these factors only")
    options = parser.parse_args()
    tune_malloc()
    plan = yaml.safe_load(options.study.read_text())
    truth = load_ground_truth(find_truth(plan["truth"]))
    default = run_recipe(plan, truth, options.out, DEFAULT, [], free=True)
    factors: Factors = {}
    for factor, recipes in plan["factors"].items():
        if not options.only or factor in options.only:
            free = factor in plan.get("free_passes", ())
            factors[factor] = {
                str(name): run_recipe(plan, truth, options.out, f"{factor}: {name}", changes, free) for name, changes in recipes.items()
            }
    record = {"plan": plan, DEFAULT: default, "factors": factors, "noise_ceiling": default["noise_ceiling"], "environment": environment()}
    write_json(options.out / "study.json", record)
    write_text(options.out / "study.md", table_of(default, factors))
    draw(options.out / "study.png", default, factors)
    print((options.out / "study.md").read_text())


def run_recipe(plan: dict[str, Any], truth: GroundTruth, out: Path, name: str, changes: list[str], free: bool) -> dict[str, Any]:
    """Compare one recipe (with the default one, so that it gets as many passes); returns its row."""
    configs = {DEFAULT: load_config(plan["base"])} if not free else {}
    label = name.replace(": ", "-").replace(" ", "_")
    configs[label] = load_config(plan["base"], changes)
    comparison = compare(configs, truth, plan["seeds"], out / "runs", competitors=())
    method = comparison.methods[label]
    seeds = method.per_seed
    taus = {score: [seed.kendall_by_score[score] for seed in seeds] for score in seeds[0].kendall_by_score}
    print(f"{name:40} tau {fmean(seed.kendall for seed in seeds):.3f}", flush=True)
    return {
        "changes": changes,
        "kendall": [seed.kendall for seed in seeds],
        "kendall_by_score": taus,
        "kendall_of_mean_score": method.kendall_of_mean_score,
        "passes": seeds[0].passes,
        "train_seconds": fmean(seed.train_seconds for seed in seeds),
        "noise_ceiling": comparison.noise_ceiling,
    }


def _mean(values: list[float]) -> str:
    return f"{fmean(values):.3f} +- {stdev(values) if len(values) > 1 else 0:.3f}"


def _effect(row: dict[str, Any], default: dict[str, Any]) -> str:
    """Difference to the default, seed by seed, and its standard error."""
    differences = [a - b for a, b in zip(row["kendall"], default["kendall"], strict=True)]
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return f"{fmean(differences):+.3f} +- {error:.3f}"


def table_of(default: dict[str, Any], factors: Factors) -> str:
    """Markdown: a row per recipe."""
    lines = [
        f"| factor | recipe | tau (its score) | effect (standard error) | {' | '.join(SCORES)} | mean of the supernets | passes |",
        f"| --- | --- | --- | --- |{' --- |' * len(SCORES)} --- | --- |",
    ]
    rows = [("", DEFAULT, default), *((factor, name, row) for factor, recipes in factors.items() for name, row in recipes.items())]
    for factor, name, row in rows:
        by_score = row["kendall_by_score"]
        cells = (
            *(factor, name, _mean(row["kendall"]), _effect(row, default) if factor else ""),
            *(_mean(by_score[f"{score}, mean"]) for score in SCORES.values()),
            *(f"{row['kendall_of_mean_score']:.3f}", f"{row['passes']:,}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, default: dict[str, Any], factors: Factors) -> None:
    """Tau of every recipe, seeds as dots, beside the default's mean."""
    from matplotlib.figure import Figure

    rows = [(DEFAULT, default), *((f"{factor}: {name}", row) for factor, recipes in factors.items() for name, row in recipes.items())]
    figure = Figure(figsize=(8, 1 + 0.27 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, (_, row) in enumerate(rows):
        axis.plot(row["kendall"], [place] * len(row["kendall"]), "o", color="#94a3b8", markersize=4)
        axis.plot(fmean(row["kendall"]), place, "D", color="#2563eb")
    axis.axvline(fmean(default["kendall"]), color="#ea580c", linestyle="--", label="mean of the default")
    axis.axvline(default["noise_ceiling"], color="black", linestyle=":", label="ceiling")
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axis.set(xlabel="Kendall tau-b (dots: seeds; diamond: mean)", ylim=(len(rows) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
