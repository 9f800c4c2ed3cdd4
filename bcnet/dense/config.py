"""The settings of a DenseNAS experiment: a grid of blocks, how it is searched, and how what is found is trained."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bcnet.config import MOST, BaseConfig, RecipeConfig, Section
from bcnet.models.net_config import KNOWN, MOST_BLOCKS, MOST_CHANNELS, MOST_LAYERS, is_operation

MBCONVS = tuple(f"mbconv_k{kernel}_t{expansion}" for kernel in (3, 5, 7) for expansion in (3, 6))
"""The six operations of the MobileNetV2 space, in the order of the published latency tables."""
SKIP = "skip"


class GridConfig(Section):
    """A grid of blocks: a path through it is a network. The first block stands behind the stem and is part of every network."""

    stem_stride: int = Field(2, ge=1, le=2)
    """Stride of the 3x3 convolution that reads the image; its width is that of the first block."""
    first: str | None = "mbconv_k3_t1"
    """Operation of the first block; unset: the stem itself is the first block."""
    widths: list[int] = Field(min_length=2, max_length=MOST_BLOCKS)
    """Channels of every block."""
    maps: list[int]
    """Size of every block's feature map. Only ratios count: 112 to 56 is a stride of 2, whatever the images are."""
    stages: list[int]
    """Stage of every block. Blocks are connected where their stages differ by at most 1 (and their maps by a stride of 1 or 2). One
    number more is the stage of the convolution at the end, else one above the last block's."""
    adjoin: int = Field(4, ge=1, le=MOST_BLOCKS)
    """A block is connected to this many of the next ones at most."""
    head: list[str] = Field(default_factory=lambda: list(MBCONVS), min_length=1)
    """Operations that a connection chooses from."""
    stack: list[str] = Field(default_factory=lambda: list(MBCONVS))
    """Operations that a stacked layer chooses from, beside being skipped."""
    depth: int | list[int] = 3
    """Stacked layers of a block at most; a list says it for every block (the first has none)."""
    last: int = Field(1984, ge=1, le=MOST_CHANNELS)
    """Channels of the 1x1 convolution at the end."""

    @model_validator(mode="after")
    def _fits_together(self) -> "GridConfig":
        count = len(self.widths)
        for name, values in (("maps", self.maps), ("stages", self.stages), ("depth", self.depths)):
            if len(values) != count and not (name == "stages" and len(values) == count + 1):
                raise ValueError(f"{name} has {len(values)} entries for {count} widths; there is one for every block")
        for name, values, least, most in (
            ("widths", self.widths, 1, MOST_CHANNELS),
            ("maps", self.maps, 1, MOST),
            ("stages", self.stages, 0, MOST_BLOCKS),
            ("depth", self.depths, 0, MOST_LAYERS),
        ):
            if min(values) < least:
                raise ValueError(f"{name} has {min(values)} in it; {least} is the least")
            if max(values) > most:
                raise ValueError(f"{name} has {max(values)} in it; {most} is the most")
        for operation in (*self.head, *self.stack, *([self.first] if self.first else [])):
            if not is_operation(operation):
                raise ValueError(f"unknown operation {operation!r}; known are {KNOWN}")
        for name, operations in (("head", self.head), ("stack", self.stack)):
            if len(set(operations)) < len(operations):
                raise ValueError(f"{name} names an operation twice")
        return self

    @property
    def depths(self) -> list[int]:
        """Stacked layers of every block at most."""
        return [0, *[self.depth] * (len(self.widths) - 1)] if isinstance(self.depth, int) else self.depth


class WeightsConfig(RecipeConfig):
    """How the weights of the super network are trained."""

    epochs: float = Field(150, gt=0, le=MOST)
    """Epochs of the whole search; the architecture joins in after ``architecture.start_epoch``."""
    sampling: Literal["probable", "uniform", "fair"] = "probable"
    """Which operation of a mixed one a step trains, and which two an architecture step compares: drawn by their probabilities (as
    published), drawn uniformly, or ``fair``: in random order, so that each is trained equally often whatever the probabilities are."""
    superkernel: bool = False
    """Let the operations of a mixed one share their weights: a smaller kernel is the centre of the largest, a smaller expansion its first
    channels. Every step then trains a part of them all, which a short search needs. Off: each has its own, as published."""

    @model_validator(mode="after")
    def _whole_epochs(self) -> "WeightsConfig":
        if self.epochs != int(self.epochs):
            raise ValueError(f"epochs is {self.epochs}: a search takes whole ones")
        for name, idle in (
            ("ema_decay", self.ema_decay is not None),
            ("accumulate", self.accumulate > 1),
            ("compile", self.compile),
            ("teacher", self.teacher),
        ):
            if idle:
                raise ValueError(f"{name} does nothing in a search; leave it out")
        return self


class ArchitectureConfig(Section):
    """How the architecture is learned: Adam, on the images that are held out, one pass in every epoch."""

    start_epoch: int = Field(50, ge=0, le=MOST)
    """Epochs of the weights alone at first."""
    batch_size: int | None = Field(None, gt=0, le=MOST)
    """Images per step; unset: as for the weights."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam."""
    weight_decay: float = Field(1e-3, ge=0)
    """L2 penalty."""
    temperature: float = Field(1.0, gt=1e-6, le=MOST)
    """What the parameters are divided by before the softmax when they begin to be learned: above 1 all choices stay near each other for
    longer."""
    final_temperature: float | None = Field(None, gt=1e-6, le=MOST)
    """The same in the last epoch, reached geometrically; unset: it does not change."""


class CostConfig(Section):
    """What networks may cost."""

    budget: str | None = None
    """Such as ``flops=350M`` or ``latency=15ms``: the network that is found never costs more. A number of at most 1 is a fraction of the
    dearest network of the grid."""
    latency: Path | None = None
    """A table of ``bcnet dense latency``, or of the authors' format."""
    weight: float = 0.2
    """Factor of ``log(cost) / log(base)`` in the architecture's loss; with a budget, the one it begins with."""
    base: float = Field(15.0, gt=1)
    """Base of that logarithm."""
    minimise: str | None = None
    """Which cost that is: ``flops``, ``params`` or ``latency``; unset: the budget's, else ``flops``."""
    rate: float = Field(0.5, ge=0)
    """With a budget, after every epoch of the architecture the factor grows by this times the logarithm of what the most probable network
    costs over the budget. It may fall below 0, which makes networks dearer: a budget is there to be used."""
    limit: float = Field(2.0, gt=0)
    """Largest absolute value of the factor."""
    warmup_epochs: float = Field(0.0, ge=0, le=MOST)
    """Epochs of the architecture over which the term grows from nothing."""


class DeriveConfig(Section):
    """How a network is taken from the learned architecture."""

    candidates: int = Field(5, ge=1, le=MOST)
    """Networks (of different paths, the most probable ones within the budget) that are compared by inherited weights."""
    fill: float = Field(0.9, ge=0, le=1)
    """A candidate that costs less than this share of the budget is joined by another one of its path that uses it; 0: never."""
    search_paths: int = Field(200, ge=1, le=MOST)
    """How many of the most probable paths are looked through for them."""
    calibration_images: int = Field(1024, gt=0, le=MOST)
    """Training images, not augmented, for their BN statistics."""
    batch_size: int = Field(256, gt=0, le=MOST)
    """Images per forward pass."""


class DenseConfig(BaseConfig):
    """A DenseNAS experiment."""

    grid: GridConfig
    weights: WeightsConfig = WeightsConfig()
    architecture: ArchitectureConfig = ArchitectureConfig()
    cost: CostConfig = CostConfig()
    derive: DeriveConfig = DeriveConfig()
    retrain: RecipeConfig = RecipeConfig()

    @model_validator(mode="after")
    def _architecture_has_epochs(self) -> "DenseConfig":
        if self.architecture.start_epoch >= self.weights.epochs:
            raise ValueError(
                f"architecture.start_epoch is {self.architecture.start_epoch} and weights.epochs is {self.weights.epochs:g}: "
                "the architecture would never be learned"
            )
        return self
