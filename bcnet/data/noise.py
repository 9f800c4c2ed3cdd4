"""Random images in place of a data set, to find out what a training will cost before there is one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.interfaces import Part

_DRAWN = 256  # images that are really there; they come again and again


class Noise:
    """A `bcnet.data.interfaces.DataSet` of noise: ``data.source=bcnet.data.noise:Noise data.args={shape: [3, 64, 64], ...}``.

    Args:
        config: ``num_val`` images are for search; ``args`` are ``shape`` ``(C, H, W)``, ``classes`` and ``images`` for training.
        seed: of the noise.
        device: where it lives.
    """

    def __init__(self, config: DataConfig, seed: int, device: torch.device) -> None:
        args: dict[str, Any] = config.args
        channels, height, width = args["shape"]
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        self.classes = tuple(map(str, range(args["classes"])))
        self.mean, self.std = (0.0,) * channels, (1.0,) * channels
        self._counts = {"train": args["images"], "val": config.num_val, "full_train": args["images"] + config.num_val, "test": 1}
        generator = torch.Generator().manual_seed(seed)
        self._images = torch.randn(_DRAWN, *self.input_shape, generator=generator).to(device)
        self._labels = torch.randint(args["classes"], (_DRAWN,), generator=generator).to(device)

    def num_images(self, part: Part) -> int:
        """Images that there seem to be."""
        return int(self._counts[part])

    def train_batches(self, part: Part, batch_size: int, seed: int) -> "_Batches":
        """Batches of the noise."""
        return _Batches(self._images, self._labels, batch_size, self.num_images(part))

    def eval_batches(self, part: Part, batch_size: int, max_images: int | None = None) -> "_Batches":
        """The noise in a fixed order."""
        number = min(self.num_images(part), max_images or self.num_images(part))
        return _Batches(self._images, self._labels, min(batch_size, number), number)


class _Batches:
    """Noise as a `TrainSource` and as an `EvalSource`."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, number: int) -> None:
        self._images, self._labels, self._number = images, labels, number
        self.batch_size = self.largest_batch = batch_size
        self.steps_per_epoch = max(1, number // batch_size)
        self.shape: tuple[int, int, int] = (images.shape[1], images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return self._number

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        index = (torch.arange(self.batch_size, device=self._images.device) + step * self.batch_size) % _DRAWN
        return self._images[index], self._labels[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self._number, self.batch_size):
            images, labels = self.batch(start // self.batch_size)
            yield images[: self._number - start], labels[: self._number - start]
