"""What an experiment will cost before it is begun: reachable costs, widths within budgets, time and memory on this machine."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bcnet.experiment import Experiment
from bcnet.space.cost import Budget, CostTable
from bcnet.space.widths import Widths
from bcnet.supernet.supernet import Supernet

_SAMPLED = 200_000
_MOST_SECONDS = 20.0  # of timed steps; after the first, unless that alone takes longer
_MOST_STEPS = 20
_SCORED = 4
_FIRST_IMAGES = 32
_ENOUGH_SECONDS = 2.0  # of scoring, to tell how long it takes


@dataclass(frozen=True)
class Reach:
    """What a cost may be.

    Attributes:
        name: of the cost.
        low: of the narrowest width vector.
        typical: median of width vectors drawn uniformly.
        high: of the widest.
    """

    name: str
    low: float
    typical: float
    high: float


@dataclass(frozen=True)
class Work:
    """What training, scoring and search will take on this machine, from a few steps and scores.

    Attributes:
        step_seconds: of one training step.
        steps: of the whole training.
        images_per_second: in training.
        passes: forward and backward passes per step.
        width_seconds: of one scored width vector.
        widths: that a search scores; of a greedy descent the most it can.
        short_steps: of all short trainings of a search together.
        short_step_seconds: of one of these steps at full width, which no width takes longer than.
        gib: largest memory of the process, or of the GPU; unset where the system does not say.
        device: ``cpu`` or ``cuda``.
    """

    step_seconds: float
    steps: int
    images_per_second: float
    passes: int
    width_seconds: float
    widths: int
    short_steps: int
    short_step_seconds: float
    gib: float | None
    device: str


def reach(costs: CostTable, seed: int = 0) -> list[Reach]:
    """Every cost: narrowest, typical, widest."""
    drawn = _draw(costs, seed)
    return [Reach(name, costs.range(name)[0], float(np.median(costs.of_widths(drawn, name))), costs.range(name)[1]) for name in costs.names]


def count_within(costs: CostTable, budgets: Sequence[Budget], seed: int = 0) -> tuple[float, bool]:
    """How many width vectors keep all budgets, and whether that was counted (small spaces) or estimated from random ones."""
    exact = costs.space.size <= _SAMPLED
    widths = np.array(list(costs.space.enumerate())) if exact else _draw(costs, seed)
    within = np.ones(len(widths), dtype=bool)
    for budget in budgets:
        within &= costs.of_widths(widths, budget.cost) <= budget.limit
    return (int(within.sum()) if exact else float(within.mean()) * costs.space.size), exact


def work(experiment: Experiment) -> Work:
    """Train a fresh supernet for a few steps and score a few width vectors; nothing is written."""
    trainer, begun, first = experiment.make_trainer(), time.perf_counter(), 0
    trainer.run(1)
    if time.perf_counter() - begun < _MOST_SECONDS:
        begun, first = time.perf_counter(), trainer.step
    while trainer.step < min(trainer.total_steps, first + _MOST_STEPS) and time.perf_counter() - begun < _MOST_SECONDS:
        trainer.run(trainer.step + 1)
        if experiment.device.type == "cuda":
            torch.cuda.synchronize(experiment.device)
    seconds = max(1e-9, time.perf_counter() - begun) / max(1, trainer.step - first)
    supernet = trainer.trained
    assert isinstance(supernet, Supernet)
    short_steps = experiment.config.search.short_trainings * experiment.short_steps
    return Work(
        step_seconds=seconds,
        steps=trainer.total_steps,
        images_per_second=trainer.batches.batch_size / seconds,
        passes=len(trainer.passes(0)),
        width_seconds=_seconds_per_width(experiment, supernet),
        widths=experiment.num_scored,
        short_steps=short_steps,
        short_step_seconds=_seconds_at_full_width(experiment) if short_steps else 0.0,
        gib=_peak_gib(experiment.device),
        device=experiment.device.type,
    )


def _seconds_per_width(experiment: Experiment, supernet: Supernet) -> float:
    """Of one score, from few images where those take long enough."""
    rng = np.random.default_rng(0)
    wanted: list[Widths] = list({experiment.space.sample(rng) for _ in range(_SCORED)})
    whole, data, batch_size = (experiment.calibration, experiment.validation), experiment.data, experiment.config.score.batch_size
    most, of_all, walker = _FIRST_IMAGES, sum(map(len, whole)), experiment.make_scorer(supernet).walker  # in batches of the real size
    while True:
        calibration = data.eval_batches("train", batch_size, min(most, len(whole[0])))
        validation = data.eval_batches("val", batch_size, min(most, len(whole[1])))
        scorer = experiment.make_scorer(supernet, images=(calibration, validation))
        scorer.sample, scorer.walker = [], walker
        scorer.score(experiment.space.narrowest)  # and what the full width predicts
        begun = time.perf_counter()
        scorer.score_many(wanted)
        seconds, seen = time.perf_counter() - begun, len(calibration) + len(validation)
        if seen == of_all or seconds > _ENOUGH_SECONDS:
            return seconds * of_all / seen / len(wanted)
        most *= 8


def _seconds_at_full_width(experiment: Experiment, more: int = 5) -> float:
    """Of a step of the recipe for networks."""
    recipe, seed = experiment.config.retrain, experiment.config.seed
    steps_per_epoch = experiment.data.train_batches("train", recipe.batch_size, seed).steps_per_epoch
    seconds = []
    for steps in (1, 1, 1 + more):  # the first is slower than any other
        short = recipe.model_copy(update={"epochs": steps / steps_per_epoch, "warmup_epochs": 0.0})
        begun = time.perf_counter()
        experiment.train_width(experiment.space.channels(experiment.space.full), [seed], recipe=short, part="train")
        seconds.append(time.perf_counter() - begun)
    return (seconds[2] - seconds[1]) / more if seconds[2] > seconds[1] else seconds[2] / (1 + more)


def _draw(costs: CostTable, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    space = costs.space
    return np.random.default_rng(seed).integers(space.narrowest, [group.bins + 1 for group in space.groups], (_SAMPLED, len(space.groups)))


def _peak_gib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
