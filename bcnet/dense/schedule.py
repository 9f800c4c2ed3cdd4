"""When a search of a grid does what, and what it counts on the way."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Where a step of the search stands.

    Attributes:
        kind: what is trained.
        epoch: number of its epoch.
        number: of its kind, over the whole search.
        ends_epoch: whether it is the last of its epoch.
    """

    kind: Literal["weights", "architecture"]
    epoch: int
    number: int
    ends_epoch: bool


@dataclass(frozen=True)
class Schedule:
    """Which step comes when: an epoch of the weights, from some epoch on after a pass for the architecture.

    Attributes:
        epochs: of the search.
        start: the first epoch with a pass for the architecture.
        weight_steps: of one epoch.
        architecture_steps: of one pass.
    """

    epochs: int
    start: int
    weight_steps: int
    architecture_steps: int

    @property
    def total(self) -> int:
        """All steps."""
        return self.epochs * self.weight_steps + (self.epochs - self.start) * self.architecture_steps

    def at(self, step: int) -> Step:
        """What a step does."""
        alone = self.start * self.weight_steps
        if step < alone:
            epoch, inside = divmod(step, self.weight_steps)
            return Step("weights", epoch, step, inside == self.weight_steps - 1)
        later, inside = divmod(step - alone, self.weight_steps + self.architecture_steps)
        epoch = self.start + later
        if inside < self.architecture_steps:
            return Step("architecture", epoch, later * self.architecture_steps + inside, False)
        inside -= self.architecture_steps
        return Step("weights", epoch, epoch * self.weight_steps + inside, inside == self.weight_steps - 1)


@dataclass
class OperationCounts:
    """How often every operation was trained by a weight step.

    Attributes:
        heads: ``(edges, operations)``.
        stacks: ``(layers, operations)``.
    """

    heads: Tensor
    stacks: Tensor

    def add(self, heads: Tensor, stacks: Tensor) -> None:
        """Count a step."""
        for counts, used in ((self.heads, heads), (self.stacks, stacks)):
            counts.scatter_add_(1, used, torch.ones_like(used))

    @property
    def deviation(self) -> float:
        """Largest difference of a count from the mean of its mixed operation, relative to that."""
        parts = [part.double() for part in (self.heads, self.stacks) if part.numel() and part.sum()]
        return max((float(((part - part.mean(1, keepdim=True)).abs() / part.mean(1, keepdim=True)).max()) for part in parts), default=0.0)
