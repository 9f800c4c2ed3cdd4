"""Proof that a traced model can be sliced: the sliced forward equals the extracted plain module's (law 1)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.errors import UserError
from bcnet.space.trace import first_line
from bcnet.space.widths import Space, Widths
from bcnet.supernet.layers import BATCH_NORM, Side
from bcnet.supernet.supernet import Supernet


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
    worst = 0.0
    for widths in [space.narrowest, space.full, *(space.sample(rng) for _ in range(num_random))]:
        for side in ("left", "right"):
            worst = max(worst, _difference(supernet, widths, side, images, tolerance))
    return worst


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

    modules = [(layer.name, net.get_submodule(layer.name)) for layer in space.layers]
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
