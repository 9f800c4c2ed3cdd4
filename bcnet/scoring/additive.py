"""What the width of every group is worth on its own: an additive model of scores.

Most of what a score says beyond such a model is noise of the supernet: the model, fitted to a few hundred scored width vectors,
ranks a space as well as scoring all of it, or better (``benchmarks/README.md``). Where the channel counts are known, the worth of a
group never falls with its width, and each doubling adds no more than the one before: what breaks that rule is noise, too. It also
holds groups of many choices together, so that fewer width vectors suffice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcnet.space.widths import Group

Floats = npt.NDArray[np.float64]
LEAST_PER_UNKNOWN = 2  # width vectors


def least_sample(groups: Sequence[Group], concave: bool) -> int:
    """How many width vectors a model needs at least."""
    return LEAST_PER_UNKNOWN * (len(groups) if concave else sum(len(group.choices) for group in groups))


@dataclass(frozen=True)
class WidthEffects:
    """A width vector's value is the mean plus, for every group, the effect of its width.

    Attributes:
        mean: of a width vector whose widths are all alike in worth.
        effects: ``(groups, K)``, column ``k - 1`` for index ``k``, each group's mean zero, NaN where nothing is known of an index.
        explained: share of the variance of the fitted values that the model explains.
    """

    mean: float
    effects: Floats
    explained: float

    @classmethod
    def fit(cls, widths: npt.ArrayLike, values: npt.ArrayLike, groups: Sequence[Group] | None = None) -> "WidthEffects | None":
        """The model nearest to the values by least squares.

        Args:
            widths: width indices ``(N, groups)``.
            values: of these width vectors ``(N,)``, the higher the better.
            groups: of the space; given, effects are non-decreasing and concave in the logarithm of the channels.

        Returns:
            ``None`` if there are fewer than two width vectors per unknown, or all values are the same.
        """
        indices, target = np.asarray(widths, np.int64), np.asarray(values, np.float64)
        if groups is not None:
            return _fit_concave(indices, target, groups)
        occurs = [np.unique(column) for column in indices.T]
        if len(target) < LEAST_PER_UNKNOWN * sum(map(len, occurs)) or np.ptp(target) == 0:
            return None
        indicators = np.concatenate([(indices[:, [g]] == levels).astype(np.float64) for g, levels in enumerate(occurs)], 1)
        solution = np.linalg.lstsq(indicators, target, rcond=None)[0]
        effects = np.full((indices.shape[1], indices.max()), np.nan)
        for g, (levels, part) in enumerate(
            zip(occurs, np.split(solution, np.cumsum([len(levels) for levels in occurs])[:-1]), strict=True)
        ):
            effects[g, levels - 1] = part
        return _centred(0.0, effects, indices, target)

    def predict(self, widths: npt.ArrayLike) -> Floats:
        """Values ``(N,)`` of width indices ``(N, groups)``."""
        return self.mean + _sum_effects(self.effects, np.asarray(widths, np.int64).reshape(-1, len(self.effects)))


def _fit_concave(indices: npt.NDArray[np.int64], target: Floats, groups: Sequence[Group]) -> WidthEffects | None:
    """Effects that are sums, none of them negative, of ramps in the logarithm of the channels, each of which ends at one choice."""
    from scipy.optimize import nnls  # not needed for training

    if len(target) < least_sample(groups, concave=True) or np.ptp(target) == 0:
        return None
    ramps = [_ramps(group) for group in groups]
    columns = np.concatenate([ramp[indices[:, g] - group.smallest] for g, (group, ramp) in enumerate(zip(groups, ramps, strict=True))], 1)
    centre = columns.mean(0)
    factors = nnls(columns - centre, target - target.mean(), maxiter=max(1000, 30 * columns.shape[1]))[0]
    effects = np.full((len(groups), max(group.bins for group in groups)), np.nan)
    parts = np.split(factors, np.cumsum([ramp.shape[1] for ramp in ramps])[:-1])
    for row, group, ramp, part in zip(effects, groups, ramps, parts, strict=True):
        row[group.smallest - 1 : group.bins] = ramp @ part
    return _centred(float(target.mean() - centre @ factors), effects, indices, target)


def _ramps(group: Group) -> Floats:
    """``(choices, choices - 1)``: from 0 at the narrowest choice, linear in the logarithm up to 1 at the column's choice, then level."""
    logs = np.log(np.array(group.choices, np.float64))
    logs -= logs[0]
    return np.minimum(logs[:, None], logs[None, 1:]) / logs[1:]


def _centred(mean: float, effects: Floats, indices: npt.NDArray[np.int64], target: Floats) -> WidthEffects:
    """The model whose effects have the mean zero in every group."""
    means = np.nanmean(effects, 1)
    mean, effects = mean + float(means.sum()), effects - means[:, None]
    error = target - mean - _sum_effects(effects, indices)
    return WidthEffects(mean, effects, float(1 - np.square(error).mean() / target.var()))


def _sum_effects(effects: Floats, indices: npt.NDArray[np.int64]) -> Floats:
    total: Floats = effects[np.arange(len(effects)), indices - 1].sum(1)
    return total
