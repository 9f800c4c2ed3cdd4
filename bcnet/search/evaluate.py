"""Evaluate a network on a set of images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.data.batches import EvalBatches
from bcnet.runtime import autocast


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a set of images.

    Attributes:
        accuracy: in 0..1.
        cross_entropy: mean, natural logarithm.
        kl: mean Kullback-Leibler divergence of the network's predictions from those of a reference, natural logarithm; 0 where
            they are the same; ``None`` without a reference.
    """

    accuracy: float
    cross_entropy: float
    kl: float | None = None


class Totals:
    """Sums over images of what makes an `Evaluation`, for one or more networks at once.

    Args:
        number: of networks.
        reference: log-probabilities of the reference network, images x classes in the order in which the images will come.
        device: where the logits are.
    """

    def __init__(self, number: int, reference: Tensor | None, device: torch.device) -> None:
        self.reference, self.images = reference, 0
        self._correct = torch.zeros(number, dtype=torch.int64, device=device)
        self._loss = torch.zeros(number, dtype=torch.float64, device=device)
        self._kl = torch.zeros(number, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, first: int = 0) -> None:
        """Count a batch.

        Args:
            logits: networks x images x classes.
            labels: one for each image.
            first: the number of the first of these networks.
        """
        log_probabilities = logits.float().log_softmax(2)
        part = slice(first, first + len(logits))
        self._correct[part] += (logits.argmax(2) == labels).sum(1)
        self._loss[part] -= log_probabilities.gather(2, labels.expand(len(logits), -1)[..., None]).squeeze(2).double().sum(1)
        if self.reference is not None:
            reference = self.reference[self.images : self.images + len(labels)].expand_as(logits)
            self._kl[part] += F.kl_div(log_probabilities, reference, reduction="none", log_target=True).sum(2).double().sum(1)

    def end_batch(self, images: int) -> None:
        """All networks have counted this batch."""
        self.images += images

    def means(self) -> list[Evaluation]:
        """Every network's evaluation."""
        kl = self._kl.tolist() if self.reference is not None else [None] * len(self._kl)
        columns = zip(self._correct.tolist(), self._loss.tolist(), kl, strict=True)
        return [Evaluation(c / self.images, x / self.images, k if k is None else k / self.images) for c, x, k in columns]


def evaluate(network: nn.Module, batches: EvalBatches, *, bf16: bool = False, reference: Tensor | None = None) -> Evaluation:
    """Accuracy, cross-entropy and divergence from a reference's `log_probabilities` of a network in evaluation mode."""
    totals = Totals(1, reference, next(network.parameters()).device)
    for logits, labels in _logits(network, batches, bf16):
        totals.add(logits[None], labels)
        totals.end_batch(len(labels))
    return totals.means()[0]


def log_probabilities(network: nn.Module, batches: EvalBatches, *, bf16: bool = False) -> Tensor:
    """What a network predicts in evaluation mode: images x classes, natural logarithm."""
    return torch.cat([logits.float().log_softmax(1) for logits, _ in _logits(network, batches, bf16)])


def _logits(network: nn.Module, batches: EvalBatches, bf16: bool) -> Iterator[tuple[Tensor, Tensor]]:
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        for images, labels in batches:
            with autocast(device, bf16):
                logits = network(images)
            yield logits, labels
