"""Widths that are trained for a short time, so that what they reach corrects what the supernet says.

A supernet that was trained for a short time knows which cut hurts its weights most, and less well which one hurts most once a network
was trained for itself. NetAdapt (Yang et al., ECCV 2018) trains each of its proposals for a short time; here a few trainings correct an
additive model of all widths, and each of them is where that model, as far as it is known, expects the most (Thompson sampling).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bcnet.errors import UserError
from bcnet.scoring.additive import LEAST_ANCHORS, WidthEffects
from bcnet.space.widths import Group, Space, Widths
from bcnet.supernet.order import Importance, relative

MOST_REPEATS = 20  # proposals in a row that were trained before
VARIATION = 1.0  # of scores, to begin with; more where nothing new comes of it


@dataclass(frozen=True)
class ShortTraining:
    """A width vector that was trained for a short time.

    Attributes:
        widths: its width vector.
        proposed_by: ``score``, ``uniform`` bins, ``importance`` of the trained model's channels, ``varied`` scores, or scores
            ``corrected`` by the trainings before.
        accuracy: on the images held out from training, in 0..1.
        cross_entropy: on the same images, natural logarithm.
        error: standard error of the cross-entropy, as it is a mean over so many images.
    """

    widths: Widths
    proposed_by: str
    accuracy: float
    cross_entropy: float
    error: float


def search_by_training(
    effects: WidthEffects,
    groups: Sequence[Group],
    *,
    first: Iterable[tuple[str, Widths]],
    best_of: Callable[[WidthEffects], Widths],
    train: Callable[[Widths], Mapping[str, float]],
    count: int,
    rng: np.random.Generator,
) -> list[ShortTraining]:
    """Train some width vectors for a short time, each where most is expected of it after those before.

    Until there are `LEAST_ANCHORS`, the scores are varied at random, group by group; then they are corrected by a bootstrap sample of
    what was trained, and by all of it for the last one; where that proposes nothing new, it is varied, too. The same arguments give the
    same answer, so a killed search is given again.

    Args:
        effects: the additive model of the scores.
        groups: of the space.
        first: width vectors to begin with, and who proposes them.
        best_of: the width vector within the budgets of which a model says most.
        train: trains one; returns ``accuracy``, ``cross_entropy`` and its standard ``error`` on held-out images.
        count: how many to train; fewer, where nothing else is proposed any more.
        rng: of the variations and samples.
    """
    done: dict[Widths, ShortTraining] = {}

    def tell(proposed_by: str, widths: Widths) -> bool:
        if widths in done or len(done) >= count:
            return False
        reached = train(widths)
        done[widths] = ShortTraining(widths, proposed_by, reached["accuracy"], reached["cross_entropy"], reached["error"])
        return True

    for proposed_by, widths in first:
        tell(proposed_by, widths)
    repeats = 0
    while len(done) < count and repeats < MOST_REPEATS:
        if len(done) < LEAST_ANCHORS:
            proposed_by, model = "varied", vary(effects, rng, VARIATION * (1 + repeats / 5))
        else:
            is_last = len(done) == count - 1 and not repeats
            proposed_by, model = "corrected", corrected(effects, groups, list(done.values()), None if is_last else rng)
            model = vary(model, rng, VARIATION * repeats / MOST_REPEATS) if repeats else model
        repeats = 0 if tell(proposed_by, best_of(model)) else repeats + 1
    return list(done.values())


def choose(effects: WidthEffects, groups: Sequence[Group], trained: Sequence[ShortTraining]) -> ShortTraining:
    """Of what was trained, the one of least expected cross-entropy.

    With few held-out images the least measured one is the luckiest. So each is expected between what was measured and what the
    corrected model says: nearer to the measurement the more of what the model leaves unexplained is not the measurement's error.
    """
    measured = np.array([-one.cross_entropy for one in trained])
    if len(trained) < LEAST_ANCHORS:
        return trained[int(measured.argmax())]
    predicted = corrected(effects, groups, trained, None).predict([one.widths for one in trained])
    unexplained = float(np.square(measured - predicted).mean())
    noise = np.square([one.error for one in trained])
    trust = np.clip((unexplained - noise) / max(unexplained, 1e-300), 0.0, 1.0)
    return trained[int((predicted + trust * (measured - predicted)).argmax())]


def vary(effects: WidthEffects, rng: np.random.Generator, variation: float) -> WidthEffects:
    """A model of which each group's effects are multiplied by a random number, whose logarithm has this standard deviation."""
    factors = np.exp(variation * rng.standard_normal(len(effects.effects)))
    return replace(effects, effects=effects.effects * factors[:, None])


def corrected(
    effects: WidthEffects, groups: Sequence[Group], trained: Sequence[ShortTraining], rng: np.random.Generator | None
) -> WidthEffects:
    """A model corrected by what was trained, or by a bootstrap sample of it; by its cross-entropy, which tells more than accuracy."""
    chosen = list(trained) if rng is None else [trained[place] for place in rng.integers(len(trained), size=len(trained))]
    try:
        return effects.corrected([one.widths for one in chosen], [-one.cross_entropy for one in chosen], groups)
    except UserError:  # all alike
        return effects


def most_important(space: Space, importance: Sequence[Importance], share: float) -> Widths:
    """Width vector of the channels whose importance, relative to their group's mean, is among this share of all channels' (global pruning).

    Args:
        space: the width space.
        importance: of every channel of every group; higher is more important.
        share: 0: the narrowest; 1: all channels.
    """
    shares = [relative(values) for values in importance]
    ordered = np.sort(np.concatenate(shares))[::-1]
    kept = round(share * len(ordered))
    least = ordered[kept - 1] if kept else np.inf
    counts = [int((values >= least).sum()) for values in shares]
    return tuple(group.index_within(count) for group, count in zip(space.groups, counts, strict=True))
