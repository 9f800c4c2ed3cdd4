"""What is measured of a network's predictions, one row each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Predictions:
    """What one or more networks say of a batch.

    Attributes:
        logits: networks x images x classes.
        labels: one for each image.
        reference: log-probabilities of the full width, images x classes, where they are known.
    """

    logits: Tensor
    labels: Tensor
    reference: Tensor | None

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Natural logarithms, networks x images x classes, in float32."""
        return self.logits.float().log_softmax(2)


@dataclass(frozen=True)
class Metric:
    """A mean over images.

    A metric of your own is an instance of this class; ``score.metric=package.module:name`` uses it.

    Attributes:
        name: of its column in results.
        label: what a score by it is called; of the negative, where less is better.
        sign: 1 where more is better, -1 where less is.
        per_image: the value for every network and image, networks x images.
        needs_reference: whether it compares with the predictions of the full width.
    """

    name: str
    label: str
    sign: int
    per_image: Callable[[Predictions], Tensor]
    needs_reference: bool = False

    def to_score(self, value: float) -> float:
        """The score, of which higher is better."""
        return value if self.sign > 0 else -value


def _accuracy(predictions: Predictions) -> Tensor:
    return (predictions.logits.argmax(2) == predictions.labels).to(torch.float64)


def _cross_entropy(predictions: Predictions) -> Tensor:
    chosen = predictions.labels.expand(len(predictions.logits), -1)[..., None]
    return -predictions.log_probabilities.gather(2, chosen).squeeze(2).double()


def _kl(predictions: Predictions) -> Tensor:
    assert predictions.reference is not None
    reference = predictions.reference.expand_as(predictions.logits)
    return F.kl_div(predictions.log_probabilities, reference, reduction="none", log_target=True).sum(2).double()


SQUARED_CROSS_ENTROPY = Metric(
    "squared_cross_entropy", "squared cross-entropy", -1, lambda predictions: _cross_entropy(predictions).square()
)  # for the standard error of the cross-entropy

METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", 1, _accuracy),
        Metric("cross_entropy", "negative cross-entropy", -1, _cross_entropy),
        Metric("kl", "negative KL divergence from the full width", -1, _kl, needs_reference=True),
    )
}
