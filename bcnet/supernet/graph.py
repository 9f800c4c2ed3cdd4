"""The operations of a network, by torch.fx."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bcnet.models.shortcut import IdentityOr


class _Tracer(fx.Tracer):
    """What changes with the active subnet is an operation as a whole.

    So are ReLUs, whatever their class: one that BN does already must stay one that does nothing; and BN, also of a library that has more in
    it, for its statistics are to be calibrated.
    """

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        slices: Any = getattr(m, "slices", None)
        is_layer = slices is not None and (
            slices.layer.kind != "other" or not any(True for child in m.children() for _ in child.parameters())
        )
        return is_layer or isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)


def operations(net: nn.Module, *, bodies: bool = False) -> fx.Graph:
    """The operations of one forward pass; slimmable layers are operations as a whole.

    Args:
        net: the network.
        bodies: follow the body of every `bcnet.models.shortcut.IdentityOr`, as if it were always part of the network.

    Raises:
        Exception: whatever the network's forward raises when it is run on placeholders.
        ValueError: it reads a slimmable parameter outside of its layer, and so would only ever use those of the active subnet.
    """
    before = set(vars(net))
    shortcuts = [module for module in net.modules() if isinstance(module, IdentityOr)] if bodies else []
    for shortcut in shortcuts:
        shortcut.forced = False
    try:
        graph = _Tracer((nn.ReLU, _BatchNorm) if bodies else (nn.ReLU, _BatchNorm, IdentityOr)).trace(net)
    finally:
        for shortcut in shortcuts:
            shortcut.forced = None
        slices = [name for name in set(vars(net)) - before if isinstance(value := getattr(net, name), Tensor) and not value.is_leaf]
        for name in slices:
            delattr(net, name)
    if slices:
        raise ValueError("it reads a parameter outside of its layer")
    return graph


def norms_before_relu(net: nn.Module) -> list[tuple[str, str | None]]:
    """Layers used once whose result goes into a ReLU and nowhere else, and the name of that ReLU if it does nothing else."""
    try:
        nodes = list(operations(net).nodes)
    except Exception:  # a network that torch.fx cannot follow: nothing is known of it
        return []
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    pairs: list[tuple[str, str | None]] = []
    for node in nodes:
        if node.op != "call_module" or calls.count(str(node.target)) > 1 or len(node.users) != 1:
            continue
        (reader,) = node.users
        name = str(reader.target)
        if reader.op == "call_module" and type(net.get_submodule(name)) is nn.ReLU:
            pairs.append((str(node.target), name if calls.count(name) == 1 else None))
        elif reader.target in (F.relu, torch.relu, "relu", "relu_"):
            pairs.append((str(node.target), None))
    return pairs
