"""Score width vectors with a trained supernet: calibrate, then evaluate on images held out from training."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from bcnet.data.batches import EvalBatches
from bcnet.errors import UserError
from bcnet.progress import ProgressBar
from bcnet.runtime import autocast, rank, world_size
from bcnet.space.widths import Widths
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.layers import Side
from bcnet.supernet.supernet import Supernet


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a set of images.

    Attributes:
        accuracy: in 0..1.
        cross_entropy: mean, natural logarithm.
    """

    accuracy: float
    cross_entropy: float


def evaluate(network: nn.Module, batches: EvalBatches, *, bf16: bool = False) -> Evaluation:
    """Accuracy and cross-entropy of a network in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    correct, loss = torch.zeros((), device=device, dtype=torch.int64), torch.zeros((), device=device, dtype=torch.float64)
    with torch.no_grad():
        for images, labels in batches:
            with autocast(device, bf16):
                logits = network(images)
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
    return Evaluation(correct.item() / len(batches), loss.item() / len(batches))


class ScoreCache:
    """Evaluations on disk, one JSON line each, so that they survive a kill; a half-written last line is dropped.

    Args:
        path: the file; its name says which checkpoint, data and settings the evaluations belong to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Evaluation]] = {}
        if path.exists():
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            for line in whole.decode("utf-8", "replace").splitlines():
                try:
                    entry = json.loads(line)
                    self.found[entry["widths"]] = {s: Evaluation(**entry[s]) for s in ("left", "right") if s in entry}
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # a damaged line is scored again

    def add(self, name: str, sides: dict[str, Evaluation]) -> None:
        """Keep one evaluation."""
        self.found[name] = sides
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"widths": name} | {side: asdict(value) for side, value in sides.items()}) + "\n"
        try:
            with self.path.open("ab") as file:
                if file.tell() and not _ends_with_newline(self.path):
                    line = "\n" + line
                file.write(line.encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


class Scorer:
    """The supernet's estimate for width vectors: mean over the sides it was trained on. Higher is better.

    The weights, the optimizer and all random streams of training stay untouched (law 5).

    Args:
        supernet: trained.
        calibration: training images, not augmented; the same for every candidate.
        validation: images held out from training.
        sides: the sides to score.
        metric: ``accuracy`` or ``neg_cross_entropy``.
        bf16: autocast to bf16.
        cache: where evaluations are kept.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration: EvalBatches,
        validation: EvalBatches,
        *,
        sides: Sequence[Side] = ("left", "right"),
        metric: str = "accuracy",
        bf16: bool = False,
        cache: ScoreCache | None = None,
    ) -> None:
        self.supernet, self.calibration, self.validation = supernet, calibration, validation
        self.sides, self.metric, self.bf16, self.cache = tuple(sides), metric, bf16, cache
        self.evaluations: dict[str, dict[str, Evaluation]] = {} if cache is None else cache.found

    def score(self, widths: Widths) -> float:
        """The score of one width vector."""
        return self.score_many([widths])[widths]

    def score_many(self, wanted: Iterable[Widths], label: str = "") -> dict[Widths, float]:
        """Scores of many width vectors; those already known are not computed again.

        Under torchrun every rank computes its share and gets all results; all ranks must ask for the same.

        Args:
            wanted: width vectors.
            label: shown beside a progress bar; empty: none.
        """
        names = {widths: self.supernet.space.encode(widths) for widths in wanted}
        missing = [widths for widths, name in names.items() if name not in self.evaluations]
        mine = missing[rank() :: world_size()]
        found: dict[str, dict[str, Evaluation]] = {}
        with ProgressBar(label, len(mine)) as bar:
            for number, widths in enumerate(mine, start=1):
                found[names[widths]] = self._evaluate_sides(widths)
                if world_size() == 1:
                    self._keep(found, names[widths])
                bar.update(number)
        if world_size() > 1:
            parts: list[dict[str, dict[str, Evaluation]]] = [{} for _ in range(world_size())]
            dist.all_gather_object(parts, found)
            merged = {name: sides for part in parts for name, sides in part.items()}
            for widths in missing:
                self._keep(merged, names[widths])
        return {widths: self._reduce(self.evaluations[name]) for widths, name in names.items()}

    def _keep(self, found: dict[str, dict[str, Evaluation]], name: str) -> None:
        if self.cache is not None and rank() == 0:
            self.cache.add(name, found[name])
        self.evaluations[name] = found[name]

    def _evaluate_sides(self, widths: Widths) -> dict[str, Evaluation]:
        result: dict[str, Evaluation] = {}
        for side in self.sides:
            self.supernet.set_active_subnet(widths, side)
            calibrate(self.supernet, self.calibration, bf16=self.bf16)
            result[side] = evaluate(self.supernet, self.validation, bf16=self.bf16)
        return result

    def _reduce(self, sides: dict[str, Evaluation]) -> float:
        if self.metric == "accuracy":
            return fmean(side.accuracy for side in sides.values())
        return -fmean(side.cross_entropy for side in sides.values())
