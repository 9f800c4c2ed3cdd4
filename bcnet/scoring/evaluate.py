"""Evaluate networks on a set of images."""

from collections.abc import Iterator, Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from bcnet.data.interfaces import EvalSource
from bcnet.errors import UserError
from bcnet.machine import autocast
from bcnet.scoring.metrics import METRICS, Metric, Predictions
from bcnet.supernet.layers import BATCH_NORM

Evaluation = dict[str, float]  # metric -> mean over the images


class Totals:
    """Sums over images of every metric, for one or more networks at once.

    Args:
        number: of networks.
        metrics: what to measure; those that need a reference are left out where there is none.
        reference: log-probabilities of the reference network, images x classes in the order in which the images will come.
        device: where the logits are.
    """

    def __init__(self, number: int, metrics: Sequence[Metric], reference: Tensor | None, device: torch.device) -> None:
        self.metrics = [metric for metric in metrics if reference is not None or not metric.needs_reference]
        self.reference, self.images = reference, 0
        self._sums = torch.zeros((len(self.metrics), number), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, first: int = 0) -> None:
        """Count a batch.

        Args:
            logits: networks x images x classes.
            labels: one for each image.
            first: the number of the first of these networks.
        """
        reference = None if self.reference is None else self.reference[self.images : self.images + len(labels)]
        predictions = Predictions(logits, labels, reference)
        for row, metric in zip(self._sums, self.metrics, strict=True):
            row[first : first + len(logits)] += metric.per_image(predictions).sum(1)

    def end_batch(self, images: int) -> None:
        """All networks have counted this batch."""
        self.images += images

    def means(self) -> list[Evaluation]:
        """Every network's evaluation."""
        names = [metric.name for metric in self.metrics]
        return [{name: value / self.images for name, value in zip(names, column, strict=True)} for column in self._sums.T.tolist()]


def evaluate(
    network: nn.Module,
    batches: EvalSource,
    *,
    metrics: Sequence[Metric] = tuple(METRICS.values()),
    half: torch.dtype | None = None,
    reference: Tensor | None = None,
    batch_statistics: bool = False,
) -> Evaluation:
    """Every metric of a network in evaluation mode.

    Args:
        network: whose logits are measured.
        batches: images.
        metrics: what to measure.
        half: what to autocast to, bf16 or fp16; unset: not at all.
        reference: what `log_probabilities` gave for another network.
        batch_statistics: BN normalises every batch by its own statistics; for supernets, whose running ones stay what they were.

    Raises:
        UserError: a metric is not finite.
    """
    totals = Totals(1, metrics, reference, next(network.parameters()).device)
    for logits, labels in _logits(network, batches, half, batch_statistics):
        totals.add(logits[None], labels)
        totals.end_batch(len(labels))
    evaluation = totals.means()[0]
    refuse_not_finite(evaluation, "what is evaluated")
    return evaluation


def refuse_not_finite(evaluation: Evaluation, what: str) -> None:
    """Refuse an evaluation that is not finite: the network was trained with too large a learning rate, or its images are wrong.

    Args:
        evaluation: of one network.
        what: which, for the message.

    Raises:
        UserError: naming the first metric.
    """
    for name, value in evaluation.items():
        if not isfinite(value):
            raise UserError(
                f"{what}: {name} is {value}: the network says nothing that could be measured; train it with a lower learning rate"
            )


def log_probabilities(
    network: nn.Module, batches: EvalSource, *, half: torch.dtype | None = None, batch_statistics: bool = False
) -> Tensor:
    """What a network predicts in evaluation mode: images x classes, natural logarithm; see `evaluate`."""
    return torch.cat([logits.float().log_softmax(1) for logits, _ in _logits(network, batches, half, batch_statistics)])


def _logits(network: nn.Module, batches: EvalSource, half: torch.dtype | None, batch_statistics: bool) -> Iterator[tuple[Tensor, Tensor]]:
    network.eval()
    if batch_statistics:
        for module in network.modules():
            if isinstance(module, BATCH_NORM):
                assert not module.track_running_stats
                module.train()
    device = next(network.parameters()).device
    with torch.no_grad():
        for images, labels in batches:
            with autocast(device, half):
                logits = network(images)
            yield logits, labels
