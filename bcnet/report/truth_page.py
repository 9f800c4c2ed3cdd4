"""What a ground-truth file holds: ranges, noise ceiling, the best under budgets; drawn."""

from pathlib import Path
from typing import Any

import numpy as np

from bcnet.benchmark.ground_truth import GroundTruth
from bcnet.benchmark.ranking import noise_ceiling, regret
from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.space.cost import human


def describe_truth(truth: GroundTruth) -> dict[str, Any]:
    """Ranges, spread, ceiling for 1..S seeds, best under 25, 50, 75 and 100 % of the largest FLOPs."""
    num_seeds = truth.acc.shape[1]
    noise = float(np.sqrt(truth.acc.var(1, ddof=1).mean())) if num_seeds > 1 else None
    floor = truth.flops.min() / truth.flops.max()
    return {
        "num_networks": len(truth),
        "num_seeds": num_seeds,
        "accuracy": {"min": float(truth.mean.min()), "median": float(np.median(truth.mean)), "max": float(truth.mean.max())},
        "flops": {"min": int(truth.flops.min()), "max": int(truth.flops.max())},
        "params": {"min": int(truth.params.min()), "max": int(truth.params.max())},
        "seed_noise": noise,
        "noise_ceiling": [noise_ceiling(truth.acc, seeds) for seeds in range(1, num_seeds + 1)] if num_seeds > 1 else [],
        "best": [regret(truth.mean, truth, f"flops={share}") for share in (0.25, 0.5, 0.75, 1.0) if share >= floor],
    }


def write_truth_page(folder: Path, truth: GroundTruth, summary: dict[str, Any], name: str) -> Path:
    """Draw ``truth.png`` and write ``truth.html``; returns the page's path."""
    plots.draw_truth(folder / "truth.png", truth.mean, truth.flops, truth.params, summary["noise_ceiling"])
    page = Page(f"bcnet: {name}", f"{len(truth):,} networks, {summary['num_seeds']} seeds each. FLOPs are multiply-adds of one image.")
    page.section("Picture", picture(folder / "truth.png", "histograms of accuracy, FLOPs and params; accuracy against FLOPs"))
    rows = [(row["budget"], row["best"], row["best_accuracy"]) for row in summary["best"]]
    page.section("Best under a budget", table(("budget", "widths", "mean accuracy [%]"), rows))
    ceilings = [(str(n), tau) for n, tau in enumerate(summary["noise_ceiling"], start=1)]
    if ceilings:
        words = f"Standard deviation of one seed: {summary['seed_noise']:.2f} points. A perfect predictor would reach, against the mean of"
        page.section("Noise", text(words), table(("seeds", "Kendall tau-b"), ceilings))
    target = folder / "truth.html"
    page.write(target)
    return target


def truth_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""
    acc = summary["accuracy"]
    lines = [
        f"{summary['num_networks']:,} networks, {summary['num_seeds']} seeds each",
        f"accuracy {acc['min']:.2f} to {acc['max']:.2f} %, median {acc['median']:.2f} %",
        *(f"{cost} {human(summary[cost]['min'])} to {human(summary[cost]['max'])}" for cost in ("flops", "params")),
    ]
    if summary["seed_noise"] is not None:
        ceilings = ", ".join(f"{tau:.3f}" for tau in summary["noise_ceiling"])
        lines.append(
            f"seed noise {summary['seed_noise']:.2f} points; noise ceiling (tau) with 1 to {summary['num_seeds']} seeds: {ceilings}"
        )
    lines += [f"best under {row['budget']}: {row['best']}, {row['best_accuracy']:.2f} %" for row in summary["best"]]
    return lines
