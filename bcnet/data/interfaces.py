"""What training and scoring ask of images, wherever these come from."""

from collections.abc import Iterator
from typing import Literal, Protocol

from torch import Tensor

Part = Literal["train", "val", "full_train", "test"]


class TrainSource(Protocol):
    """Endless training batches.

    Attributes:
        batch_size: images per step over all processes.
    """

    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the images."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of a batch: images ``(n, C, H, W)`` as the network wants them, labels ``(n,)``.

        The same step gives the same batch whenever it is asked for, so that a run resumes anywhere.
        """


class EvalSource(Protocol):
    """A fixed set of images in a fixed order, not augmented; its length is the number of images."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``(n, C, H, W)`` as the network wants them and labels ``(n,)``, the same ones every time."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""

    @property
    def largest_batch(self) -> int:
        """Images of the largest batch."""


class DataSet(Protocol):
    """A data set, split: test images are in no other part (law 8).

    ``train`` is what the supernet learns from (BN calibration uses some of it), ``val`` is held out from that for search scores,
    ``full_train`` is both, for retraining.

    Attributes:
        classes: class names.
        input_shape: ``(C, H, W)`` of one image.
        mean, std: per channel, of images in 0..1: what a found network wants its inputs normalised by.

    With an attribute ``fingerprint``, a string, a run refuses to go on with images whose string is another.
    """

    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def num_images(self, part: Part) -> int:
        """Images of a part."""

    def train_batches(self, part: Part, batch_size: int, seed: int) -> TrainSource:
        """Augmented batches of a part; each process of a group gets its share of every batch."""

    def eval_batches(self, part: Part, batch_size: int, max_images: int | None = None) -> EvalSource:
        """A part's images, or at most so many of them (a random choice, always the same)."""
