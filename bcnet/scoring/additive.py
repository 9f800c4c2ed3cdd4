"""What the width of every group is worth on its own: an additive model of scores.

Most of what a score says beyond such a model is noise of the supernet: the model, fitted to a few hundred scored width vectors,
ranks a space as well as scoring all of it, or better (``benchmarks/README.md``).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LEAST_PER_UNKNOWN = 2  # width vectors


@dataclass(frozen=True)
class WidthEffects:
    """A width vector's value is the mean plus, for every group, the effect of its width.

    Attributes:
        mean: of a width vector whose widths are all alike in worth.
        effects: ``(groups, K)``, column ``k - 1`` for index ``k``, each group's mean zero, NaN where an index does not occur.
        explained: share of the variance of the fitted values that the model explains.
    """

    mean: float
    effects: Floats
    explained: float

    @classmethod
    def fit(cls, widths: npt.ArrayLike, values: npt.ArrayLike) -> "WidthEffects | None":
        """The model nearest to the values by least squares.

        Args:
            widths: width indices ``(N, groups)``.
            values: of these width vectors ``(N,)``.

        Returns:
            ``None`` if there are fewer than two width vectors per unknown, or all values are the same.
        """
        indices, target = np.asarray(widths, np.int64), np.asarray(values, np.float64)
        occurs = [np.unique(column) for column in indices.T]
        if len(target) < LEAST_PER_UNKNOWN * sum(map(len, occurs)) or np.ptp(target) == 0:
            return None
        indicators = np.concatenate([(indices[:, [g]] == levels).astype(np.float64) for g, levels in enumerate(occurs)], 1)
        solution = np.linalg.lstsq(indicators, target, rcond=None)[0]
        effects, mean = np.full((indices.shape[1], indices.max()), np.nan), 0.0
        for g, (levels, part) in enumerate(
            zip(occurs, np.split(solution, np.cumsum([len(levels) for levels in occurs])[:-1]), strict=True)
        ):
            effects[g, levels - 1] = part - part.mean()
            mean += float(part.mean())
        return cls(mean, effects, float(1 - np.square(target - indicators @ solution).mean() / target.var()))

    def predict(self, widths: npt.ArrayLike) -> Floats:
        """Values ``(N,)`` of width indices ``(N, groups)``."""
        groups = len(self.effects)
        indices = np.asarray(widths, np.int64).reshape(-1, groups)
        value: Floats = self.mean + self.effects[np.arange(groups), indices - 1].sum(1)
        return value
