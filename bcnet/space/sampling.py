"""Samples of a space in which every width of a group occurs about equally often."""

from collections.abc import Sequence

import numpy as np

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
