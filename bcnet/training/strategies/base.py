"""What a strategy is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bcnet.config import Section
from bcnet.seeds import STREAM_WIDTHS, derive_seed
from bcnet.space.widths import SIDES, Side, Space, Widths


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    Attributes:
        widths: the subnet's widths; ``None``: the model is plain.
        side: the subnet's side.
        weight: factor of its loss.
        distilled: learn from the softmax of the step's first pass instead of the labels.
    """

    widths: Widths | None = None
    side: Side = "left"
    weight: float = 1.0
    distilled: bool = False


class Strategy(ABC):
    """A training method of the supernet.

    A method of your own derives from this class; ``train.strategy=package.module:Class`` uses it, and the fields of its
    ``Settings`` stand under ``train.strategy`` in the config.

    Args:
        space: whose widths are trained.
        seed: of the run.
        settings: an instance of ``Settings``.

    Attributes:
        Settings: the schema of its settings.
        wide: whether the supernet has ``K + k_min`` bins per group (BCNetV2).
        sides: the sides it trains, which are those that are scored.
    """

    class Settings(Section):
        """A strategy without settings."""

    wide: ClassVar[bool] = False
    sides: ClassVar[tuple[Side, ...]] = SIDES

    def __init__(self, space: Space, seed: int, settings: Section) -> None:
        self.space, self.seed, self.settings = space, seed, settings

    @abstractmethod
    def passes(self, step: int) -> list[Pass]:
        """The passes of a step, the same ones whenever they are asked for: they follow from the seed and the step alone."""

    def draw(self, index: int, count: int = 1) -> list[Widths]:
        """Random width vectors, number ``index`` of the run's stream."""
        rng = np.random.default_rng(derive_seed(self.seed, STREAM_WIDTHS, index))
        return [self.space.sample(rng) for _ in range(count)]


def plain_passes(step: int) -> list[Pass]:
    """One pass of a plain model by its labels."""
    return [Pass()]
