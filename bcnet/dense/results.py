"""What a search of a grid finds, as typed records."""

from typing import Any

from pydantic import Field

from bcnet.results import BudgetRecord, Record


class EpochRecord(Record):
    """What an epoch of a search came to."""

    epoch: int
    """Its number, from 0."""
    loss: float
    """Mean cross-entropy of the weights' steps."""
    held_out_loss: float | None
    """The same of the architecture's; ``None`` where there were none."""
    cost_weight: float
    """Factor of the cost's term."""
    expected: dict[str, float]
    """Expected costs of a random network, by name."""
    derived: dict[str, float]
    """Costs of the most probable network."""
    path: list[int]
    """Its blocks."""
    shares: dict[str, float]
    """Operation -> how much of the layers of a random network it makes."""
    temperature: float
    """That probabilities were computed with."""


class Candidate(Record):
    """A network that was considered."""

    net_config: str
    """Its text form."""
    path: list[int]
    """Its blocks; the first is 0."""
    heads: list[int]
    """Number of the operation of every step."""
    stacks: list[list[int]]
    """Numbers of the operations of every block's layers."""
    score: float
    """Logarithm of its edges' probabilities, and of its operations' relative to the best ones there."""
    costs: dict[str, float | int]
    """By name."""
    val_accuracy: float
    """With inherited weights, on the images that are held out, in per cent."""


class DenseRecord(Record):
    """``search.json``: what a search of a grid found."""

    best: Candidate
    """Of the highest accuracy with inherited weights."""
    candidates: list[Candidate]
    """All that were compared: the most probable ones, best first, then those of their paths that use more of the budget."""
    most_probable: str
    """The net_config that is derived without a look at the budget."""
    most_probable_costs: dict[str, float | int]
    """What that costs."""
    budget: BudgetRecord | None
    """What networks might cost."""
    reachable: dict[str, tuple[float, float]]
    """Cost -> that of the cheapest and of the dearest network of the grid."""
    epochs: list[EpochRecord]
    """The course of the search."""
    steps: int
    """Of weights and architecture together."""
    search_seconds: float
    """Training time."""
    operation_deviation: float
    """How unequally operations were trained: largest difference from the mean of its mixed operation, relative to that."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Config and environment."""


class TrainedNetwork(Record):
    """``retrain/NAME.json``: a network trained from scratch, over several seeds."""

    name: str
    """What it is called on pages."""
    net_config: str
    """Its text form."""
    acc: list[float]
    """Test accuracy in per cent, one per seed."""
    seeds: list[int]
    """Of the trainings."""
    costs: dict[str, float | int]
    """By name."""
