"""Do the numbers stay what they were? Every strategy, score, search, ranking and ground truth on digits, bit for bit.

    python benchmarks/same_numbers.py record NUMBERS.json [--package CHECKOUT]
    python benchmarks/same_numbers.py compare BEFORE.json AFTER.json

A change that should not change numbers is recorded before and after on one machine. ``--package`` records another checkout, such as
a git worktree of an earlier commit. Everything goes through the command line and through configs in the form of version 0.1,
which every later version reads, so that one script serves old commits and new ones. Takes about three minutes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

CONFIG: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "amp": "off",
    "data": {"source": "digits", "num_val": 300, "pad": 1},
    "model": {"name": "digits/resnet"},
    "space": {"bins": 4, "min_bins": 1},
    "train": {"epochs": 4, "batch_size": 64, "lr": 0.1},
    "score": {"calibration_images": 256},
    "search": {"algorithm": "evolution", "objective": "score", "init": "prior", "population": 12, "evaluations": 48},
    "retrain": {"epochs": 2, "batch_size": 64, "lr": 0.1},
}
# 0.1 called the default recipe bcnetv2 with in-place distillation.
METHODS: dict[str, dict[str, Any]] = {
    "uniform": {"strategy": "uniform"},
    "autoslim": {"strategy": "autoslim"},
    "bcnet": {"strategy": "bcnet", "inplace_distillation": False},
    "bcnetv2": {"strategy": "bcnetv2", "inplace_distillation": False},
    "bcnet, distilled": {"strategy": "bcnet", "inplace_distillation": True},
    "bcnetv2, distilled": {"strategy": "bcnetv2", "inplace_distillation": True},
}
OTHERS: dict[str, dict[str, Any]] = {
    "ema, warm-up, clipping": {"train": {"ema_decay": 0.9, "warmup_epochs": 0.5, "clip_norm": 1.0, "label_smoothing": 0.1}},
    "bf16": {"amp": "bf16"},
    "k_min 2 of 8": {"space": {"bins": 8, "min_bins": 2}},
}
METRICS = ("accuracy", "neg_cross_entropy", "neg_kl")
SEARCHES = {
    "prior": ["--budget", "flops=0.5"],
    "random first generation": ["--budget", "flops=0.5", "--init", "random"],
    "params": ["--budget", "params=0.4"],
    "front": ["--budget", "flops=0.7", "search.objective=score_and_cost"],
    "no budget": [],
    "random": ["--budget", "flops=0.5", "--algorithm", "random"],
}
DEFAULT = "bcnetv2, distilled"


class Recorder:
    """Runs commands of one checkout in a folder and collects what they computed."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder, self.package = folder, package
        self.numbers: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def bcnet(self, *arguments: object) -> None:
        """Run one command."""
        environment = os.environ | {"PYTHONPATH": str(self.package), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", "bcnet", *map(str, arguments)]
        start = time.monotonic()
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        name = " ".join(str(argument) for argument in arguments[:2]) if arguments[0] == "truth" else str(arguments[0])
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)

    def write_config(self, name: str, *changes: dict[str, Any]) -> str:
        """A config file in the form of 0.1."""
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
        for change in changes:
            for key, value in change.items():
                tree[key] = tree[key] | value if isinstance(value, dict) else value
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    def train(self, label: str, *changes: dict[str, Any]) -> Path:
        """A supernet: losses, weights, counts and records."""
        name = "".join(c if c.isalnum() else "_" for c in label)
        run = self.folder / name
        self.bcnet("train", self.write_config(name, *changes), "--out", run)
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        counts = state["counts"] if isinstance(state["counts"], list) else list(state["counts"])
        self.numbers[f"train {label}"] = {
            "losses": [float(value).hex() for value in state["history"]["loss"]],
            "weights": hash_tensors(state["model"] | state.get("ema", {})),
            "counts": [row.tolist() for row in counts],
            "records": state["records"],
        }
        return run

    def score(self, label: str, run: Path, widths: Path, *settings: str) -> None:
        """The scores of some width vectors."""
        out = self.folder / "scores.json"
        self.bcnet("score", run, "--widths", widths, "--out", out, *settings)
        self.numbers[f"score {label}"] = exact(json.loads(out.read_text())["scores"])

    def search(self, label: str, run: Path, *settings: str) -> None:
        """A search's whole history."""
        self.bcnet("search", run, *settings)
        result = json.loads((run / "search.json").read_text())
        rows = [[row["widths"], row["score"], row["flops"], row["params"]] for row in result["evaluated"]]
        history = {"evaluated": rows, "best": result["best"]["widths"], "front": result["front"]}
        if "--algorithm" not in settings:  # how many a random search scores at once is its own setting since 0.2, not the population
            history["generations"] = result["generations"]
        self.numbers[f"search {label}"] = exact(history)


def hash_tensors(tensors: dict[str, Any]) -> str:
    """One hash of all values, names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def exact(tree: Any) -> Any:
    """The same tree with floats in hexadecimal: equal means equal bits."""
    if isinstance(tree, dict):
        return {key: exact(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [exact(value) for value in tree]
    return tree.hex() if isinstance(tree, float) else tree


def record(package: Path) -> dict[str, Any]:
    """Run everything with one checkout."""
    with tempfile.TemporaryDirectory() as name:
        recorder = Recorder(Path(name), package)
        runs = {label: recorder.train(label, {"train": train}) for label, train in METHODS.items()}
        for label, change in OTHERS.items():
            recorder.train(label, {"train": METHODS[DEFAULT]}, change)
        widths = Path(name) / "widths.txt"
        names = [f"{a}{b}{c}{d}{e}" for a in "14" for b in "1234" for c in "24" for d in "13" for e in "2"]
        widths.write_text("\n".join([*names, "44444", "11111", "12341", "43214", "22222", "33333", "31313", "24142"]))
        for label, run in runs.items():
            for metric in METRICS:
                recorder.score(f"{label}, {metric}", run, widths, f"score.metric={metric}")
            recorder.score(f"{label}, additive", run, widths, "score.additive=60")
        run = runs[DEFAULT]
        for label, settings in SEARCHES.items():
            recorder.search(label, run, *settings)
        recorder.score("for rank", run, widths)
        recorder.bcnet("rank", Path(name) / "scores.json", "--truth", "channel_bench_digits", "--out", Path(name) / "ranked")
        recorder.numbers["rank"] = exact(json.loads((Path(name) / "ranked" / "ranking.json").read_text()))
        recorder.bcnet("extract", run, "--widths", "31313", "--out", Path(name) / "network")
        recorder.numbers["extract"] = hashlib.sha256((Path(name) / "network" / "network.safetensors").read_bytes()).hexdigest()
        recorder.bcnet("retrain", run, "--widths", "31313", "--seeds", "0,1")
        kinds = json.loads((run / "retrain" / "31313.json").read_text())
        recorder.numbers["retrain"] = exact({kind: kinds[kind]["acc"] for kind in ("found",)})
        four = Path(name) / "four.txt"
        four.write_text("44444\n11111\n12341\n31313\n")
        config = recorder.write_config("truth", {"train": METHODS[DEFAULT]})
        recorder.bcnet("truth", "build", config, "--out", Path(name) / "truth.json", "--widths", four, "--seeds", 2, "--workers", 1)
        truth = json.loads((Path(name) / "truth.json").read_text())
        recorder.numbers["truth build"] = exact({key: value for key, value in truth.items() if key != "meta"})
    return {"numbers": recorder.numbers, "seconds": recorder.seconds}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what differs; returns how many entries do."""
    names = sorted(before["numbers"].keys() | after["numbers"].keys())
    different = [name for name in names if before["numbers"].get(name) != after["numbers"].get(name)]
    for name in different:
        print(f"differs: {name}: {first_difference(before['numbers'].get(name), after['numbers'].get(name))}")
    print(f"{len(names) - len(different)} of {len(names)} entries are equal to the last bit")
    for name, seconds in before["seconds"].items():
        print(f"{name}: {seconds:.1f} s before, {after['seconds'][name]:.1f} s after ({after['seconds'][name] / seconds:.2f} x)")
    return len(different)


def first_difference(one: Any, other: Any, where: str = "") -> str:
    """Where two trees differ first."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if one.get(key) != other.get(key):
                return first_difference(one.get(key), other.get(key), f"{where}/{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            if a != b:
                return first_difference(a, b, f"{where}/{number}")
    return f"{where}: {str(one)[:80]} and {str(other)[:80]}"


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--package", type=Path, default=Path(__file__).parent.parent)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        sys.exit(bool(compare(json.loads(options.before.read_text()), json.loads(options.after.read_text()))))
    options.out.write_text(json.dumps(record(options.package.resolve()), indent=1) + "\n")


if __name__ == "__main__":
    main()
