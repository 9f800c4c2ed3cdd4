"""Evaluate a network on a set of images."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bcnet.data.batches import EvalBatches
from bcnet.runtime import autocast


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a set of images.

    Attributes:
        accuracy: in 0..1.
        cross_entropy: mean, natural logarithm.
    """

    accuracy: float
    cross_entropy: float


def evaluate(network: nn.Module, batches: EvalBatches, *, bf16: bool = False) -> Evaluation:
    """Accuracy and cross-entropy of a network in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    correct, loss = torch.zeros((), device=device, dtype=torch.int64), torch.zeros((), device=device, dtype=torch.float64)
    with torch.no_grad():
        for images, labels in batches:
            with autocast(device, bf16):
                logits = network(images)
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
    return Evaluation(correct.item() / len(batches), loss.item() / len(batches))
