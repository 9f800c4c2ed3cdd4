"""Does a search among blocks beat chance? DenseNAS on a small grid, held against random, hand-made and width-refined networks.

    python benchmarks/dense_record.py --root CIFAR_FOLDER [--config dense/cifar] [--targets 0.08 0.15 0.3] [--seeds 0,1,2] [--random 10]
        [--select-epochs 5] [--refine score.max_images=2000 ...] [--work runs/dense_record] [--out benchmarks/results/dense]
        [key=value ...]

``CIFAR_FOLDER`` holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``; leave it out where the config's data need no files. For every
target (FLOPs, a number or a fraction of the dearest network) the grid is searched, and these are trained from scratch, as many seeds each:
what was found; random paths of the same cost (a new one for every seed); the best of ``--random`` such paths, by the held-out images
after a short training; a hand-made network; what was found with its widths refined by bcnet. "Of the same cost" is 97 to 100 % of what
the found network costs (``--band``), for the hand-made one the widest that costs no more. Time and memory of a step are measured as the
grid grows.

Every finished part is a file in the work folder, and the same command goes on where it was.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from measure import interleave, once, peak_memory_mib, spread

from bcnet.config import load_as, load_config
from bcnet.dense.config import DenseConfig
from bcnet.dense.costs import count_network
from bcnet.dense.draw import draw_networks
from bcnet.dense.experiment import DenseExperiment
from bcnet.dense.run import DenseRun
from bcnet.errors import Interrupted, UserError
from bcnet.files import write_json, write_text
from bcnet.formatting import human
from bcnet.kernels.depthwise import fast_depthwise
from bcnet.machine import environment, tune_malloc
from bcnet.models.net_config import BlockSpec, NetConfig
from bcnet.report.dense_page import collapse_sentence, write_dense_page
from bcnet.run import Run
from bcnet.scoring.evaluate import evaluate
from bcnet.seeds import STREAM_SAMPLE, derive_seed

KINDS = ("found", "random", "best of random", "hand-made", "refined")
COLOURS = ("#ea580c", "#94a3b8", "#2563eb", "#16a34a", "#7c3aed")


def main() -> None:
    """Make or continue the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--config", default="dense/cifar")
    parser.add_argument("--targets", nargs="+", default=["0.08", "0.15", "0.3"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--random", type=int, default=10)
    parser.add_argument("--select-epochs", type=float, default=5)
    parser.add_argument("--band", type=float, default=0.97, help="what random networks cost at least, as a share of the found one")
    parser.add_argument("--refine", nargs="+", default=[], metavar="key=value", help="settings of the width search of what was found")
    parser.add_argument("--rounds", type=int, default=10, help="steps of every kind that are timed")
    parser.add_argument("--work", type=Path, default=Path("runs/dense_record"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dense"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    tune_malloc()
    overrides = [*([f"data.source=imagefolder data.root={options.root}"] if options.root else [])]
    overrides = [part for text in overrides for part in text.split(" ", 1)] + options.overrides
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    record: dict[str, Any] = {"targets": {}}
    for target in options.targets:
        record["targets"][target] = Target(target, options, overrides).results()
    base = DenseExperiment(load_as(DenseConfig, options.config, overrides))
    record["growth"] = once(options.work / "growth.json", {"rounds": options.rounds}, lambda: growth(base, options.rounds))
    record |= {"config": base.config.model_dump(mode="json"), "environment": environment(base.device)}
    record["select_epochs"], record["random_paths"], record["seeds"] = options.select_epochs, options.random, options.seeds
    write_record(record, options.out)
    print(f"record: {options.out / 'record.md'}")


class Target:
    """Everything that belongs to one target."""

    def __init__(self, text: str, options: argparse.Namespace, overrides: Sequence[str]) -> None:
        self.options, self.folder = options, options.work / f"target-{text}"
        config = load_as(DenseConfig, options.config, [*overrides, f"cost.budget=flops={text}"])
        run_folder = self.folder / "search"
        self.run = DenseRun.create(run_folder, config, resume=(run_folder / "config.yaml").exists())
        self.experiment = self.run.experiment

    def results(self) -> dict[str, Any]:
        """Search, choose the others, train all of them."""
        if not (self.run.folder / "search.json").is_file():
            self.run.train()
            self.run.derive()
        record = self.run.record()
        cost = record.best.costs["flops"]
        randoms = self.random_networks(cost, max(self.options.random, len(self.options.seeds)))
        best, chosen = self.best_random(randoms[: self.options.random])
        found = self.run.found()[1]
        seeds = self.options.seeds
        rows = {
            "found": self.trained([found] * len(seeds), "found"),
            "random": self.trained(randoms[: len(seeds)], "random"),
            "best of random": self.trained([best] * len(seeds), "best-of-random"),
            "hand-made": self.trained([self.hand_made(cost)] * len(seeds), "hand-made"),
            "refined": self.refined(cost),
        }
        write_dense_page(self.run)
        return {
            "budget": record.budget.model_dump() if record.budget else None,
            "net_config": record.best.net_config,
            "most_probable_flops": record.most_probable_costs["flops"],
            "search_seconds": record.search_seconds,
            "inherited": [(one.val_accuracy, one.costs["flops"]) for one in record.candidates],
            "collapse": collapse_sentence(record),
            "shares": record.epochs[-1].shares,
            "short_trainings": chosen,
            "networks": rows,
        }

    # The others ------------------------------------------------------------------------------------------------------

    def random_networks(self, cost: float, count: int) -> list[NetConfig]:
        """Random networks of the grid that cost about what the found one does, all different."""
        rng = np.random.default_rng(derive_seed(self.run.config.seed, STREAM_SAMPLE))
        price = self.experiment.costs.costs["flops"]
        grid = self.experiment.grid
        return [grid.net_config(choice) for choice in draw_networks(grid, price, self.options.band * cost, cost, count, rng)]

    def best_random(self, networks: Sequence[NetConfig]) -> tuple[NetConfig, list[float]]:
        """The best of some networks by held-out images, each trained for a short time without them."""
        accuracies = []
        for number, net in enumerate(networks):
            settings = {"net": str(net), "epochs": self.options.select_epochs}
            path = self.folder / "short" / f"{number}.json"
            accuracies.append(once(path, settings, partial(self._short, net)))
        return networks[int(np.argmax(accuracies))], accuracies

    def _short(self, net: NetConfig) -> float:
        experiment, config = self.experiment, self.experiment.config
        recipe = config.retrain.model_copy(update={"epochs": self.options.select_epochs})
        short = DenseExperiment(config.model_copy(update={"retrain": recipe}))
        short.__dict__["data"] = experiment.data
        network = short.train_network(net, config.seed, part="train", label="short training")
        return 100 * evaluate(network, experiment.validation, half=experiment.half)["accuracy"]

    def hand_made(self, cost: float) -> NetConfig:
        """A network as people build them: two inverted residuals by 6 for every map size, widths doubling, as wide as it may be."""
        config, image, classes = self.experiment.config.grid, self.experiment.data.input_shape, len(self.experiment.data.classes)
        sizes = sorted(set(config.maps), reverse=True)
        head = "mbconv_k3_t6" if any("mbconv" in name for name in config.head) else "basic_block"

        def built(widths: Sequence[int]) -> NetConfig:
            blocks = [BlockSpec(widths[0], widths[0], config.first or head, (), 1)]
            blocks += [BlockSpec(before, width, head, (head,), 2) for before, width in pairwise(widths)]
            return NetConfig(tuple(blocks), config.last)

        def fits(widths: Sequence[int]) -> bool:
            return count_network(built(widths), image, classes, config.stem_stride)["flops"] <= cost

        widths = [4] * len(sizes)
        for factor in np.linspace(0.0, 40.0, 1601):
            wider = [max(4, 4 * round(factor * 2**step)) for step in range(len(sizes))]
            widths = wider if fits(wider) else widths
        for place in reversed(range(len(sizes))):  # what rounding has left
            while fits(wider := [width + 4 * (step == place) for step, width in enumerate(widths)]):
                widths = wider
        return built(widths)

    def refined(self, cost: float) -> dict[str, Any]:
        """What was found, with its widths searched by bcnet at the same FLOPs, trained from scratch."""
        folder, seeds = self.run.folder / "refined", self.options.seeds
        config = load_config(self.run.folder / "refine.yaml", self.options.refine)
        run = Run.create(folder, config, resume=(folder / "config.yaml").exists())
        run.train()
        settings = {"flops": cost}
        name = once(self.folder / "refined.json", settings, lambda: run.search(f"flops={int(cost)}").best.widths)
        channels = run.space.channels(run.space.decode(name))
        accuracies = [
            once(self.folder / "refined" / f"{seed}.json", {"widths": name}, partial(self._train_refined, run, channels, seed))
            for seed in seeds
        ]
        counted = {cost: int(run.costs.of_channels(channels, cost)) for cost in ("flops", "params")}
        return {"acc": accuracies, "networks": [f"widths {name} of the found one"]} | {key: [value] for key, value in counted.items()}

    def _train_refined(self, run: Run, channels: Sequence[int], seed: int) -> float:
        checkpoint = self.folder / "refined" / f"checkpoint-{seed}.pt"
        identity = f"{list(channels)} {seed}"
        (network,) = run.experiment.train_width(
            channels, [seed], checkpoint=checkpoint, identity=identity, label=f"retrain refined, seed {seed}"
        )
        accuracy = 100 * evaluate(network, run.experiment.test, half=run.experiment.half)["accuracy"]
        checkpoint.unlink(missing_ok=True)
        return accuracy

    def trained(self, networks: Sequence[NetConfig], name: str) -> dict[str, Any]:
        """Test accuracies of networks trained from scratch, one for every seed."""
        pairs = list(zip(networks, self.options.seeds, strict=True))
        rows = [self.run.retrain(net, f"{name}-{seed}" if len(set(map(str, networks))) > 1 else name, [seed]) for net, seed in pairs]
        unique = {row.net_config: row for row in rows}
        counted = {cost: [row.costs[cost] for row in unique.values()] for cost in ("flops", "params")}
        return {"acc": [row.acc[0] for row in rows], "networks": list(unique)} | counted


# Time and memory -------------------------------------------------------------------------------------------------------


def growth(base: DenseExperiment, rounds: int) -> list[dict[str, Any]]:
    """Time and memory of a step of either kind, for the grid's own blocks with fewer or more operations, layers and edges."""
    config = base.config
    depth = config.grid.depths
    variants: dict[str, dict[str, Any]] = {
        "one operation, no layers, 2 edges": {"head": config.grid.head[:1], "depth": 0, "adjoin": 2},
        "one operation": {"head": config.grid.head[:1], "stack": config.grid.stack[:1]},
        "2 edges": {"adjoin": 2},
        "no layers": {"depth": 0},
        "as it is": {},
        "twice the layers": {"depth": [2 * own for own in depth]},
        "8 edges": {"adjoin": 8},
    }
    searches = {}
    for name, changes in variants.items():
        grid = config.grid.model_copy(update=changes)
        experiment = DenseExperiment(config.model_copy(update={"grid": grid, "cost": config.cost.model_copy(update={"budget": None})}))
        experiment.__dict__["data"] = base.data
        try:
            searches[name] = experiment.make_search()
        except UserError:  # no path with so few edges
            continue

    def step(search: Any, kind: str) -> Callable[[int], object]:
        first = 0 if kind == "weights" else search.schedule.start * search.schedule.weight_steps
        return lambda number: search.take(search.schedule.at(first + (number + 1) % search.schedule.architecture_steps))

    calls = {f"{name}|{kind}": step(search, kind) for name, search in searches.items() for kind in ("weights", "architecture")}
    with ExitStack() as stack:
        for search in searches.values():
            stack.enter_context(fast_depthwise(search.network))
        return _timed(searches, calls, rounds, base)


def _timed(searches: dict[str, Any], calls: dict[str, Callable[[int], object]], rounds: int, base: DenseExperiment) -> list[dict[str, Any]]:
    seconds = interleave(calls, rounds, base.device)
    rows = []
    for name, search in searches.items():
        row: dict[str, Any] = {
            "grid": name,
            "edges": len(search.grid.edges),
            "layers": len(search.grid.layers),
            "paths": search.grid.num_paths(),
        }
        row["params"] = sum(parameter.numel() for parameter in search.network.parameters())
        for kind in ("weights", "architecture"):
            row[kind] = {"seconds": spread(seconds[f"{name}|{kind}"])}
            row[kind]["mib"] = peak_memory_mib(partial(calls[f"{name}|{kind}"], 0), base.device)
        rows.append(row)
    return rows


# The record ------------------------------------------------------------------------------------------------------------


def write_record(record: dict[str, Any], out: Path) -> None:
    """Write ``record.json``, ``record.md`` and the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "record.json", record)
    draw_accuracy(out / "accuracy.png", record["targets"])
    draw_growth(out / "growth.png", record["growth"])
    lines = [
        "# Does a search among blocks beat chance?",
        "",
        _circumstances(record),
        "",
        "![test accuracy against FLOPs](accuracy.png)",
        "",
    ]
    lines += ["| target | network | FLOPs | params | test accuracy [%] | standard deviation | n |", "| " + "--- | " * 7]
    lines += [_row(target, kind, one["networks"][kind]) for target, one in record["targets"].items() for kind in KINDS]
    lines += ["", "## As it falls", ""]
    for target, one in record["targets"].items():
        lines.append(f"* {target}: {' '.join(verdict(one['networks'], kind) for kind in KINDS[1:])}")
    lines += ["", "## The searches", "", *(_search_line(target, one) for target, one in record["targets"].items())]
    lines += ["", "## Time and memory of a step as the grid grows", "", "![time and memory](growth.png)", ""]
    lines += ["| grid | edges | layers | paths | weights | step for weights | step for the architecture |", "| " + "--- | " * 7]
    for row in record["growth"]:
        parts = [f"{1e3 * row[kind]['seconds']['median']:.0f} ms, {_mib(row[kind]['mib'])}" for kind in ("weights", "architecture")]
        cells = [row["grid"], row["edges"], row["layers"], f"{row['paths']:,}", human(row["params"]), *parts]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    write_text(out / "record.md", "\n".join(line.rstrip() for line in lines) + "\n")


def _circumstances(record: dict[str, Any]) -> str:
    config, where = record["config"], record["environment"]
    epochs, search = config["retrain"]["epochs"], config["weights"]["epochs"]
    return (
        f"{config['data']['source']}, seed {config['seed']}; searches of {search:g} epochs, {len(record['seeds'])} trainings each of "
        f"{epochs:g} epochs. {where['cpu']}, {where['cpu_threads']} threads, GPU {where['gpu']}; bcnet {where['git_commit']}, torch "
        f"{where['versions']['torch']}. Made by `python benchmarks/dense_record.py`; everything is in record.json."
    )


def _row(target: str, kind: str, row: dict[str, Any]) -> str:
    deviation = f"{stdev(row['acc']):.2f}" if len(row["acc"]) > 1 else "-"
    costs = (" to ".join(dict.fromkeys((human(min(row[cost])), human(max(row[cost]))))) for cost in ("flops", "params"))
    return f"| {target} | {kind} | {' | '.join(costs)} | {fmean(row['acc']):.2f} | {deviation} | {len(row['acc'])} |"


def _search_line(target: str, one: dict[str, Any]) -> str:
    share, most = max((share, name) for name, share in one["shares"].items())
    short, limit, cost = one["short_trainings"], human(one["budget"]["limit"]), human(one["most_probable_flops"])
    parts = [
        f"* {target}: {one['search_seconds'] / 60:.1f} minutes; the most probable network cost {cost} FLOPs for a budget of {limit}.",
        f"{one['collapse']} Of a random network's layers {share:.0%} are {most}.",
        f"Random paths after a short training: {min(short):.2f} to {max(short):.2f} % of the held-out images.",
        f"Found: `{one['net_config']}`",
    ]
    return " ".join(parts)


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} MiB"


def verdict(networks: dict[str, Any], kind: str) -> str:
    """The found network against another one, in words."""
    found, other = networks["found"]["acc"], networks[kind]["acc"]
    difference = fmean(found) - fmean(other)
    if min(len(found), len(other)) < 2:
        return f"found minus {kind}: {difference:+.2f} points, one training each."
    error = math.sqrt(stdev(found) ** 2 / len(found) + stdev(other) ** 2 / len(other))
    judged = "within the noise" if abs(difference) <= 2 * error else "better" if difference > 0 else "worse"
    return f"found minus {kind}: {difference:+.2f} points (standard error {error:.2f}), {judged};"


def draw_accuracy(path: Path, targets: dict[str, Any]) -> None:
    """Every training a dot, the mean of its kind a line."""
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    for place, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        means = []
        for one in targets.values():
            row = one["networks"][kind]
            x = one["networks"]["found"]["flops"][0] * (0.98 + 0.01 * place) / 1e6  # beside each other
            axes.plot([x] * len(row["acc"]), row["acc"], "o", color=colour, alpha=0.5, markersize=4)
            means.append((x, fmean(row["acc"])))
        axes.plot(*zip(*means, strict=True), "D-", color=colour, markersize=6, linewidth=0.8, label=kind)
    axes.set(xlabel="FLOPs of the found network [M]", ylabel="test accuracy [%]", xscale="log")
    costs = [one["networks"]["found"]["flops"][0] / 1e6 for one in targets.values()]
    axes.set_xticks(costs, [f"{cost:.3g}" for cost in costs])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_growth(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Time and memory of both kinds of steps."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True, sharey=True)
    places = np.arange(len(rows))
    for number, (kind, colour) in enumerate((("weights", "#2563eb"), ("architecture", "#ea580c"))):
        panels[0].barh(places + 0.4 * number, [1e3 * row[kind]["seconds"]["median"] for row in rows], 0.38, color=colour, label=kind)
        panels[1].barh(places + 0.4 * number, [row[kind]["mib"] or 0 for row in rows], 0.38, color=colour)
    panels[0].set_yticks(places + 0.2, [row["grid"] for row in rows])
    panels[0].set(xlabel="milliseconds per step")
    panels[1].set(xlabel="memory of a step [MiB]")
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}; the same command goes on")
