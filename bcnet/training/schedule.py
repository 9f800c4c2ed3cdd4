"""Learning rates: the factor of the peak rate at every step, as pure functions of the step."""

import math

from bcnet.config import RecipeConfig


def lr_factor(recipe: RecipeConfig, step: int, warmup_steps: int, total_steps: int, steps_per_epoch: int) -> float:
    """The factor of the peak learning rate that a recipe has at a step: linear warm-up, then its schedule.

    Args:
        recipe: names the schedule.
        step: from 0.
        warmup_steps: fewer than ``total_steps``.
        total_steps: of the training.
        steps_per_epoch: of the batches.
    """
    if recipe.schedule == "one_cycle":
        return one_cycle(step, total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if recipe.schedule == "cosine":
        return _floored(cosine_with_warmup(step, warmup_steps, total_steps), recipe.lr_floor)
    if recipe.schedule == "poly":
        share = (step - warmup_steps) / (total_steps - warmup_steps)
        return _floored((1 - share) ** recipe.poly_power, recipe.lr_floor)
    if recipe.schedule == "step":
        return float(recipe.step_factor ** int(step / (recipe.step_epochs * steps_per_epoch)))
    return 1.0


def cosine_with_warmup(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor of the peak learning rate: linear to 1 over ``warmup_steps``, then half a cosine down to 0 at the end."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def one_cycle(step: int, total_steps: int, *, rising: float = 0.3, start: float = 1 / 25, end: float = 1 / 250_000) -> float:
    """Factor of the peak learning rate: half a cosine up and half a cosine down (Smith and Topin, 2018), with torch's numbers.

    Args:
        step: from 0.
        total_steps: of the training.
        rising: share of the steps until the peak.
        start: factor at the first step.
        end: factor at the last.
    """
    peak = rising * total_steps - 1
    if step <= peak:
        low, share = start, step / peak
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * share))
    share = min(1.0, (step - peak) / (total_steps - 1 - peak)) if total_steps - 1 > peak else 1.0
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share))


def _floored(factor: float, floor: float) -> float:
    return factor if floor == 0 else floor + (1 - floor) * factor
