"""AutoSlim (Yu and Huang, 2019), trained as US-Net (ICCV 2019): the sandwich rule with in-place distillation."""

from typing import ClassVar

from pydantic import Field

from bcnet.config import Section
from bcnet.space.widths import Side, Space
from bcnet.training.strategies.base import Pass, Strategy


class AutoSlim(Strategy):
    """The widest by the labels; the narrowest and random widths by the widest's softmax; all on the left."""

    class Settings(Section):
        """Settings of ``autoslim``."""

        num_random: int = Field(2, ge=0)
        """Random subnets per step, beside the widest and the narrowest."""

    sides: ClassVar[tuple[Side, ...]] = ("left",)

    def __init__(self, space: Space, seed: int, settings: Settings) -> None:
        super().__init__(space, seed, settings)
        self.num_random = settings.num_random

    def passes(self, step: int) -> list[Pass]:
        """The sandwich."""
        students = [self.space.narrowest, *self.draw(step, self.num_random)]
        return [Pass(self.space.full), *(Pass(widths, distilled=True) for widths in students)]
