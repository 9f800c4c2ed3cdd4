"""In which order a network keeps its activations in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.models.copying import copy_network


def fit_layout(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Make a model that cannot be run in channels_last order keep its images contiguous.

    Channels_last is faster, and all data comes so; but ``x.view(len(x), -1)`` behind a convolution wants contiguous memory.

    Args:
        model: on the CPU; a hook is added where it is needed.
        input_shape: ``(C, H, W)`` of one image.
    """
    if needs_contiguous(model, input_shape):
        keep_contiguous(model)


def needs_contiguous(model: nn.Module, input_shape: Sequence[int]) -> bool:
    """Whether a model on the CPU runs on contiguous images ``(2, C, H, W)`` and not in channels_last order."""
    images = torch.zeros(2, *input_shape)
    return not _runs(model, images, torch.channels_last) and _runs(model, images, torch.contiguous_format)


def keep_contiguous(model: nn.Module) -> None:
    """Let a model make its images contiguous."""
    model.register_forward_pre_hook(_contiguous)


def _runs(model: nn.Module, images: Tensor, form: torch.memory_format) -> bool:
    try:
        trial = copy_network(model).to(memory_format=form).eval()  # type: ignore[call-overload]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(images.contiguous(memory_format=form))
    except Exception:
        return False
    return True


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.contiguous() if isinstance(one, Tensor) else one for one in inputs)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Bring a model to a device, in channels_last order if `fit_layout` did not find that it must be contiguous."""
    keeps = any(hook is _contiguous for module in model.modules() for hook in module._forward_pre_hooks.values())
    form = torch.contiguous_format if keeps else torch.channels_last
    moved: nn.Module = model.to(device, memory_format=form)  # type: ignore[call-overload]
    return moved
