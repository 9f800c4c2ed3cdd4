"""From learned probabilities to one network: the most probable paths that the budget allows, compared by inherited weights."""

from dataclasses import dataclass

import torch

from bcnet.data.interfaces import EvalSource
from bcnet.dense.architecture import Architecture
from bcnet.dense.costs import GridCosts
from bcnet.dense.grid import Choice
from bcnet.dense.paths import Scores, best_operations, best_paths, best_that_fills, best_within
from bcnet.dense.supernet import SuperNetwork
from bcnet.models.densenas import ChainNetwork
from bcnet.models.layout import to_device
from bcnet.scoring.evaluate import evaluate
from bcnet.space.cost import Budget
from bcnet.supernet.calibrate import calibrate


@dataclass(frozen=True)
class Inherited:
    """A network with the weights of the super network.

    Attributes:
        choice: the network.
        score: see `bcnet.dense.paths`.
        accuracy: on held-out images, in 0..1.
        network: a plain module with BN statistics of its own.
    """

    choice: Choice
    score: float
    accuracy: float
    network: ChainNetwork


def candidates(
    architecture: Architecture, costs: GridCosts, budget: Budget | None, *, count: int, search_paths: int, fill: float = 0.0
) -> list[Choice]:
    """The networks to compare: of different paths, each the best of its path within the budget, highest scores first.

    Args:
        architecture: learned probabilities.
        costs: of the grid.
        budget: what a network may cost.
        count: how many, at most.
        search_paths: how many of the most probable paths are looked through.
        fill: a network that costs less than this share of the budget is joined by one of its path that does not, if there is one.

    Returns:
        At least one; the best of all within the budget is always among them. With ``fill`` there may be twice as many as ``count``.
    """
    grid, scores = architecture.grid, Scores.of(architecture)
    paths = best_paths(grid, scores, search_paths)
    if budget is None:
        return [best_operations(grid, scores, path) for path in paths[:count]]
    cost = costs.costs[budget.cost]
    best = best_within(grid, scores, cost, budget.limit) or costs.extremes(budget.cost)[0]
    found = [best]
    for path in paths:
        choice = None if path == best.path else best_within(grid, scores, cost, budget.limit, path)
        if choice is not None:
            found.append(choice)
    found = sorted(found, key=lambda choice: -scores.of_choice(grid, choice))[:count]
    sparing = [choice for choice in found if cost.of(choice) < fill * budget.limit]
    filled = [best_that_fills(grid, scores, cost, budget.limit, fill, choice.path) for choice in sparing]
    found += [choice for choice in filled if choice is not None]
    assert all(cost.of(choice) <= budget.limit for choice in found)
    return found


def inherit(
    network: SuperNetwork, choice: Choice, score: float, calibration: EvalSource, validation: EvalSource, *, half: torch.dtype | None = None
) -> Inherited:
    """Take a network out of the super network, give it BN statistics of its own, and look how good it is.

    Args:
        network: the super network; left as it is.
        choice: the network.
        score: its score.
        calibration: training images.
        validation: held-out images.
        half: what to autocast to, bf16 or fp16; unset: not at all.
    """
    device = next(network.parameters()).device
    plain = network.extract(choice)
    to_device(plain, device)
    calibrate(plain, calibration, half=half)
    accuracy = evaluate(plain, validation, half=half)["accuracy"]
    return Inherited(choice, score, accuracy, plain)


def choose(found: list[Inherited]) -> Inherited:
    """The one of the highest accuracy; of equal ones the most probable."""
    return max(found, key=lambda one: (one.accuracy, one.score))
