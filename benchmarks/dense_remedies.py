"""What keeps a search among operations from collapsing to one of them, and is it better for it?

    python benchmarks/dense_remedies.py [--config dense/digits] [--seeds 0,1,2] [--networks 30] [--truth-seeds 0,1]
        [--work runs/dense_remedies] [--out benchmarks/results/dense_remedies] [key=value ...]

The grid is searched as published and with every remedy, with several seeds each. Measured: whether an operation took over; how equally
operations were trained; how well the inherited weights rank random networks that were also trained alone (Kendall's tau of their
cross-entropies on held-out images and those networks' test accuracies); and the test accuracy of what was found, trained from scratch.

Every finished part is a file in the work folder, and the same command goes on where it was.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from measure import once
from scipy.stats import kendalltau

from bcnet.config import load_as
from bcnet.dense.config import DenseConfig
from bcnet.dense.derive import inherit
from bcnet.dense.draw import draw_networks
from bcnet.dense.experiment import DenseExperiment
from bcnet.dense.grid import Choice
from bcnet.dense.run import DenseRun
from bcnet.errors import Interrupted
from bcnet.files import write_json, write_text
from bcnet.machine import environment, tune_malloc
from bcnet.models.net_config import NetConfig
from bcnet.report.dense_page import collapse_sentence
from bcnet.scoring.evaluate import evaluate
from bcnet.seeds import STREAM_SAMPLE, derive_seed

REMEDIES: dict[str, list[str]] = {
    "as published": [],
    "uniform sampling": ["weights.sampling=uniform"],
    "fair sampling": ["weights.sampling=fair"],
    "temperature 5 to 1": ["architecture.temperature=5", "architecture.final_temperature=1"],
    "cost warmed up": ["cost.warmup_epochs=5"],
    "superkernel": ["weights.superkernel=true"],
    "superkernel, fair": ["weights.superkernel=true", "weights.sampling=fair"],
}
PUBLISHED = ["weights.sampling=probable", "weights.superkernel=false"]
FOUR = "[mbconv_k3_t3, mbconv_k3_t6, mbconv_k5_t3, mbconv_k5_t6]"


def main() -> None:
    """Make or continue the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="dense/digits")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--networks", type=int, default=30, help="random networks that are trained alone")
    parser.add_argument("--truth-seeds", default="0,1")
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--work", type=Path, default=Path("runs/dense_remedies"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dense_remedies"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    tune_malloc()
    common = [f"grid.head={FOUR}", f"grid.stack={FOUR}", f"cost.budget={options.budget}", *PUBLISHED, *options.overrides]
    study = Study(options, common)
    rows = {name: [study.searched(name, seed) for seed in map(int, options.seeds.split(","))] for name in REMEDIES}
    base = study.experiment
    record = {"rows": rows, "truth": study.truth(), "config": base.config.model_dump(mode="json"), "environment": environment(base.device)}
    write_record(record, options.out)
    print(f"record: {options.out / 'record.md'}")


class Study:
    """Random networks, their accuracies alone, and one search at a time."""

    def __init__(self, options: argparse.Namespace, common: Sequence[str]) -> None:
        self.options, self.common = options, list(common)
        self.experiment = DenseExperiment(load_as(DenseConfig, options.config, self.common))
        self.seeds = [int(seed) for seed in options.truth_seeds.split(",")]
        rng = np.random.default_rng(derive_seed(0, STREAM_SAMPLE))
        price = self.experiment.costs.costs["flops"]
        low, high = self.experiment.costs.range("flops")
        edges = np.linspace(low, 0.8 * high, 4)  # a third of them from every third of the range
        per_part = -(-options.networks // 3)
        self.choices: list[Choice] = []
        for start, stop in pairwise(edges):
            self.choices += draw_networks(self.experiment.grid, price, start, stop, per_part, rng)

    def truth(self) -> list[list[float]]:
        """Test accuracies of the random networks trained alone, one for every seed."""
        return [self.alone(self.experiment.grid.net_config(choice)) for choice in self.choices]

    def alone(self, net: NetConfig) -> list[float]:
        """Test accuracies of a network trained from scratch."""
        folder = self.options.work / "alone" / hashlib.sha256(str(net).encode()).hexdigest()[:16]
        return [once(folder / f"{seed}.json", {"net": str(net)}, partial(self._train, net, seed)) for seed in self.seeds]

    def _train(self, net: NetConfig, seed: int) -> float:
        network = self.experiment.train_network(net, seed, label="alone")
        return 100 * evaluate(network, self.experiment.test, half=self.experiment.half)["accuracy"]

    def searched(self, name: str, seed: int) -> dict[str, Any]:
        """What a search came to."""
        folder = self.options.work / name.replace(" ", "-").replace(",", "") / str(seed)
        config = load_as(DenseConfig, self.options.config, [*self.common, *REMEDIES[name], f"seed={seed}"])
        run = DenseRun.create(folder, config, resume=(folder / "config.yaml").exists())
        settings = {"config": config.model_dump(mode="json"), "networks": len(self.choices)}
        return dict(once(folder / "measured.json", settings, lambda: self._measure(run)))

    def _measure(self, run: DenseRun) -> dict[str, Any]:
        run.train()
        record = run.derive()
        network, experiment = run.searched.network, run.experiment
        losses, accuracies = [], []
        for choice in self.choices:
            plain = inherit(network, choice, 0.0, experiment.calibration, experiment.validation, half=experiment.half).network
            values = evaluate(plain, experiment.validation, half=experiment.half)
            losses.append(values["cross_entropy"])
            accuracies.append(100 * values["accuracy"])
        first, last = record.epochs[0].shares, record.epochs[-1].shares
        most = max(last, key=lambda name: last[name])
        return {
            "loss": record.epochs[-1].loss,
            "most": most,
            "share": last[most],
            "growth": last[most] / first[most],
            "collapsed": not collapse_sentence(record).startswith("No"),
            "deviation": record.operation_deviation,
            "shares": [epoch.shares for epoch in record.epochs],
            "tau": float(kendalltau([-loss for loss in losses], [fmean(row) for row in self.truth()]).statistic),
            "inherited": fmean(accuracies),
            "found": self.alone(run.found()[1]),
            "flops": record.best.costs["flops"],
            "seconds": record.search_seconds,
        }


# The record ------------------------------------------------------------------------------------------------------------


def write_record(record: dict[str, Any], out: Path) -> None:
    """Write ``record.json``, ``record.md`` and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "record.json", record)
    draw_shares(out / "shares.png", record["rows"])
    config, where = record["config"], record["environment"]
    truth = [fmean(row) for row in record["truth"]]
    counted = sum(len(rows) for rows in record["rows"].values())
    lines = [
        "# What keeps a search among operations from collapsing?",
        "",
        f"{config['data']['source']}, {config['weights']['epochs']:g} epochs, the architecture from epoch "
        f"{config['architecture']['start_epoch']}, budget {config['cost']['budget']}, operations {', '.join(config['grid']['head'])}; "
        f"{counted} searches. {len(truth)} random networks trained alone reach {min(truth):.2f} to {max(truth):.2f} %. "
        f"{where['cpu']}, {where['cpu_threads']} threads, GPU {where['gpu']}; bcnet {where['git_commit']}, "
        f"torch {where['versions']['torch']}. "
        "Made by `python benchmarks/dense_remedies.py`; everything is in record.json. Means over seeds, the standard deviation behind +-.",
        "",
        "![how much of a random network's layers the most frequent operation makes](shares.png)",
        "",
        "| search | collapsed | the most frequent operation's share | times its first share | trained unequally by | loss at the end "
        "| inherited accuracy [%] | tau of inherited weights | found, trained alone [%] |",
        "| " + "--- | " * 9,
    ]
    lines += [_line(name, rows) for name, rows in record["rows"].items()]
    write_text(out / "record.md", "\n".join(line.rstrip() for line in lines) + "\n")


def _line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    def mean(key: str, digits: int = 2) -> str:
        values = [row[key] if not isinstance(row[key], list) else fmean(row[key]) for row in rows]
        return f"{fmean(values):.{digits}f}" + (f" +- {stdev(values):.{digits}f}" if len(values) > 1 else "")

    collapsed = f"{sum(row['collapsed'] for row in rows)} of {len(rows)}"
    keys = ("share", "growth", "deviation", "loss", "inherited", "tau", "found")
    return f"| {name} | {collapsed} | {' | '.join(mean(key) for key in keys)} |"


def draw_shares(path: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """The most frequent operation's share over epochs, the mean over seeds."""
    figure, axes = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    for name, searches in rows.items():
        axes.plot(np.mean([[max(epoch.values()) for epoch in one["shares"]] for one in searches], axis=0), label=name)
    axes.set(xlabel="epoch", ylabel="share of the most frequent operation", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}; the same command goes on")
