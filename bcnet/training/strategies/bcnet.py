"""BCNet (CVPR 2021) and BCNetV2 (TPAMI 2022) as published: every width on both ends, its complement in the next step."""

from typing import ClassVar

from bcnet.training.strategies.base import Pass, Strategy


class BCNet(Strategy):
    """Random widths on both sides, losses averaged; the next step trains their complement, which ``k_min`` may cut off."""

    def passes(self, step: int) -> list[Pass]:
        """Widths of an even step, or their complement, on both sides."""
        widths = self.draw(step // 2)[0]
        if step % 2:
            widths = self.space.complement(widths, self.wide)
        return [Pass(widths, side, 0.5) for side in self.sides]


class BCNetV2(BCNet):
    """The same on a supernet of ``K + k_min`` bins per group, where the complement is exact."""

    wide: ClassVar[bool] = True
