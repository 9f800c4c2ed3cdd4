"""Several width vectors in one network: shared weights, batch norms of their own (slimmable networks, Yu et al., ICLR 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bcnet.models.copying import copy_network
from bcnet.models.outputs import logits_of
from bcnet.models.shortcut import drop_unused_bodies
from bcnet.space.widths import Side, Space, Widths
from bcnet.supernet.layers import BATCH_NORM, make_plain
from bcnet.supernet.supernet import make_sliceable, set_active_channels


class SwitchableNetwork(nn.Module):
    """A network for a few width vectors: every other layer is shared, left parts of one; each has batch norms for itself alone.

    Args:
        model: the plain model with its initial values, left as it is.
        space: its traced space.
        widths: which width vectors, all different.
    """

    def __init__(self, model: nn.Module, space: Space, widths: Sequence[Widths]) -> None:
        super().__init__()
        self.space, self.widths = space, list(widths)
        self.net = copy_network(model)
        make_sliceable(self.net, space, [group.channels for group in space.groups], torch.Generator())
        alone = []
        for one in self.widths:
            set_active_channels(self.net, space.channels(one), "left")
            alone.append(make_plain(self.net, keep_shortcuts=True))
        for name in [name for name, module in self.net.named_modules() if isinstance(module, BATCH_NORM)]:
            _replace(self.net, name, _SwitchableNorm([network.get_submodule(name) for network in alone]))
        self.set_active_subnet(self.widths[0])

    def set_active_subnet(self, widths: Widths, side: Side = "left") -> None:
        """Become one of the width vectors; there is only a left side."""
        assert side == "left"
        self.active = widths
        set_active_channels(self.net, self.space.channels(widths), "left")
        for module in self.net.modules():
            if isinstance(module, _SwitchableNorm):
                module.active = self.widths.index(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Run the active width vector on images ``(N, C, H, W)``."""
        return logits_of(self.net(x))

    def split(self) -> list[nn.Module]:
        """The width vectors as plain networks that share nothing."""
        before, networks = self.active, []
        for place, widths in enumerate(self.widths):
            self.set_active_subnet(widths)
            network = make_plain(self.net, keep_shortcuts=True)
            for name, module in list(network.named_modules()):
                if isinstance(module, _SwitchableNorm):
                    _replace(network, name, module.norms[place])
            drop_unused_bodies(network)
            networks.append(network)
        self.set_active_subnet(before)
        return networks


class _SwitchableNorm(nn.Module):
    """One batch norm per width vector, of which the active one runs."""

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.active = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.active](x)  # type: ignore[no-any-return]


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
