"""Score width vectors with a trained supernet: calibrate, then evaluate on images held out from training."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import accumulate
from math import log
from statistics import fmean

import torch
from torch import Tensor
from torch import distributed as dist

from bcnet.data.interfaces import EvalSource
from bcnet.distributed import agree, process_rank, world_size
from bcnet.errors import UserError, first_line
from bcnet.progress import ProgressBar, notice
from bcnet.scoring.additive import Shape, WidthEffects
from bcnet.scoring.cache import ScoreCache
from bcnet.scoring.evaluate import Evaluation, evaluate, log_probabilities, refuse_not_finite
from bcnet.scoring.metrics import METRICS, Metric
from bcnet.scoring.plan import NotShareable
from bcnet.scoring.walk import Walker
from bcnet.space.widths import Side, Widths
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.supernet import Supernet

MOST_AT_ONCE = 1024  # width vectors between two writes of the cache
MOST_GROWTH = 4  # of a block over the one before: neighbours may take longer than those that were timed
MOST_SECONDS = 20.0  # between two writes, as near as whole width vectors allow: what a kill may lose


class Scorer:
    """The supernet's estimate for width vectors: mean over the sides it was trained on. Higher is better.

    The weights, the optimizer and all random streams of training stay untouched (law 5).

    Args:
        supernet: trained.
        calibration: training images, not augmented; the same for every candidate.
        validation: images held out from training.
        sides: the sides to score.
        metric: what the score is made of. Where it compares with the full width, that one's probabilities are averaged over the sides.
        half: what to autocast to, bf16 or fp16; unset: not at all.
        memory_gib: memory for what width vectors share.
        whole_layers: compute every layer at full width for all its uses: faster for a large part of a space.
        sample: evaluate these alone, and score any width vector by an additive model of theirs; empty: evaluate what is asked for.
        batch_statistics: score with the BN statistics of every batch of validation images, not with calibrated ones.
        shape: what the effects of that model keep to, see `bcnet.scoring.additive`; unset: nothing.
        cache: where evaluations are kept.

    Attributes:
        anchors: true accuracies of some width vectors, by which additive scores are corrected; they become accuracies then.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration: EvalSource,
        validation: EvalSource,
        *,
        sides: Sequence[Side] = ("left", "right"),
        metric: Metric = METRICS["accuracy"],
        half: torch.dtype | None = None,
        memory_gib: float = 4.0,
        whole_layers: bool = False,
        sample: Sequence[Widths] = (),
        batch_statistics: bool = False,
        shape: Shape | None = "smooth",
        cache: ScoreCache | None = None,
    ) -> None:
        self.supernet, self.calibration, self.validation = supernet, calibration, validation
        self.sides, self.metric, self.half, self.cache = tuple(sides), metric, half, cache
        self.memory_gib, self.whole_layers, self.sample = memory_gib, whole_layers, list(sample)
        self.batch_statistics, self.shape = batch_statistics, shape
        self.metrics = METRICS | {metric.name: metric}
        self.anchors: Mapping[Widths, float] = {}
        self.evaluations: dict[str, dict[str, Evaluation]] = {} if cache is None else cache.evaluations
        self._last_block, self._pace = 0, 0.0  # width vectors of a process; its seconds per multiply-add

    def score(self, widths: Widths) -> float:
        """The score of one width vector."""
        return self.score_many([widths])[widths]

    def score_many(self, wanted: Iterable[Widths], shown: ProgressBar | str = "") -> dict[Widths, float]:
        """Scores of many width vectors; those already known are not computed again.

        Under torchrun every rank computes its share and gets all results; all ranks must ask for the same.

        Args:
            wanted: width vectors.
            shown: a progress bar, of which each of them is a step, or the label of one of their own; empty: none.
        """
        asked = list(wanted)
        self._evaluate_missing(self.sample or asked, shown)
        return dict(zip(asked, self.read(asked), strict=True))

    def most_evaluations(self, scored: int) -> int:
        """How many width vectors have to be evaluated, at most, to score so many."""
        return sum(not self._is_known(self.supernet.space.encode(widths)) for widths in self.sample) if self.sample else scored

    def read(self, wanted: Sequence[Widths], *, metric: str | None = None, sides: Sequence[Side] | None = None) -> list[float]:
        """Scores by any metric (its name) and on any of the sides, from what has been evaluated; higher is better."""
        if self.sample:
            return [float(value) for value in self.effects(metric=metric, sides=sides).predict(wanted)]
        return [self._value(widths, metric, sides) for widths in wanted]

    def effects(self, *, metric: str | None = None, sides: Sequence[Side] | None = None) -> WidthEffects:
        """The additive model of the sample's scores, corrected by the anchors unless another metric is asked for."""
        values = [self._value(widths, metric, sides) for widths in self.sample]
        groups = self.supernet.space.groups
        effects = WidthEffects.fit(self.sample, values, groups, self.shape)
        if effects is None:
            raise UserError(f"no additive model can be fitted to {len(values)} scores from {min(values)} to {max(values)}")
        if self.anchors and metric is None:
            return effects.corrected(list(self.anchors), list(self.anchors.values()), groups)
        return effects

    def _value(self, widths: Widths, metric: str | None, sides: Sequence[Side] | None) -> float:
        chosen = self.metrics[metric] if metric else self.metric
        known = self.evaluations[self.supernet.space.encode(widths)]
        return chosen.to_score(fmean(known[side][chosen.name] for side in sides or self.sides))

    def _is_known(self, name: str) -> bool:
        known = self.evaluations.get(name, {})
        return all(side in known and self.metric.name in known[side] for side in self.sides)

    def _evaluate_missing(self, wanted: Sequence[Widths], shown: ProgressBar | str) -> None:
        names = {widths: self.supernet.space.encode(widths) for widths in wanted}
        missing = sorted(widths for widths, name in names.items() if not self._is_known(name))
        done = 0
        if isinstance(shown, ProgressBar) and not self.sample:
            shown.skip(len(names) - len(missing))
        with ProgressBar(shown, len(missing)) if isinstance(shown, str) else nullcontext(shown) as bar:
            if missing:
                _ = self.walker, self.reference  # which all share
                bar.begin()
            before = bar.done
            while done < len(missing):
                block = self._next_block(missing[done:])
                start = time.perf_counter()
                self._evaluate_block(block, names, lambda part, so_far=before + done: bar.update(int(so_far + part)))  # type: ignore[misc]
                done += len(block)
                self._keep_pace(block, time.perf_counter() - start)

    def _next_block(self, missing: Sequence[Widths]) -> Sequence[Widths]:
        """As many as are meant to take `MOST_SECONDS`, each process its share; first one each, by which the pace is taken."""
        if self.walker is None or not self._pace:
            return missing[: world_size()]
        candidates = missing[: min(self._most_at_once(), MOST_GROWTH * self._last_block)]
        so_far = accumulate(added for _, added in self.walker.multiply_adds(candidates))
        share = sum(total * self._pace <= MOST_SECONDS for total in so_far)
        return missing[: max(1, share) * world_size()]

    def _keep_pace(self, block: Sequence[Widths], seconds: float) -> None:
        """How long a block took, the slowest process of all, per multiply-add of the walk: neighbours share more or less of it."""
        if self.walker is None:
            return
        self._last_block = -(-len(block) // world_size())
        work = sum(added for _, added in self.walker.multiply_adds(block[: self._last_block]))
        (microseconds,) = agree([int(1e6 * seconds) + 1], next(self.supernet.parameters()).device)
        self._pace = microseconds / 1e6 / max(1, work)

    def _evaluate_block(self, block: Sequence[Widths], names: dict[Widths, str], tick: Callable[[float], None]) -> None:
        """Evaluate and keep some width vectors; of several processes each takes its share, and all get all results."""
        share = -(-len(block) // world_size())
        mine = block[process_rank() * share : (process_rank() + 1) * share]
        sides = self._evaluate(mine, lambda part: tick(part * world_size())) if mine else []
        evaluated = {names[widths]: one for widths, one in zip(mine, sides, strict=True)}
        if world_size() > 1:
            of_all: list[dict[str, dict[str, Evaluation]]] = [{} for _ in range(world_size())]
            dist.all_gather_object(of_all, evaluated)
            evaluated = {name: one for part in of_all for name, one in part.items()}
        for widths in block:
            name = names[widths]
            for side, one in evaluated[name].items():
                refuse_not_finite(one, f"widths {name} on the {side}")
            if self.cache is not None and process_rank() == 0:
                self.cache.add(name, evaluated[name])
            self.evaluations[name] = evaluated[name]

    @cached_property
    def walker(self) -> Walker | None:
        """Computes together what width vectors share; ``None`` where that is not possible, so each is scored alone."""
        batch = max(self.calibration.largest_batch, self.validation.largest_batch)
        try:
            walker = Walker(self.supernet, self.validation.shape, half=self.half, whole_layers=self.whole_layers)
        except NotShareable as error:
            notice(f"width vectors are scored one by one, which takes longer: {first_line(error)}")
            return None
        needed = walker.bytes_per_image * batch / 2**30
        if needed > self.memory_gib:
            notice(
                f"width vectors are scored one by one, which takes longer: together they need {needed:.1f} GiB, and score.memory_gib is "
                f"{self.memory_gib:g}; a smaller score.batch_size needs less"
            )
            return None
        return walker

    def _most_at_once(self) -> int:
        """How many width vectors can be walked over at once within memory."""
        assert self.walker is not None
        return max(1, min(MOST_AT_ONCE, int(self.memory_gib * 2**30 / self.walker.bytes_per_widths)))

    def _evaluate(self, block: Sequence[Widths], tick: Callable[[float], None]) -> list[dict[str, Evaluation]]:
        """Both sides of every width vector; ``tick`` is told how many are done."""
        if self.walker is None:
            return [self._evaluate_alone(widths) for widths in block]
        columns: dict[str, list[Evaluation]] = {}
        for number, side in enumerate(self.sides):

            def part(share: float, number: int = number) -> None:
                tick(len(block) * (number + share) / len(self.sides))

            metrics = tuple(self.metrics.values())
            columns[side] = self.walker.evaluate(
                block,
                side,
                None if self.batch_statistics else self.calibration,
                self.validation,
                metrics=metrics,
                tick=part,
                reference=self.reference,
            )
        return [{side: column[row] for side, column in columns.items()} for row in range(len(block))]

    def _evaluate_alone(self, widths: Widths) -> dict[str, Evaluation]:
        result: dict[str, Evaluation] = {}
        reference = self.reference  # before a subnet is made active: it needs the full width
        for side in self.sides:
            self._activate(widths, side)
            metrics = tuple(self.metrics.values())
            result[side] = evaluate(
                self.supernet,
                self.validation,
                metrics=metrics,
                reference=reference,
                half=self.half,
                batch_statistics=self.batch_statistics,
            )
        return result

    def _activate(self, widths: Widths, side: Side) -> None:
        self.supernet.set_active_subnet(widths, side)
        if not self.batch_statistics:
            calibrate(self.supernet, self.calibration, half=self.half)

    @cached_property
    def reference(self) -> Tensor:
        """What the full width predicts, mean of the probabilities over the sides: log-probabilities, images x classes."""
        of_sides = []
        for side in self.sides:
            self._activate(self.supernet.space.full, side)
            own = log_probabilities(self.supernet, self.validation, half=self.half, batch_statistics=self.batch_statistics)
            of_sides.append(own)
        return torch.stack(of_sides).logsumexp(0) - log(len(of_sides))
