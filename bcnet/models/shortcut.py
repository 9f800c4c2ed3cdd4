"""A shortcut that is a projection only where it has to be one."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn


class IdentityOr(nn.Module):
    """The identity where input and output agree in size, else a body such as a 1x1 convolution with BN.

    Whether they agree is asked at every call, of the channels that are active then: so in a supernet the projection is part of
    those subnets alone whose input and output channels differ, in training, in costs and in what is extracted.

    Args:
        body: maps ``(N, in, H, W)`` to ``(N, out, H / stride, W / stride)``; its first convolution reads the input, its last layer
            gives the output, and no layer of it has channels of its own.
        stride: of the body; above 1 it is always part of the network.
    """

    def __init__(self, body: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.body = body
        self.stride = stride
        self.forced: bool | None = None  # whether it is the identity, whatever the sizes: while a space is traced or proven

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The body's convolutions, in order."""
        return [module for module in self.body.modules() if isinstance(module, nn.Conv2d)]

    @property
    def is_identity(self) -> bool:
        """Whether the body is not part of the network at the active widths."""
        if self.forced is not None:
            return self.forced
        convolutions = self.convolutions
        return convolutions[0].in_channels == convolutions[-1].out_channels and self.stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        return x if self.is_identity else self.body(x)  # type: ignore[no-any-return]


def drop_unused_bodies(net: nn.Module, used: Collection[str] | None = None) -> None:
    """Replace every shortcut that is the identity by one without parameters, in place.

    Args:
        net: a plain network.
        used: names of the layers that it has; unset: what the sizes of its layers say.
    """
    for parent_name, parent in list(net.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, IdentityOr):
                full_name = f"{parent_name}.{name}.".removeprefix(".")
                is_used = not child.is_identity if used is None else any(layer.startswith(full_name) for layer in used)
                if not is_used:
                    setattr(parent, name, nn.Identity())


def shortcut_of(net: nn.Module, layer: str) -> tuple[str, Any] | None:
    """Name and module of the `IdentityOr` that a layer stands in, if it does."""
    parts = layer.split(".")
    for length in range(len(parts)):
        name = ".".join(parts[:length])
        module = net.get_submodule(name)
        if isinstance(module, IdentityOr):
            return name, module
    return None
