"""UA: random widths on the left, so the first channels are trained most."""

from typing import ClassVar

from bcnet.space.widths import Side
from bcnet.training.strategies.base import Pass, Strategy


class Uniform(Strategy):
    """One random width vector per step, by the labels."""

    sides: ClassVar[tuple[Side, ...]] = ("left",)

    def passes(self, step: int) -> list[Pass]:
        """Random widths on the left."""
        return [Pass(self.draw(step)[0])]
