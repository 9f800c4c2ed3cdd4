"""Score width vectors with a trained supernet: calibrate, then evaluate on images held out from training."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from math import log
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch import distributed as dist

from bcnet.data.batches import EvalBatches
from bcnet.errors import UserError
from bcnet.progress import ProgressBar
from bcnet.runtime import rank, world_size
from bcnet.search.effects import WidthEffects
from bcnet.search.evaluate import Evaluation, evaluate, log_probabilities
from bcnet.search.exhaustive import Walker
from bcnet.search.plan import NotShareable
from bcnet.space.widths import Widths
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.layers import Side
from bcnet.supernet.supernet import Supernet

LARGE_PART = 0.1  # of a space; from here on it pays to compute layers at full width for all their uses
MOST_AT_ONCE = 1024  # width vectors between two writes of the cache


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
                    self.found[entry["widths"]] = {s: _evaluation(entry[s]) for s in ("left", "right") if s in entry}
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


def _evaluation(entry: dict[str, float]) -> Evaluation:
    return Evaluation(entry["accuracy"], entry["cross_entropy"], entry["kl"])


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
        metric: ``accuracy``, ``neg_cross_entropy``, or ``neg_kl``: how near a width vector's predictions are to those of the
            full width, whose probabilities are averaged over the sides.
        bf16: autocast to bf16.
        memory_gib: memory for what width vectors share.
        whole_layers: compute every layer at full width for all its uses: for a large part of a space.
        sample: evaluate these alone, and score any width vector by an additive model of theirs; empty: evaluate what is asked for.
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
        memory_gib: float = 4.0,
        whole_layers: bool = False,
        sample: Sequence[Widths] = (),
        cache: ScoreCache | None = None,
    ) -> None:
        self.supernet, self.calibration, self.validation = supernet, calibration, validation
        self.sides, self.metric, self.bf16, self.cache = tuple(sides), metric, bf16, cache
        self.memory_gib, self.whole_layers, self.sample = memory_gib, whole_layers, list(sample)
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
        asked = list(wanted)
        self._evaluate_missing(self.sample or asked, label)
        return dict(zip(asked, self.read(asked), strict=True))

    def read(self, wanted: Sequence[Widths], *, metric: str | None = None, sides: Sequence[Side] | None = None) -> list[float]:
        """Scores by any metric and on any of the sides, from what has been evaluated; higher is better."""
        if self.sample:
            return [float(value) for value in self.effects(metric=metric, sides=sides).predict(wanted)]
        return [self._value(widths, metric, sides) for widths in wanted]

    def effects(self, *, metric: str | None = None, sides: Sequence[Side] | None = None) -> WidthEffects:
        """The additive model of the sample's scores."""
        values = [self._value(widths, metric, sides) for widths in self.sample]
        found = WidthEffects.fit(self.sample, values)
        if found is None:
            raise UserError(f"no additive model can be fitted to {len(values)} scores from {min(values)} to {max(values)}")
        return found

    def _value(self, widths: Widths, metric: str | None, sides: Sequence[Side] | None) -> float:
        chosen = metric or self.metric
        name = chosen.removeprefix("neg_")
        known = self.evaluations[self.supernet.space.encode(widths)]
        mean = fmean(getattr(known[side], name) for side in sides or self.sides)
        return mean if name == chosen else -mean

    def _evaluate_missing(self, wanted: Sequence[Widths], label: str) -> None:
        names = {widths: self.supernet.space.encode(widths) for widths in wanted}
        missing = sorted(widths for widths, name in names.items() if name not in self.evaluations)
        share = -(-len(missing) // world_size())
        mine = missing[rank() * share : (rank() + 1) * share]
        found: dict[str, dict[str, Evaluation]] = {}
        size = self._block_size()
        with ProgressBar(label, len(mine)) as bar:
            for start in range(0, len(mine), size):
                block = mine[start : start + size]
                parts = self._evaluate(block, lambda part, done=start: bar.update(int(done + part)))  # type: ignore[misc]
                for widths, sides in zip(block, parts, strict=True):
                    found[names[widths]] = sides
                    if world_size() == 1:
                        self._keep(found, names[widths])
        if world_size() > 1:
            parts_of_all: list[dict[str, dict[str, Evaluation]]] = [{} for _ in range(world_size())]
            dist.all_gather_object(parts_of_all, found)
            merged = {name: sides for part in parts_of_all for name, sides in part.items()}
            for widths in missing:
                self._keep(merged, names[widths])

    def _keep(self, found: dict[str, dict[str, Evaluation]], name: str) -> None:
        if self.cache is not None and rank() == 0:
            self.cache.add(name, found[name])
        self.evaluations[name] = found[name]

    @cached_property
    def walker(self) -> Walker | None:
        """Computes together what width vectors share; ``None`` where that is not possible, so each is scored alone."""
        batch = max(self.calibration.largest_batch, self.validation.largest_batch)
        try:
            walker = Walker(self.supernet, self.validation.images.shape, bf16=self.bf16, whole_layers=self.whole_layers)
        except NotShareable:
            return None
        return walker if walker.bytes_per_image * batch <= self.memory_gib * 2**30 else None

    def _block_size(self) -> int:
        """How many width vectors to walk over at once: as many as keep within memory, and no more than a kill may lose."""
        if self.walker is None:
            return 1
        return max(1, min(MOST_AT_ONCE, int(self.memory_gib * 2**30 / self.walker.bytes_per_widths)))

    def _evaluate(self, block: Sequence[Widths], tick: Callable[[float], None]) -> list[dict[str, Evaluation]]:
        """Both sides of every width vector; ``tick`` is told how many are done."""
        if self.walker is None:
            return [self._evaluate_alone(widths) for widths in block]
        columns: dict[str, list[Evaluation]] = {}
        for number, side in enumerate(self.sides):

            def part(share: float, number: int = number) -> None:
                tick(len(block) * (number + share) / len(self.sides))

            columns[side] = self.walker.evaluate(block, side, self.calibration, self.validation, part, self.reference)
        return [{side: column[row] for side, column in columns.items()} for row in range(len(block))]

    def _evaluate_alone(self, widths: Widths) -> dict[str, Evaluation]:
        result: dict[str, Evaluation] = {}
        reference = self.reference  # before a subnet is made active: it needs the full width
        for side in self.sides:
            self._activate(widths, side)
            result[side] = evaluate(self.supernet, self.validation, bf16=self.bf16, reference=reference)
        return result

    def _activate(self, widths: Widths, side: Side) -> None:
        self.supernet.set_active_subnet(widths, side)
        calibrate(self.supernet, self.calibration, bf16=self.bf16)

    @cached_property
    def reference(self) -> Tensor:
        """What the full width predicts, mean of the probabilities over the sides: log-probabilities, images x classes."""
        found = []
        for side in self.sides:
            self._activate(self.supernet.space.full, side)
            found.append(log_probabilities(self.supernet, self.validation, bf16=self.bf16))
        return torch.stack(found).logsumexp(0) - log(len(found))
