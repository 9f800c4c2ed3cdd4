"""Networks of one width: behind ``bcnet retrain``, ``bcnet fit`` and ``bcnet truth build``."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcnet.config import RecipeConfig
from bcnet.data.interfaces import TrainSource
from bcnet.kernels.depthwise import fast_depthwise
from bcnet.supernet.calibrate import calibrate
from bcnet.training.optimizer import ENTRYWISE
from bcnet.training.stack import NetworkStack, NotStackable, StackedBatches
from bcnet.training.strategies.base import plain_passes
from bcnet.training.trainer import Trainer

SETTLED = 2048  # images for BN statistics of averaged weights


def train_width(
    networks: Sequence[nn.Module],
    batches: Sequence[TrainSource],
    recipe: RecipeConfig,
    *,
    seeds: Sequence[int],
    input_shape: Sequence[int],
    device: torch.device,
    half: torch.dtype | None = None,
    checkpoint: Path | None = None,
    keeps_end: bool = True,
    **options: Any,
) -> list[nn.Module]:
    """Train networks that differ in their seed only, side by side where that is possible.

    Args:
        networks: one per seed.
        batches: training batches of every network.
        recipe: epochs, optimizer, schedule.
        seeds: of the networks.
        input_shape: ``(C, H, W)`` of one image.
        device: where to train.
        half: what to autocast to, bf16 or fp16; unset: not at all.
        checkpoint: file to save to and resume from; networks that are trained one after the other have one each, with their numbers.
        keeps_end: save the end of the last training, too.
        options: further arguments of `Trainer`, such as ``identity`` and ``label``.

    Returns:
        The trained networks, in order.
    """
    together: list[tuple[nn.Module, Any, int]]
    try:
        together = [_side_by_side(networks, batches, recipe, input_shape, half)]
    except NotStackable:
        together = list(zip(networks, batches, seeds, strict=True))
    trained: list[nn.Module] = []
    for number, (model, source, seed) in enumerate(together):
        passes = model.passes if isinstance(model, NetworkStack) else plain_passes
        file = checkpoint.with_stem(f"{checkpoint.stem}-{number}") if checkpoint and len(together) > 1 else checkpoint
        trainer = Trainer(
            *(model, source, recipe),
            device=device,
            half=half,
            seed=seed,
            passes=passes,
            checkpoint=file,
            keeps_end=keeps_end or number < len(together) - 1,
            **options,
        )
        trainer.resume()
        with fast_depthwise(model) if recipe.compile is None else nullcontext():
            trainer.run()
        if recipe.ema_decay is not None:
            settle_norms(trainer.trained, source, half)
        trained += trainer.trained.split() if isinstance(trainer.trained, NetworkStack) else [trainer.trained]
    return trained


def settle_norms(network: nn.Module, batches: TrainSource, half: torch.dtype | None) -> None:
    """Measure the BN statistics of averaged weights: those that a training leaves are of the weights that were averaged."""
    steps = min(batches.steps_per_epoch, -(-SETTLED // batches.batch_size))
    calibrate(network, (batches.batch(step) for step in range(steps)), half=half)


def _side_by_side(
    networks: Sequence[nn.Module],
    batches: Sequence[TrainSource],
    recipe: RecipeConfig,
    input_shape: Sequence[int],
    half: torch.dtype | None,
) -> tuple[nn.Module, Any, int]:
    if len(networks) == 1:
        raise NotStackable("one network is no stack")
    if recipe.accumulate > 1 or recipe.optimizer not in ENTRYWISE:
        raise NotStackable("these networks would see each other's images or weights")
    if half == torch.float16:
        raise NotStackable("a gradient that overflows would cost all networks of a stack a step")
    if recipe.layer_decay is not None:
        raise NotStackable("timm orders the layers of its own networks only")
    if recipe.clip_norm is not None:
        raise NotStackable("a limit on the gradient norm of a stack would couple its networks")
    return NetworkStack(networks, input_shape), StackedBatches(batches), 0
