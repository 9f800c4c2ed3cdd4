"""Proof that a traced model can be sliced (law 1).

The sliced forward equals the extracted plain module's, and its outputs have the model's own shape. What both would get wrong, such as
channels that are tied to the wrong ones, is seen by a third way: the network at full width with its inactive channels zeroed.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.models.shortcut import IdentityOr
from bcnet.space.widths import SIDES, Side, Space, Widths
from bcnet.supernet.layers import BATCH_NORM
from bcnet.supernet.supernet import Supernet

MOST_ZEROED = 2  # width vectors that are compared with the zeroed network, which is the whole one and takes longest


def prove(model: nn.Module, space: Space, input_shape: tuple[int, ...], *, num_random: int = 2, tolerance: float = 1e-4) -> float:
    """Check both sides of the narrowest, the widest and random widths, with random BN statistics.

    Returns:
        The largest difference seen, relative to the largest output.

    Raises:
        UserError: the model cannot be sliced; names the first layer at which it fails.
    """
    supernet = Supernet(model, space, wide=True, fuse=False).eval()  # layer by layer, a BN with its ReLU would not compare
    generator = torch.Generator().manual_seed(0)
    for module in supernet.modules():
        if isinstance(module, BATCH_NORM):
            for tensor in (module._parameters["weight"], module._buffers["running_var"]):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    images = torch.randn(2, *input_shape, generator=generator)
    rng = np.random.default_rng(0)
    own_shape = _shape_of(model, images)
    worst = 0.0
    for number, widths in enumerate([space.narrowest, *(space.sample(rng) for _ in range(num_random)), space.full]):
        for side in SIDES:
            worst = max(worst, _difference(supernet, widths, side, images, tolerance))
            if number < MOST_ZEROED:
                worst = max(worst, _zeroed_difference(supernet, widths, side, images, own_shape, tolerance))
    return worst


def _shape_of(model: nn.Module, images: Tensor) -> torch.Size:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = model(images)
    if not isinstance(logits, Tensor):
        raise UserError(f"{type(model).__name__} returns {type(logits).__name__}, where one tensor of logits is wanted")
    return logits.shape


def _zeroed_difference(supernet: Supernet, widths: Widths, side: Side, images: Tensor, own_shape: torch.Size, tolerance: float) -> float:
    """Compare the sliced network's output with that of the whole one whose layers read and write zeros in inactive channels."""
    supernet.set_active_subnet(widths, side)
    shortcuts = [module for module in supernet.net.modules() if isinstance(module, IdentityOr)]
    sliceable = [(name, module.slices) for name, module in supernet.net.named_modules() if hasattr(module, "slices")]
    active = {name: (slices.inputs, slices.outputs) for name, slices in sliceable}  # type: ignore[union-attr]
    with torch.no_grad():
        sliced = supernet.net(images)
    if sliced.shape != own_shape:
        raise UserError(
            f"the output of {supernet.space.encode(widths)} ({side}) has the shape {tuple(sliced.shape)}, the model's own is "
            f"{tuple(own_shape)}; this model cannot be sliced"
        )
    for shortcut in shortcuts:
        shortcut.forced = shortcut.is_identity
    supernet.set_active_subnet(supernet.space.whole(supernet.wide), "left")
    handles: list[Any] = []
    for name, (inputs, outputs) in active.items():
        module = supernet.net.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda module, args, r=inputs: (_keep(args[0], r, module), *args[1:])))
        handles.append(module.register_forward_hook(lambda module, args, output, r=outputs: _keep(output, r, module)))
    try:
        with torch.no_grad():
            zeroed = supernet.net(images)
    finally:
        for handle in handles:
            handle.remove()
        for shortcut in shortcuts:
            shortcut.forced = None
    scale = float(sliced.abs().max()) + 1e-12
    difference = float((zeroed - sliced).abs().max()) / scale if zeroed.shape == sliced.shape else float("inf")
    if not difference <= tolerance:
        raise UserError(
            f"the sliced network of {supernet.space.encode(widths)} ({side}) differs by {difference:.1e} from the whole one with its "
            "inactive channels zeroed: channels are mixed or reordered on the way; this model cannot be sliced"
        )
    return difference


def _keep(x: Tensor, ranges: Sequence[tuple[int, int]], module: nn.Module) -> Tensor:
    """Zeros but for the given ranges of the channels."""
    dim = x.ndim - 1 if isinstance(module, nn.Linear) else 1
    kept = torch.zeros(x.shape[dim])
    for start, stop in ranges:
        kept[start:stop] = 1
    return x * kept.view(-1, *[1] * (x.ndim - 1 - dim))


def _difference(supernet: Supernet, widths: Widths, side: Side, images: Tensor, tolerance: float) -> float:
    supernet.set_active_subnet(widths, side)
    sliced = _outputs(supernet.net, images, supernet.space)
    plain = _outputs(supernet.extract(widths, side), images, supernet.space)
    worst = 0.0
    for name, output in sliced.items():
        same = name in plain and output.shape == plain[name].shape
        scale = float(output.abs().max()) + 1e-12
        difference = float((output - plain[name]).abs().max()) / scale if same else float("inf")
        if not difference <= tolerance:
            raise UserError(
                f"{name or 'the output'}: the sliced forward of {supernet.space.encode(widths)} ({side}) differs from the "
                f"extracted module's by {difference:.1e}; this model cannot be sliced"
            )
        worst = max(worst, difference)
    return worst


def _outputs(net: nn.Module, images: Tensor, space: Space) -> dict[str, Tensor]:
    """The output of every traced layer, in order of use, and of the network itself under the empty name."""
    outputs: dict[str, Tensor] = {}
    entered = ["the input"]

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: entered.append(name)

    def leave(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.__setitem__(name, output.detach().clone())

    present = dict(net.named_modules())  # an extracted network has no layers in shortcuts that are the identity
    modules = [(layer.name, present[layer.name]) for layer in space.layers if layer.name in present]
    handles: list[Any] = [module.register_forward_pre_hook(enter(name)) for name, module in modules]
    handles += [module.register_forward_hook(leave(name)) for name, module in modules]
    try:
        with torch.no_grad():
            outputs[""] = net(images)
    except Exception as error:
        raise UserError(f"{entered[-1]}: this model cannot be sliced there or right behind it: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs
