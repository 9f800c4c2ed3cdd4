"""What else scores widths: ways that cost as many passes over the images as a supernet, and ways that cost next to none.

All are read as the scores of a supernet are: a sample of widths is scored, and what the width of each group is worth in it scores the rest.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bcnet.config import Config, Named
from bcnet.experiment import Experiment
from bcnet.progress import ProgressBar
from bcnet.run import Run
from bcnet.scoring.additive import WidthEffects, least_sample
from bcnet.scoring.cache import ScoreCache
from bcnet.scoring.evaluate import Evaluation, evaluate
from bcnet.scoring.zero_cost import BATCHES, PROXIES, zero_cost_scores
from bcnet.seeds import STREAM_MODEL, STREAM_SAMPLE, derive_seed
from bcnet.space.sampling import balanced_sample
from bcnet.space.widths import Side, Widths
from bcnet.supernet.importance import channel_importance
from bcnet.supernet.order import sort_channels
from bcnet.supernet.supernet import Supernet, narrow
from bcnet.training.strategies import Pass, Strategy
from bcnet.training.train_width import train_width

ZERO_COST_WIDTHS = 100
INITIALISATIONS = 3  # that zero-cost proxies are averaged over
ZERO_COST_BATCH = 64
ALONE_PER_GROUP = 4  # networks that are trained alone; twice as many and half as many ranked no better on digits


@dataclass(frozen=True)
class Scored:
    """What a competitor says.

    Attributes:
        effects: what the width of every group is worth.
        passes: forward and backward passes over a batch.
        seconds: it took in all.
    """

    effects: WidthEffects
    passes: int
    seconds: float


class WholeNetwork(Strategy):
    """The whole network in every step, by the labels: what pruning and sensitivity analysis start from, and no way to train a supernet."""

    sides: ClassVar[tuple[Side, ...]] = ("left",)

    def passes(self, step: int) -> list[Pass]:
        """The widest on the left."""
        return [Pass(self.space.full)]


def zero_cost(config: Config, passes: float, folder: Path) -> dict[str, Scored]:
    """Proxies of networks that are not trained, and what a sample of them says of all widths.

    Args:
        config: the experiment, with its seed.
        passes: over all images that the others make; not used.
        folder: where what was computed is kept.

    Returns:
        One entry per proxy.
    """
    experiment = Experiment(config)
    space, seed = experiment.space, config.seed
    sample = balanced_sample(space, ZERO_COST_WIDTHS, derive_seed(seed, STREAM_SAMPLE))
    source = experiment.data.eval_batches("train", ZERO_COST_BATCH, BATCHES * ZERO_COST_BATCH)
    batches = [(images.float(), labels) for images, labels in source]
    models = [experiment.build_model(derive_seed(seed, STREAM_MODEL, number)) for number in range(INITIALISATIONS)]

    def measure(widths: Widths) -> dict[str, float]:
        channels = space.channels(widths)
        networks = [narrow(model, space, channels).to(experiment.device) for model in models]
        each = [zero_cost_scores(network, batches, derive_seed(seed, STREAM_MODEL, number)) for number, network in enumerate(networks)]
        return {name: float(np.mean([scores[name] for scores in each])) for name in PROXIES}

    known = _remembered(experiment, folder, sample, measure, "zero-cost proxies")
    return {name: _read(experiment, sample, known, name, passes=0) for name in PROXIES}


def trained_alone(config: Config, passes: float, folder: Path) -> dict[str, Scored]:
    """A few networks trained one by one, each for its part of the passes, and what their validation accuracies say of all widths.

    Args:
        config: the experiment, with its seed; ``retrain`` is the recipe.
        passes: over all images, for all networks together.
        folder: where accuracies are kept.
    """
    experiment = Experiment(config)
    space, seed = experiment.space, config.seed
    count = min(space.size, max(ALONE_PER_GROUP * len(space.groups), least_sample(space.groups)))
    sample = balanced_sample(space, count, derive_seed(seed, STREAM_SAMPLE))
    epochs = passes / len(sample)
    recipe = config.retrain.lasting(epochs)

    def measure(widths: Widths) -> dict[str, float]:
        network = narrow(experiment.build_model(derive_seed(seed, STREAM_MODEL)), space, space.channels(widths))
        (trained,) = train_width(
            [network],
            [experiment.data.train_batches("train", recipe.batch_size, seed)],
            recipe,
            seeds=[seed],
            input_shape=experiment.data.input_shape,
            device=experiment.device,
            half=experiment.half,
        )
        return {"accuracy": evaluate(trained, experiment.validation, half=experiment.half)["accuracy"]}

    known = _remembered(experiment, folder, sample, measure, f"{len(sample)} networks trained alone", epochs)
    steps = experiment.data.train_batches("train", config.train.batch_size, seed).steps_per_epoch  # as the others' passes are counted
    return {f"{len(sample)} trained alone": _read(experiment, sample, known, "accuracy", passes=len(sample) * round(epochs * steps))}


def sensitivity(config: Config, passes: float, folder: Path) -> dict[str, Scored]:
    """The whole network trained alone, and how much each width of each group hurts when all others stay whole.

    The channels are sorted by importance first, and a wider group is never worth less, as in NVIDIA's FastNAS.

    Args:
        config: the experiment, with its seed; its score measures the harm.
        passes: over all images.
        folder: of the run.
    """
    strategy = Named(name=f"{__name__}:{WholeNetwork.__name__}")
    train = config.train.lasting(passes).model_copy(update={"strategy": strategy})
    score = config.score.model_copy(update={"additive": None})
    run = Run.create(folder, config.model_copy(update={"train": train, "score": score, "watch_every": 0}), resume=True)
    run.train()
    experiment, space, before = run.experiment, run.space, time.perf_counter()
    network = experiment.inherited(run.supernet, space.channels(space.full))
    importance = channel_importance(network, space, "taylor", experiment.calibration, experiment.device)
    scorer = experiment.make_scorer(Supernet(sort_channels(network, space, importance, experiment.data.input_shape), space))
    ones = [[_with(space.full, g, index) for index in group.indices] for g, group in enumerate(space.groups)]
    scores = scorer.score_many({widths for own in ones for widths in own}, "sensitivity of every group")
    effects = np.full((len(ones), max(group.bins for group in space.groups)), np.nan)
    for row, group, own in zip(effects, space.groups, ones, strict=True):
        row[group.smallest - 1 : group.bins] = np.maximum.accumulate([scores[widths] - scores[space.full] for widths in own])
    seconds = run.trained.history.seconds + time.perf_counter() - before
    return {"sensitivity": Scored(WidthEffects(scores[space.full], effects, 1.0), run.trained.history.passes, seconds)}


def _with(widths: Widths, group: int, index: int) -> Widths:
    return (*widths[:group], index, *widths[group + 1 :])


def _remembered(
    experiment: Experiment, folder: Path, sample: Sequence[Widths], measure: Callable[[Widths], Evaluation], label: str, *more: float
) -> list[Evaluation]:
    """What is measured of every width vector, with the seconds it took; kept on disk, one line each."""
    config, space = experiment.config, experiment.space
    identity = hashlib.sha256(f"{config.model_dump_json()} {more}".encode()).hexdigest()[:16]
    cache = ScoreCache(folder / f"{identity}.jsonl")
    names = [space.encode(widths) for widths in sample]
    missing = [(name, widths) for name, widths in zip(names, sample, strict=True) if name not in cache.evaluations]
    with ProgressBar(label, len(sample), len(sample) - len(missing)) as bar:
        for number, (name, widths) in enumerate(missing, len(sample) - len(missing) + 1):
            before = time.perf_counter()
            cache.add(name, {"left": measure(widths) | {"seconds": time.perf_counter() - before}})
            bar.update(number)
    return [cache.evaluations[name]["left"] for name in names]


def _read(experiment: Experiment, sample: Sequence[Widths], known: Sequence[Evaluation], name: str, *, passes: int) -> Scored:
    groups = experiment.space.groups
    effects = WidthEffects.fit(sample, [one[name] for one in known], groups)
    if effects is None:  # all alike
        effects = WidthEffects(known[0][name], np.zeros((len(groups), max(group.bins for group in groups))), 1.0)
    return Scored(effects, passes, sum(one["seconds"] for one in known))


COMPETITORS: dict[str, Callable[[Config, float, Path], dict[str, Scored]]] = {
    "zero_cost": zero_cost,
    "sensitivity": sensitivity,
    "trained_alone": trained_alone,
}
