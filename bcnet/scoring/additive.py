"""What the width of every group is worth on its own: an additive model of scores.

Most of what a score says beyond such a model is noise of the supernet: the model, fitted to a few hundred scored width vectors,
ranks a space as well as scoring all of it, or better (``benchmarks/README.md``). Where the channel counts are known, the worth of a
group never falls with its width, and each doubling adds no more than the one before: what breaks that rule is noise, too. Smooth
effects are ``a log(channels) - b / channels``, neither negative, and bend more sharply only as far as the scores insist on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bcnet.errors import UserError
from bcnet.space.widths import Group

Floats = npt.NDArray[np.float64]
Shape = Literal["smooth", "concave"]
LEAST_PER_UNKNOWN = 2  # width vectors
LEAST_ANCHORS = 10
MOST_FOLDS = 5
STIFFNESS = 0.002  # against a bend of its own at a choice, relative to one width vector, times how many a group may have
STRENGTHS = tuple(10.0**power for power in np.arange(-4, 2.1, 0.5))  # of a prior, relative to one width vector


def least_sample(groups: Sequence[Group], shape: Shape | None = "smooth") -> int:
    """How many width vectors a model needs at least; ``None`` stands for free effects."""
    return LEAST_PER_UNKNOWN * (len(groups) if shape else sum(len(group.choices) for group in groups))


@dataclass(frozen=True)
class WidthEffects:
    """A width vector's value is the mean plus, for every group, the effect of its width.

    Attributes:
        mean: of a width vector whose widths are all alike in worth.
        effects: ``(groups, K)``, column ``k - 1`` for index ``k``, each group's mean zero, NaN where nothing is known of an index.
        explained: share of the variance of the fitted values that the model explains.
        shape: what effects keep to when true values correct them.
    """

    mean: float
    effects: Floats
    explained: float
    shape: Shape = "smooth"

    @classmethod
    def fit(
        cls, widths: npt.ArrayLike, values: npt.ArrayLike, groups: Sequence[Group] | None = None, shape: Shape | None = "smooth"
    ) -> "WidthEffects | None":
        """The model nearest to the values by least squares.

        Args:
            widths: width indices ``(N, groups)``.
            values: of these width vectors ``(N,)``, the higher the better.
            groups: of the space; given, effects are non-decreasing and concave in the logarithm of the channels. Unset: they are free.
            shape: ``smooth``: nearly ``a log(channels) - b / channels``; ``concave``: any such effects; unset: free ones.

        Returns:
            ``None`` if there are fewer than two width vectors per unknown, or all values are the same.
        """
        indices, target = np.asarray(widths, np.int64), np.asarray(values, np.float64)
        if groups is not None and shape is not None:
            return _fit_curves(indices, target, _Curves(groups, shape))
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
        return _centred(0.0, effects, indices, target, "smooth")

    def corrected(self, widths: npt.ArrayLike, values: npt.ArrayLike, groups: Sequence[Group]) -> "WidthEffects":
        """This model on the scale of a few width vectors' true values, and drawn towards those as far as that predicts them better.

        Effects keep their shape. How far is decided by cross-validation: between what is said here, scaled, and what the
        true values alone would say.

        Args:
            widths: width indices ``(N, groups)``, the anchors.
            values: the true value of each ``(N,)``.
            groups: of the space.

        Raises:
            UserError: fewer than `LEAST_ANCHORS` of them, or all alike.
        """
        indices, target = np.asarray(widths, np.int64), np.asarray(values, np.float64)
        if len(target) < LEAST_ANCHORS or np.ptp(target) == 0:
            raise UserError(f"{len(target)} anchors of {len(np.unique(target))} different accuracies: at least {LEAST_ANCHORS} are needed")
        curves = _Curves(groups, self.shape)
        columns, prior = curves.columns(indices), curves.factors_of(self.effects)
        folds = np.arange(len(target)) % MOST_FOLDS

        def error(strength: float) -> float:
            parts = ((folds != fold, folds == fold) for fold in np.unique(folds))
            fitted = ((_fit_factors(columns[rest], target[rest], curves.stiffness, prior, strength), out) for rest, out in parts)
            return float(sum(np.square(target[out] - mean - columns[out] @ factors).sum() for (mean, factors), out in fitted))

        strength = min(STRENGTHS, key=error)
        mean, factors = _fit_factors(columns, target, curves.stiffness, prior, strength)
        return _centred(mean, curves.effects(factors), indices, target, self.shape)

    def predict(self, widths: npt.ArrayLike) -> Floats:
        """Values ``(N,)`` of width indices ``(N, groups)``."""
        return self.mean + _sum_effects(self.effects, np.asarray(widths, np.int64).reshape(-1, len(self.effects)))


class _Curves:
    """What the effects of a group are sums of, with factors that are not negative: curves from 0 at its narrowest choice to 1.

    ``concave``: ramps, each linear in the logarithm of the channels up to a choice of its own and level from there on. ``smooth``: before
    them the logarithm itself and the reciprocal, which falls; the factors of ramps are kept small then (``stiffness``).
    """

    def __init__(self, groups: Sequence[Group], shape: Shape) -> None:
        self.groups, self.shape = groups, shape
        self.tables = [self._table(np.array(group.choices, np.float64) / group.choices[0]) for group in groups]
        self.stiffness: Floats = np.concatenate([self._stiffness(len(group.choices)) for group in groups])

    def _table(self, ratios: Floats) -> Floats:
        """The curves at every choice ``(choices, curves)``; ``ratios`` are its channels to those of the narrowest."""
        logs = np.log(ratios)
        ramps: Floats = np.minimum(logs[:, None], logs[None, 1:]) / logs[1:]
        if not self._is_stiff(len(ratios)):
            return ramps
        return np.column_stack([logs / logs[-1], (1 - 1 / ratios) / (1 - 1 / ratios[-1]), ramps])

    def _stiffness(self, choices: int) -> Floats:
        ramps = choices - 1
        return np.repeat([0.0, STIFFNESS * ramps], [2, ramps]) if self._is_stiff(choices) else np.zeros(ramps)

    def _is_stiff(self, choices: int) -> bool:
        return self.shape == "smooth" and choices > 2

    def columns(self, indices: npt.NDArray[np.int64]) -> Floats:
        """The values of all curves at width indices ``(N, groups)``."""
        parts = [table[indices[:, g] - group.smallest] for g, (group, table) in enumerate(zip(self.groups, self.tables, strict=True))]
        return np.concatenate(parts, 1)

    def effects(self, factors: Floats) -> Floats:
        """The effects that factors of all curves make, NaN where an index is no choice."""
        effects = np.full((len(self.groups), max(group.bins for group in self.groups)), np.nan)
        parts = np.split(factors, np.cumsum([table.shape[1] for table in self.tables])[:-1])
        for row, group, table, part in zip(effects, self.groups, self.tables, parts, strict=True):
            row[group.smallest - 1 : group.bins] = table @ part
        return effects

    def factors_of(self, effects: Floats) -> Floats:
        """The factors of curves whose effects are nearest to these."""
        parts = []
        for row, group, table in zip(effects, self.groups, self.tables, strict=True):
            own = row[group.smallest - 1 : group.bins]
            parts.append(_fit_factors(table, own, self._stiffness(len(table)))[1] if table.shape[1] else np.zeros(0))
        factors: Floats = np.concatenate(parts)
        return factors


def _fit_curves(indices: npt.NDArray[np.int64], target: Floats, curves: _Curves) -> WidthEffects | None:
    if len(target) < least_sample(curves.groups, curves.shape) or np.ptp(target) == 0:
        return None
    mean, factors = _fit_factors(curves.columns(indices), target, curves.stiffness)
    return _centred(mean, curves.effects(factors), indices, target, curves.shape)


def _fit_factors(
    columns: Floats, target: Floats, stiffness: Floats, prior: Floats | None = None, strength: float = 0.0
) -> tuple[float, Floats]:
    """The mean and the factors nearest to the values by least squares.

    Args:
        columns: of the curves ``(N, curves)``.
        target: values ``(N,)``.
        stiffness: what the square of each factor costs ``(curves,)``, relative to a width vector's squared error.
        prior: factors to a multiple of which, which is found, these are drawn.
        strength: how much that counts, relative to one width vector.
    """
    from scipy.optimize import nnls  # not needed for training

    centre, count = columns.mean(0), columns.shape[1]
    stiff = np.diag(np.sqrt(stiffness * len(target)))[stiffness > 0]
    system, wanted = np.vstack([columns - centre, stiff]), np.append(target - target.mean(), np.zeros(len(stiff)))
    if prior is not None:
        weight = (strength * len(target)) ** 0.5
        towards = np.column_stack([np.eye(count), -prior / max(prior.max(), 1e-300)])
        system = np.vstack([np.column_stack([system, np.zeros(len(system))]), weight * towards])
        wanted = np.append(wanted, np.zeros(count))
    factors: Floats = nnls(system, wanted, maxiter=max(1000, 30 * system.shape[1]))[0][:count]
    return float(target.mean() - centre @ factors), factors


def _centred(mean: float, effects: Floats, indices: npt.NDArray[np.int64], target: Floats, shape: Shape) -> WidthEffects:
    """The model whose effects have the mean zero in every group."""
    means = np.nanmean(effects, 1)
    mean, effects = mean + float(means.sum()), effects - means[:, None]
    error = target - mean - _sum_effects(effects, indices)
    return WidthEffects(mean, effects, float(1 - np.square(error).mean() / target.var()), shape)


def _sum_effects(effects: Floats, indices: npt.NDArray[np.int64]) -> Floats:
    total: Floats = effects[np.arange(len(effects)), indices - 1].sum(1)
    return total
