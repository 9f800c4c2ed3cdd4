"""BCNet and BCNetV2 with in-place distillation: every step trains the whole supernet, and it teaches a pair of subnets.

The pair is a width vector on one side and its complement on the other: in the wide supernet of BCNetV2 these two share no bin
and leave none out. Sides take turns. On both of our benchmarks ``bcnetv2_distilled`` ranks best (benchmarks/README.md).
"""

from typing import ClassVar

from bcnet.training.strategies.base import Pass, Strategy


class BCNetDistilled(Strategy):
    """The whole supernet by the labels; widths and their complement, on opposite sides, by its softmax."""

    def passes(self, step: int) -> list[Pass]:
        """The teacher and its two students."""
        widths = self.draw(step)[0]
        side, opposite = self.sides if step % 2 == 0 else self.sides[::-1]
        pair = (widths, side), (self.space.complement(widths, self.wide), opposite)
        return [Pass(self.space.whole(self.wide)), *(Pass(one, end, 0.5, distilled=True) for one, end in pair)]


class BCNetV2Distilled(BCNetDistilled):
    """The same on a supernet of ``K + k_min`` bins per group: the default recipe."""

    wide: ClassVar[bool] = True
