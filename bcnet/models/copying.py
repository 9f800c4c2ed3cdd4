"""Copies of networks."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def copy_network(net: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """A deep copy, also of networks that keep results of their last forward pass, which PyTorch refuses to copy.

    Args:
        net: the network.
        memo: id of a tensor -> what takes its place in the copy.
    """
    memo = dict(memo or {})
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(net, memo)
