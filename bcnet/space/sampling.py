"""Samples of a space: one in which every width of a group occurs about equally often, and one from narrow to wide."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bcnet.space.widths import Space, Widths


def balanced_sample(space: Space, count: int, seed: int) -> list[Widths]:
    """Different random width vectors, in lexicographic order, in which every width of a group occurs about equally often.

    Args:
        space: to draw from; all of it, if it is no larger.
        count: how many.
        seed: of the draw.
    """
    if count >= space.size:
        return list(space.enumerate())
    rng = np.random.default_rng(seed)
    levels = [np.resize(np.array(group.indices), count) for group in space.groups]
    drawn: dict[Widths, None] = {}
    while len(drawn) < count:
        columns: Sequence[list[int]] = [rng.permutation(own).tolist() for own in levels]
        drawn |= dict.fromkeys(zip(*columns, strict=True))
    return sorted(list(drawn)[:count])


def spread_sample(space: Space, count: int, rng: np.random.Generator) -> list[Widths]:
    """Different random width vectors, in lexicographic order, whose mean width is spread evenly from the narrowest to the widest.

    Independent widths add up to about the same sum in a space of many groups; these do not: for each of them every group's place among
    its choices (0 the narrowest, 1 the widest) is drawn from the exponential family with one mean, and the means lie evenly in 0..1.

    Args:
        space: to draw from; all of it, if it is no larger.
        count: how many.
        rng: of the draw.
    """
    if count >= space.size:
        return list(space.enumerate())
    drawn: dict[Widths, None] = {}
    while len(drawn) < count:
        for mean in rng.permutation((np.arange(count) + rng.uniform()) / count):
            probabilities = {choices: _tilted(choices, mean) for choices in {len(group.choices) for group in space.groups}}
            widths = (rng.choice(group.indices, p=probabilities[len(group.choices)]) for group in space.groups)
            drawn[tuple(map(int, widths))] = None
    return sorted(list(drawn)[:count])


def _tilted(choices: int, mean: float) -> npt.NDArray[np.float64]:
    """Probabilities proportional to ``exp(rate * place)`` of places evenly spaced in 0..1, with the given mean place."""
    if choices == 1:
        return np.ones(1)
    places = np.linspace(0, 1, choices)
    low, high = -1e3, 1e3
    for _ in range(60):
        rate = (low + high) / 2
        weights = np.exp(rate * places - max(rate, 0))
        low, high = (rate, high) if places @ weights < mean * weights.sum() else (low, rate)
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities
