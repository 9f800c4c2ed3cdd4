"""What a network returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(outputs: Any) -> Tensor:
    """The logits among what a network returns: the first tensor, for networks that give auxiliary outputs as well while training.

    Raises:
        TypeError: there is no tensor.
    """
    if isinstance(outputs, Tensor):
        return outputs
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"a network returned {type(outputs).__name__}, where a tensor of logits is wanted")
