"""A trained network made smaller: by uniform widths, by Torch-Pruning, and by bcnet from its weights and from scratch.

    python benchmarks/own_model.py --data FOLDER --weights resnet20-cifar10-12fca82f.th --out RUNS [--seeds 0,1,2]
    python benchmarks/own_model.py --config MY.yaml --weights MY_MODEL.safetensors --out RUNS

FOLDER is what ``imagefolder`` reads. At each budget of multiply-adds all networks are trained by one recipe with the same passes:

uniform        the same share of every layer, the important channels of the trained model (first-order Taylor)
magnitude      Torch-Pruning, global, by the magnitude of the kernels
taylor         Torch-Pruning, global, by first-order Taylor
bcnet          widths found by a supernet that starts from the trained weights and is taught by them, with ``--short-trainings`` at every
               budget; weights inherited from the supernet
bcnet_sorted   the same widths with the trained model's own weights, as uniform has them
scratch        widths found by a supernet from scratch; trained from scratch

and beside ResNet20 what NVIDIA publishes for FastNAS. Without ``--weights`` there are ``uniform`` and ``scratch``, both trained from
scratch. With ``--epochs 0.5,10`` every network is trained from the same start for half an epoch and for ten, for who recovers first
need not be who ends first. With ``--one-search`` the seeds after the first train what the first one's searches found. Torch-Pruning is
wanted for its two rows: pip install torch-pruning. The same command goes on where it was.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.config import Config, load_config
from bcnet.errors import Interrupted, UserError
from bcnet.experiment import Experiment
from bcnet.files import read_json, write_json
from bcnet.machine import environment
from bcnet.models.copying import copy_network
from bcnet.run import Run
from bcnet.scoring.evaluate import evaluate
from bcnet.supernet.importance import channel_importance
from bcnet.supernet.order import sort_channels
from bcnet.supernet.supernet import Supernet, narrow, set_active_channels
from bcnet.supernet.survey import count_flops
from bcnet.training.train_width import train_width

METHODS = ("uniform", "magnitude", "taylor", "bcnet", "bcnet_sorted", "scratch")
PUBLISHED = {
    "what": "NVIDIA ModelOpt FastNAS, ResNet20 on CIFAR-10 (original images); its FLOPs are twice the multiply-adds",
    "model": {"mflops": 81.2, "accuracy": 90.9},
    "found": {"mflops": 59.2, "accuracy": 90.3},
}
COLOURS = dict(zip(METHODS, ("#64748b", "#16a34a", "#a16207", "#ea580c", "#2563eb", "#a855f7"), strict=True))
PRUNING_STEPS = 100
PRUNING_BATCHES = 2
Rows = dict[tuple[float, float], dict[str, list[dict[str, Any]]]]  # (budget, epochs) -> method -> of every seed


class Study:
    """One seed of everything.

    Args:
        options: of the command line.
        seed: of the supernets, the orders of the images and the augmentation.
        searched: whose supernets and searches to take; unset: its own.
    """

    pruned: ClassVar[dict[tuple[str, float], nn.Module]] = {}  # by Torch-Pruning; no seed plays a part

    def __init__(self, options: argparse.Namespace, seed: int, searched: "Study | None" = None) -> None:
        self.options, self.seed, self.searched = options, seed, searched or self
        self.folder = options.out / f"seed{seed}"
        self._runs: dict[str, Run] = {}

    def config(self, *more: str) -> Config:
        """The settings, maybe with others."""
        options = self.options
        given = {
            "data.root": options.data,
            "model.name": options.model,
            "train.epochs": options.supernet_epochs,
            "train.lr": options.supernet_lr,
            "retrain.lr": options.lr,
        }
        own = [
            *(["data.source=imagefolder"] if options.data else []),
            *(f"{key}={value}" for key, value in given.items() if value is not None),
            f"seed={self.seed}",
            f"train.strategy={options.strategy}",
            f"retrain.epochs={options.epochs.split(',')[0]}",
            f"search.short_trainings={options.short_trainings}",
            f"search.short_epochs={options.short_epochs}",
            f"device={options.device}",
            *options.set,
        ]
        return load_config(options.config, [*own, *more])

    def supernet(self, start: str) -> Run:
        """A supernet, trained as far as it was not: from the trained weights (``trained``) or from ``scratch``."""
        if start in self._runs:
            return self._runs[start]
        more = [f"model.weights={self.options.weights}", "train.teacher=pretrained"] if start == "trained" else []
        run = Run.create(self.folder / f"supernet-{start}", self.config(*more), resume=True)
        run.train()
        self._runs[start] = run
        return run

    @cached_property
    def experiment(self) -> Experiment:
        """The trained model, if there is one, its space and the images."""
        return Experiment(self.config(*([f"model.weights={self.options.weights}"] if self.options.weights else [])))

    @cached_property
    def trained(self) -> nn.Module:
        """The trained model, the important channels of every group first."""
        own = self.experiment
        importance = channel_importance(own.model, own.space, "taylor", own.data.eval_batches("train", 256, 2048), own.device)
        return sort_channels(own.model, own.space, importance, own.data.input_shape)

    def subnet(self, channels: Sequence[int]) -> nn.Module:
        """The trained model's first channels of every group."""
        supernet = Supernet(self.trained, self.experiment.space)
        set_active_channels(supernet.net, channels, "left")
        return supernet.get_active_subnet()

    # The rows ------------------------------------------------------------------------------------------------------------

    def uniform(self, flops: float) -> nn.Module:
        """The same share of every layer; without trained weights not trained yet."""
        channels = self.experiment.uniform_channels(flops)
        return self.subnet(channels) if self.options.weights else self._untrained(channels)

    def magnitude(self, flops: float) -> nn.Module:
        """Torch-Pruning by magnitude."""
        return self._pruned(flops, "MagnitudeImportance")

    def taylor(self, flops: float) -> nn.Module:
        """Torch-Pruning by first-order Taylor."""
        return self._pruned(flops, "TaylorImportance")

    def bcnet(self, flops: float) -> nn.Module:
        """Found from the trained weights, and inherited."""
        run = self.searched.supernet("trained")
        return run.experiment.inherited(run.supernet, self.searched.found("trained", flops))

    def bcnet_sorted(self, flops: float) -> nn.Module:
        """Found from the trained weights; the trained model's own."""
        return self.subnet(self.searched.found("trained", flops))

    def scratch(self, flops: float) -> nn.Module:
        """Found from scratch, not trained yet."""
        return self._untrained(self.searched.found("scratch", flops))

    def _untrained(self, channels: Sequence[int]) -> nn.Module:
        return narrow(self.experiment.build_model(self.seed), self.experiment.space, channels)

    def found(self, start: str, flops: float) -> list[int]:
        """Channels per group that a search finds; searched once."""
        file = self.folder / f"found-{start}-{int(flops)}.json"
        if not file.is_file():
            run, before = self.supernet(start), time.monotonic()
            record = run.search(f"flops={int(flops)}")
            widths = run.space.decode(record.best.widths)
            found = {"widths": record.best.widths, "channels": list(run.space.channels(widths)), "seconds": time.monotonic() - before}
            found["short"] = [one.model_dump(mode="json") for one in record.short]
            write_json(file, found | {"passes": run.trained.history.passes, "train_seconds": run.trained.history.seconds})
        return list(read_json(file, "what a search found")["channels"])

    def _pruned(self, flops: float, importance: str) -> nn.Module:
        """The trained model cut by Torch-Pruning, a little at a time, until it keeps the budget; cut once for all seeds."""
        if (importance, flops) in self.pruned:
            return copy_network(self.pruned[importance, flops])
        try:
            import torch_pruning as tp
        except ImportError as error:
            raise UserError("magnitude and taylor want Torch-Pruning: pip install torch-pruning, or leave them out of --methods") from error

        own = self.experiment
        model = copy_network(own.model).cpu().eval()
        example = torch.zeros(1, *own.data.input_shape)
        pruner: Any = tp.pruner.MetaPruner(
            model,
            example,
            importance=getattr(tp.importance, importance)(),
            global_pruning=True,
            pruning_ratio=0.95,
            max_pruning_ratio=0.9,
            iterative_steps=PRUNING_STEPS,
            ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)][-1:],
        )
        batches = [(x.cpu(), y.cpu()) for x, y in own.data.eval_batches("train", 256, 256 * PRUNING_BATCHES)]
        for _ in range(PRUNING_STEPS):
            if count_flops(model, own.data.input_shape) <= flops:
                break
            if importance == "TaylorImportance":
                model.zero_grad()
                for images, labels in batches:
                    F.cross_entropy(model(images), labels).backward()
            pruner.step()
        if count_flops(model, own.data.input_shape) > flops:
            raise UserError(f"Torch-Pruning did not come down to {flops:.0f} multiply-adds")
        self.pruned[importance, flops] = copy_network(model)
        return model

    # Training them -------------------------------------------------------------------------------------------------------

    def result(self, method: str, budget: float, epochs: float) -> dict[str, Any]:
        """Train a row's network and test it, unless that was done."""
        flops = budget * self.experiment.costs.of_model("flops")
        folder = self.folder / f"{method}-{budget:g}-{epochs:g}"
        identity = self._identity(method, budget, epochs)
        file = folder / "result.json"
        if file.is_file() and read_json(file, "a result")["identity"] == identity:
            return dict(read_json(file, "a result"))
        make: Callable[[float], nn.Module] = getattr(self, method)
        network = make(flops)
        own = self.experiment
        costs = {"flops": count_flops(network.cpu(), own.data.input_shape), "params": sum(p.numel() for p in network.parameters())}
        before = evaluate(network.to(own.device), own.test, half=own.half)["accuracy"]
        recipe = own.config.retrain.lasting(epochs)
        (trained,) = train_width(
            [network],
            [own.data.train_batches("full_train", recipe.batch_size, self.seed)],
            recipe,
            seeds=[self.seed],
            input_shape=own.data.input_shape,
            device=own.device,
            half=own.half,
            checkpoint=folder / "checkpoint.pt",
            identity=identity,
            label=f"{method} {budget:g}, {epochs:g} epochs, seed {self.seed}",
        )
        accuracy = evaluate(trained, own.test, half=own.half)["accuracy"]
        result = {"identity": identity, "accuracy": 100 * accuracy, "accuracy_before": 100 * before, "epochs": epochs}
        write_json(file, result | costs)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        return dict(read_json(file, "a result"))

    def _identity(self, method: str, budget: float, epochs: float) -> str:
        weights = hashlib.sha256(self.options.weights.read_bytes()).hexdigest() if self.options.weights else ""
        sections = {"data", "model", "retrain"} if method in METHODS[:3] else None  # of the config, those that matter; None: all
        config = self.config(f"retrain.epochs={epochs}").model_dump_json(include=sections)
        return hashlib.sha256(f"{config} {weights} {method} {budget} {self.seed}".encode()).hexdigest()

    def of_model(self, epochs: float) -> dict[str, Any]:
        """The trained model as it is, and after the same fine-tuning."""
        tuned = self.result("uniform", 1.0, epochs)
        return {"as published": tuned["accuracy_before"], "fine-tuned": tuned["accuracy"], "flops": tuned["flops"], "epochs": epochs}


def main() -> None:
    """Run what is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar/resnet20_padded", help="a shipped one or a YAML file")
    parser.add_argument("--data", type=Path, help="folder of images; unset: as the config has it")
    parser.add_argument("--model", help="unset: as the config has it")
    parser.add_argument("--weights", type=Path, help="the trained model's; unset: everything from scratch")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", default="0.73,0.5,0.25", help="shares of the model's multiply-adds")
    parser.add_argument("--methods", help=f"of {','.join(METHODS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--strategy", default="bcnetv2_distilled")
    parser.add_argument("--supernet-epochs", type=float)
    parser.add_argument("--supernet-lr", type=float)
    parser.add_argument("--short-trainings", type=int, default=24, help="at every budget, to correct the scores")
    parser.add_argument("--short-epochs", type=float, default=0.25)
    parser.add_argument("--one-search", action="store_true", help="with the first seed; the others train what it found")
    parser.add_argument("--epochs", default="20", help="of training every network; several: for so long each, from the same start")
    parser.add_argument("--lr", type=float, help="of training every network")
    parser.add_argument("--full", action="store_true", help="train the full model as long, too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings, such as score.additive=300")
    options = parser.parse_args()
    try:
        run(options)
    except UserError as error:
        parser.error(str(error))
    except Interrupted as stopped:
        sys.exit(f"{stopped}; the same command goes on")


def run(options: argparse.Namespace) -> None:
    """Every seed, method, budget and length of training."""
    budgets, lengths = ([float(one) for one in text.split(",")] for text in (options.budgets, options.epochs))
    known = METHODS if options.weights else ("uniform", "scratch")
    methods = options.methods.split(",") if options.methods else known
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise UserError(f"--methods: {unknown[0]!r} is none of {', '.join(known)}{'' if options.weights else ' without --weights'}")
    studies: list[Study] = []
    for seed in options.seeds.split(","):
        studies.append(Study(options, int(seed), studies[0] if options.one_search and studies else None))
    rows: Rows = {}
    for epochs, study, budget, method in product(lengths, studies, budgets, methods):
        rows.setdefault((budget, epochs), {}).setdefault(method, []).append(study.result(method, budget, epochs))
        if (budget, method) == (budgets[-1], methods[-1]):
            print(table(rows), flush=True)
    models = {epochs: [study.of_model(epochs) for study in studies] for epochs in lengths} if options.full else {}
    draw(options.out / "own_model.png", rows)
    is_resnet20 = studies[0].config().model.name == "cifar/resnet20_padded"
    record = {
        "model": models,
        "rows": [{"budget": budget, "epochs": epochs, "methods": methods} for (budget, epochs), methods in rows.items()],
        "searches": [read_json(file, "a search") for file in sorted(options.out.glob("seed*/found-*.json"))],
        "published": PUBLISHED if is_resnet20 else None,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "config": studies[0].config().model_dump(mode="json"),
        "environment": environment(studies[0].experiment.device),
    }
    write_json(options.out / "results.json", record)
    print(json.dumps(models))
    if is_resnet20:
        print(f"{PUBLISHED['what']}: {PUBLISHED['model']} to {PUBLISHED['found']}")


def table(rows: Rows) -> str:
    """Markdown: test accuracy in per cent, mean and standard deviation over the seeds."""
    columns = ("budget", "epochs", "method", "n", "multiply-adds", "params", "before training", "accuracy")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for (budget, epochs), methods in rows.items():
        for method, results in methods.items():
            accuracies = [result["accuracy"] for result in results]
            spread = f" +- {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
            means = [fmean(result[key] for result in results) for key in ("flops", "params", "accuracy_before")]
            cells = (
                f"{budget:g}",
                f"{epochs:g}",
                method,
                len(results),
                f"{means[0] / 1e6:.2f}M",
                f"{means[1] / 1e3:.1f}k",
                f"{means[2]:.2f}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} | {np.mean(accuracies):.2f}{spread} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: Rows) -> None:
    """Accuracy of every method against the length of training, a panel per budget: means, with dots for the seeds."""
    from matplotlib.figure import Figure

    budgets = sorted({budget for budget, _ in rows}, reverse=True)
    figure = Figure(figsize=(1 + 4.5 * len(budgets), 4), layout="constrained")
    for axis, wanted in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
        lines: dict[str, list[tuple[float, list[float]]]] = {}
        for (budget, epochs), methods in rows.items():
            for method, results in methods.items() if budget == wanted else ():
                lines.setdefault(method, []).append((epochs, [one["accuracy"] for one in results]))
        for method, points in lines.items():
            points = sorted(points)
            (line,) = axis.plot([x for x, _ in points], [fmean(y) for _, y in points], "o-", color=COLOURS[method], label=method)
            for x, seeds in points:
                axis.plot([x] * len(seeds), seeds, ".", color=line.get_color(), alpha=0.5)
        ticks = sorted({epochs for budget, epochs in rows if budget == wanted})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{one:g}" for one in ticks], minor=False)
        axis.minorticks_off()
        axis.set(title=f"{wanted:.0%} of the multiply-adds", xlabel="epochs of fine-tuning", ylabel="test accuracy [%]")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
