"""Optimizers: SGD of our own choice of groups, and timm's by name."""

from typing import Any

import torch
from torch import nn

from bcnet.config import RecipeConfig
from bcnet.errors import UserError, first_line
from bcnet.supernet.supernet import Supernet

# What treats every entry of a parameter by itself, so that networks side by side do not see each other.
ENTRYWISE = ("sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad")


def make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """The optimizer that a recipe names.

    Raises:
        UserError: timm knows no such optimizer, or it refuses its settings.
    """
    if recipe.optimizer == "sgd" and recipe.layer_decay is None and not recipe.optimizer_args:
        return _sgd(model, recipe)
    from timm import optim

    make: Any = vars(optim)["create_optimizer_v2"]
    try:
        optimizer: torch.optim.Optimizer = make(
            model.net if isinstance(model, Supernet) else model,
            opt="momentum" if recipe.optimizer == "sgd" and not recipe.nesterov else recipe.optimizer,  # timm's sgd is Nesterov's
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            filter_bias_and_bn=not recipe.decay_norm_and_bias,
            layer_decay=recipe.layer_decay,
            **recipe.optimizer_args,
        )
    except (ValueError, TypeError, AssertionError, KeyError, AttributeError) as error:
        known = "such as sgd, adamw, lamb, rmsprop or muon"
        raise UserError(
            f"optimizer {recipe.optimizer!r} cannot be made by timm ({first_line(error)}): {known}, with its own settings"
        ) from error
    return optimizer


def _sgd(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if recipe.decay_norm_and_bias or p.ndim > 1]
    kept = [p for p in parameters if not (recipe.decay_norm_and_bias or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    used = [group for group in groups if group["params"]]
    return torch.optim.SGD(used, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def clip_gradients(model: nn.Module, recipe: RecipeConfig) -> None:
    """Limit the gradients as a recipe says: their norm, every entry, or the norm of each unit relative to its weights (AGC)."""
    if recipe.clip_norm is None:
        return
    if recipe.clip_mode == "norm":
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    elif recipe.clip_mode == "value":
        nn.utils.clip_grad_value_(model.parameters(), recipe.clip_norm)
    else:
        from timm.utils.agc import adaptive_clip_grad

        clip: Any = adaptive_clip_grad
        clip([p for p in model.parameters() if p.grad is not None], recipe.clip_norm)
