"""Strict fairness (FairNAS, Chu et al., ICCV 2021): every choice of every group is trained equally often, within a step if it can be."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from bcnet.config import Section
from bcnet.seeds import STREAM_WIDTHS, derive_seed
from bcnet.space.widths import Side, Space, Widths
from bcnet.training.strategies.base import Pass, Strategy


class Fair(Strategy):
    """Subnets on the left by the labels, gradients summed; the choices of a group come in shuffled rounds, each once in a round.

    A step of as many subnets as a group has choices trains each of them exactly once; a group of 4 choices beside one of 16 goes
    through four rounds in that time. The first channels are trained most all the same, for every wider choice has them.
    """

    class Settings(Section):
        """Settings of ``fair``."""

        num_subnets: int | None = Field(None, ge=1)
        """Subnets per step; unset: as many as the most choices that a group has."""
        distilled: bool = False
        """Train the widest beside them by the labels, and them by its softmax."""

    sides: ClassVar[tuple[Side, ...]] = ("left",)

    def __init__(self, space: Space, seed: int, settings: Settings) -> None:
        super().__init__(space, seed, settings)
        self.num_subnets = settings.num_subnets or max(len(group.choices) for group in space.groups)
        self.distilled = settings.distilled

    def passes(self, step: int) -> list[Pass]:
        """The subnets whose places in all rounds are those of this step, after the widest if it teaches them."""
        first = step * self.num_subnets
        students = [self._subnet(first + number) for number in range(self.num_subnets)]
        teacher = [Pass(self.space.full)] if self.distilled else []
        return [*teacher, *(Pass(widths, distilled=self.distilled) for widths in students)]

    def _subnet(self, number: int) -> Widths:
        """Subnet number ``number`` of the run."""
        widths = []
        for place, group in enumerate(self.space.groups):
            round_number, turn = divmod(number, len(group.choices))
            rng = np.random.default_rng([derive_seed(self.seed, STREAM_WIDTHS, round_number), place])
            widths.append(group.smallest + int(rng.permutation(len(group.choices))[turn]))
        return tuple(widths)
