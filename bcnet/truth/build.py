"""Build ground truth: networks of a width space trained from scratch, one by one, on as many processes as there are.

Finished widths go to a journal beside the file (``FILE.partial``), unfinished trainings to ``FILE.unfinished/``, so a build
that was killed goes on where it stopped; the file itself appears when the last one is done.
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from bcnet.config import Config
from bcnet.errors import UserError, first_line
from bcnet.experiment import Experiment
from bcnet.files import read_bytes, write_text
from bcnet.formatting import shell_word
from bcnet.locks import leftovers, locked
from bcnet.machine import tune_malloc
from bcnet.processes import work_off
from bcnet.progress import ProgressBar
from bcnet.scoring.evaluate import evaluate
from bcnet.seals import append_sealed, read_line, sealed_line
from bcnet.space.widths import Widths
from bcnet.truth.checks import is_accuracy


def build_truth(
    config: Config, out: Path, widths: Sequence[Widths], num_seeds: int, *, workers: int = 1, ray_address: str | None = None
) -> dict[str, Any]:
    """Train every width with every seed by the config's ``retrain`` recipe and write the truth file.

    All training images are used; test images are looked at once, after the last epoch. The result does not depend on the
    number of workers, nor on how often the build was killed.

    Args:
        config: data, model, space and recipe.
        out: the file to write.
        widths: what to train.
        num_seeds: seeds ``0..num_seeds-1``.
        workers: processes.
        ray_address: spread the workers over a Ray cluster instead of this machine.

    Raises:
        UserError: the file is there already, its journal belongs to another build, or another process is building it.
    """
    journal = out.with_name(out.name + ".partial")
    if out.exists() and not journal.exists():
        leftovers(out.parent, remove=True)  # the lock of a build that was killed after its last word
        raise UserError(f"{out} is there already; choose another --out, or look at it with: bcnet truth show {shell_word(out)}")
    experiment = Experiment(config)
    with locked(out):
        return _build(experiment, out, Journal(journal, _identity(config, num_seeds), num_seeds), widths, num_seeds, workers, ray_address)


def _build(
    experiment: Experiment, out: Path, journal: "Journal", widths: Sequence[Widths], num_seeds: int, workers: int, ray_address: str | None
) -> dict[str, Any]:
    """Train what the journal has not, and write the file."""
    names = [experiment.space.encode(w) for w in widths]
    missing = [name for name in names if name not in journal.accuracies]
    unfinished = out.with_name(out.name + ".unfinished")
    label = f"truth, {num_seeds} seeds each"
    with (
        ProgressBar(label, len(names), len(names) - len(missing)) as bar,
        closing(_train_all(experiment.config, missing, num_seeds, workers, ray_address, unfinished)) as trained,
    ):
        for number, (name, acc) in enumerate(trained, start=1):
            journal.add(name, acc)
            shutil.rmtree(unfinished / name, ignore_errors=True)
            rate = bar.rate() * num_seeds * 60
            bar.update(len(names) - len(missing) + number, f"{rate:,.0f} networks/min")
    truth = {"meta": _meta(experiment, num_seeds)} | {name: _entry(experiment, name, journal.accuracies[name]) for name in names}
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in truth.items())
    write_text(out, "{\n" + ",\n".join(lines) + "\n}\n")  # a line per width, so that changes can be read
    shutil.rmtree(unfinished, ignore_errors=True)
    journal.path.unlink()
    return truth


def _identity(config: Config, num_seeds: int) -> str:
    tree = config.model_dump(mode="json")
    parts = {key: tree[key] for key in ("data", "model", "space", "retrain")} | {"num_seeds": num_seeds}
    if tree["amp"] != "auto":
        parts["amp"] = tree["amp"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _meta(experiment: Experiment, num_seeds: int) -> dict[str, Any]:
    tree = experiment.config.model_dump(mode="json")
    about = {key: tree[key] for key in ("data", "model", "space", "retrain")}
    full = {cost: experiment.costs.of_model(cost) for cost in ("flops", "params")}
    images = {"train": experiment.data.num_images("full_train"), "test": experiment.data.num_images("test")}
    seeds = list(range(num_seeds))
    versions = experiment.environment()["versions"]
    return {
        "made_by": "bcnet truth build",
        "accuracy": "last epoch, test images, per cent",
        "full": full,
        "images": images,
        "seeds": seeds,
        "config": about,
        "versions": versions,
    }


def _entry(experiment: Experiment, name: str, acc: list[float]) -> dict[str, Any]:
    widths = experiment.space.decode(name)
    spread = stdev(acc) if len(acc) > 1 else 0.0
    costs = {cost: experiment.costs.one(widths, cost) for cost in ("params", "flops")}
    return {"acc": acc, "mean": fmean(acc), "std": spread} | costs


class Journal:
    """Finished widths, one sealed JSON line each, below a line that says which build they belong to.

    A line that a kill left half written is cut off.

    Args:
        path: the file.
        identity: of the build.
        num_seeds: accuracies of every width.

    Raises:
        UserError: the file belongs to another build, or a line is damaged.
    """

    def __init__(self, path: Path, identity: str, num_seeds: int) -> None:
        self.path = path
        self.accuracies: dict[str, list[float]] = {}
        head = {"build": identity}
        whole = read_bytes(path, "the journal of a build") if os.path.lexists(path) else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        first, *lines = whole.split(b"\n")[:-1] or [sealed_line(head).strip()]
        if _entry_of(first) != head:
            raise UserError(f"{path}: belongs to a build with another config or number of seeds; remove it or choose another --out")
        for number, line in enumerate(lines, start=2):
            entry = _entry_of(line)
            name, acc = entry.get("widths"), entry.get("acc")
            if not isinstance(name, str) or not isinstance(acc, list) or len(acc) != num_seeds or not all(map(is_accuracy, acc)):
                raise UserError(f"{path}, line {number}: damaged; remove the line, its width will be trained again")
            self.accuracies[name] = [float(a) for a in acc]
        if path.exists():
            os.truncate(path, len(whole))
        if not whole:
            append_sealed(path, head)

    def add(self, name: str, acc: list[float]) -> None:
        """Keep the accuracies of one width."""
        append_sealed(self.path, {"widths": name, "acc": acc})
        self.accuracies[name] = acc


def _entry_of(line: bytes) -> dict[str, Any]:
    """The entry of a line; of a damaged one, nothing."""
    try:
        entry = read_line(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


# The workers ----------------------------------------------------------------------------------------------------------


class _Trainer:
    """What a worker process does: train one width with all seeds.

    Args:
        config: data, model, space and recipe.
        num_seeds: networks per width.
        threads: of this process.
        folder: where an unfinished training is kept; unset: nowhere.
    """

    def __init__(self, config: Config, num_seeds: int, threads: int, folder: Path | None) -> None:
        tune_malloc()  # a process that is started anew has inherited nothing
        torch.set_num_threads(threads)
        self.experiment = Experiment(config)
        self.test, self.num_seeds, self.folder = self.experiment.test, num_seeds, folder
        self.identity = _identity(self.experiment.config, num_seeds)

    def __call__(self, name: str) -> tuple[str, list[float]]:
        """The width string and its accuracies in per cent."""
        own = self.experiment
        trained = own.train_width(
            own.space.channels(own.space.decode(name)),
            range(self.num_seeds),
            checkpoint=None if self.folder is None else self.folder / name / "checkpoint.pt",
            checkpoint_seconds=own.config.checkpoint_seconds,
            identity=f"{self.identity} {name}",
            keeps_end=False,
        )
        return name, [float(np.round(100 * evaluate(network, self.test)["accuracy"], 6)) for network in trained]


def _train_all(
    config: Config, names: Sequence[str], num_seeds: int, workers: int, ray_address: str | None, folder: Path
) -> Generator[tuple[str, list[float]], None, None]:
    """Train the widths, in any order of completion, on processes here or on Ray workers elsewhere."""
    if not names:
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    start = partial(_Trainer, config, num_seeds, threads)
    if ray_address is None:
        with closing(work_off(partial(start, folder), names, workers)) as trained:
            yield from trained
    else:
        with _ray_pool(ray_address, workers, partial(_start_ray_worker, partial(start, None))) as pool:
            yield from pool.imap_unordered(_train_on_ray, names, chunksize=1)


def _ray_pool(address: str, workers: int, start: Callable[[], None]) -> Any:
    try:
        from ray.util.multiprocessing import Pool
    except ImportError as error:
        raise UserError("--ray wants the extra 'distributed': pip install 'bcnet[distributed]'") from error
    try:
        return Pool(workers, initializer=start, ray_address=address)
    except (ConnectionError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"--ray {address}: no Ray cluster there ({reason}); start one with: ray start --head") from error


_ray_worker: dict[str, _Trainer] = {}  # of a process that Ray started


def _start_ray_worker(make: Callable[[], _Trainer]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _ray_worker["trainer"] = make()


def _train_on_ray(name: str) -> tuple[str, list[float]]:
    return _ray_worker["trainer"](name)
