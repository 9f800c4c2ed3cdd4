"""The whole network alone: what pruning and sensitivity analysis start from."""

from typing import ClassVar

from bcnet.space.widths import Side
from bcnet.training.strategies.base import Pass, Strategy


class Full(Strategy):
    """The widest subnet in every step, by the labels."""

    sides: ClassVar[tuple[Side, ...]] = ("left",)

    def passes(self, step: int) -> list[Pass]:
        """The widest on the left."""
        return [Pass(self.space.full)]
