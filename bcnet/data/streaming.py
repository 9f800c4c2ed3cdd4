"""A data set that is decoded while it is used: any number of pictures, augmented one by one in worker processes.

Batch ``step`` follows from the seed and the step alone. Every picture of it is augmented by a seed of its own place in the order of
training, so the number of workers changes nothing, nor does that of the processes that share a batch.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.augment import Augment, Fit, Mix, Picture, own_random_states, seed_transforms, to_tensor
from bcnet.data.folder import Files, find_held_out, find_images, open_image, size_of_image
from bcnet.data.huggingface import find_pictures
from bcnet.data.interfaces import EvalSource, Part, TrainSource
from bcnet.data.resident import EvalBatches, Normalize, chosen_statistics
from bcnet.data.sources import ImageSet, fingerprint, load_source, split
from bcnet.data.workers import Prefetched
from bcnet.distributed import process_rank, world_size
from bcnet.errors import UserError
from bcnet.seeds import STREAM_AUGMENT, STREAM_ORDER, derive_seed, derive_seeds

SIZED_IMAGES = 2000  # whose sizes must agree where the config names none
STATISTICS_IMAGES = 512  # by which mean and standard deviation are measured where the config names none


class Pictures(Protocol):
    """Pictures that are read when they are asked for."""

    labels: Tensor
    """``(M,)``, int64."""
    names: Sequence[str]
    """Of their files; empty where they are none."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Picture:
        """Picture ``number``.

        Raises:
            UserError: it is no image.
        """

    def size_of(self, number: int) -> tuple[int, int]:
        """Width and height of picture ``number``, in pixels."""


class PictureFiles:
    """`Pictures` of an image folder."""

    def __init__(self, files: Files) -> None:
        self.labels, self._paths = torch.tensor(files.labels), files.paths
        self.names: Sequence[str] = files.names

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, number: int) -> Picture:
        """Picture ``number``."""
        return open_image(self._paths[number])

    def size_of(self, number: int) -> tuple[int, int]:
        """Width and height of picture ``number``, from the head of its file."""
        return size_of_image(self._paths[number])


class PictureArray:
    """`Pictures` that are in memory anyway: uint8 ``(M, C, H, W)``."""

    def __init__(self, images: ImageSet) -> None:
        self.labels, self.images = images.labels[images.index], images.images[images.index]
        self.names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, number: int) -> Picture:
        """Picture ``number``."""
        from PIL import Image

        pixels = self.images[number].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])

    def size_of(self, number: int) -> tuple[int, int]:
        """Width and height, the same of all."""
        height, width = self.images.shape[-2:]
        return width, height


class StreamingData:
    """A `bcnet.data.interfaces.DataSet` whose pictures are decoded when they are used.

    Args:
        config: which pictures, how they are split and augmented.
        seed: of the split, which is that of `bcnet.data.resident.ResidentData`.
        device: where batches are wanted.
        workers: processes that decode and augment; 0: this one does.

    Raises:
        UserError: the files are not where the config says, or are too few; an augmentation that does not exist.
    """

    def __init__(self, config: DataConfig, seed: int, device: torch.device, workers: int) -> None:
        self.config, self.device, self.workers = config, device, workers
        (everything, test, *others), self.classes = _pictures(config)
        self.fingerprint = fingerprint(*((one.labels, one.names) for one in (everything, test, *others)))
        train, val = split(everything.labels, config.num_val, seed, *(one.labels for one in others))
        self.parts: dict[Part, tuple[Pictures, Tensor]] = {
            "train": (everything, train),
            "val": (others[0] if others else everything, val),
            "full_train": (everything, torch.arange(len(everything))),
            "test": (test, torch.arange(len(test))),
        }
        first = to_tensor(everything.read(0))
        size = (config.image_size, config.image_size) if config.image_size is not None else (first.shape[1], first.shape[2])
        if config.image_size is None:
            for pictures in (everything, test, *others):
                _refuse_other_sizes(pictures, size)
        self.input_shape: tuple[int, int, int] = (first.shape[0], *size)
        self.mean, self.std = chosen_statistics(config, self.input_shape[0]) or self._measured(everything, Fit(size))
        self.normalize = Normalize(self.mean, self.std, device)
        Augment(config, size, self.mean)  # what does not exist is refused now

    def _measured(self, pictures: Pictures, fit: Fit) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of some pictures spread over the set, in 0..1."""
        numbers = range(0, len(pictures), max(1, len(pictures) // STATISTICS_IMAGES))
        sample = torch.stack([to_tensor(fit(pictures.read(number))) for number in numbers]).double() / 255
        return tuple(sample.mean((0, 2, 3)).tolist()), tuple(sample.std((0, 2, 3)).clamp_min(1e-3).tolist())

    def num_images(self, part: Part) -> int:
        """Images of a part."""
        return len(self.parts[part][1])

    def train_batches(self, part: Part, batch_size: int, seed: int) -> TrainSource:
        """Augmented batches of a part; each process of a group gets its share of every batch."""
        pictures, index = self.parts[part]
        augment = Augment(self.config, self.input_shape[1:], self.mean)
        maker = TrainMaker(pictures, index, augment, batch_size, self.config.repeats, seed, process_rank(), world_size())
        mixes = self.config.mixup > 0 or self.config.cutmix > 0
        mix = Mix(self.config.mixup, self.config.cutmix, len(self.classes), seed) if mixes else None
        return StreamedBatches(maker, self.normalize, self.workers, mix)

    def eval_batches(self, part: Part, batch_size: int, max_images: int | None = None) -> EvalSource:
        """A part's images, or at most so many of them; those that fit into memory are decoded once."""
        pictures, index = self.parts[part]
        if max_images is not None and max_images < len(index):
            chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:max_images]  # as those in memory are chosen
            index = index[chosen]
        maker = EvalMaker(pictures, index, Fit(self.input_shape[1:], self.config.crop_fraction), min(batch_size, len(index)))
        return StreamedImages(maker, self.normalize, self.workers, self.input_shape, self.config.resident_gib)


def _pictures(config: DataConfig) -> tuple[list[Pictures], tuple[str, ...]]:
    """Training pictures, test pictures and, where they are pictures of their own, held-out ones; class names."""
    if config.source == "huggingface":
        found, classes = find_pictures(config)
        return list(found), classes
    if config.source != "imagefolder":
        source = load_source(config)
        return [PictureArray(source.train), PictureArray(source.test)], source.classes
    if config.root is None:
        raise UserError("data.source=imagefolder wants data.root, the folder of the data set (e.g. data.root=/data)")
    train, test, classes = find_images(config.root)
    files = [train, test, *([find_held_out(config.root, classes)] if config.held_out == "val" else [])]
    return list(map(PictureFiles, files)), classes


def _refuse_other_sizes(pictures: Pictures, size: tuple[int, int]) -> None:
    """Look at the size of some pictures, spread over the set, which no setting gives one size."""
    for number in range(0, len(pictures), max(1, len(pictures) // SIZED_IMAGES)):
        width, height = pictures.size_of(number)
        if (height, width) != size:
            raise UserError(
                f"images differ in size: {size[0]}x{size[1]} is the first, {height}x{width} that of number {number}; set data.image_size"
            )


class TrainMaker:
    """Makes this process's part of a training batch.

    Args:
        pictures: all there are.
        index: those to train on.
        augment: what happens to each.
        batch_size: images per step over all processes.
        repeats: how often a picture comes in a batch, differently augmented each time (repeated augmentation, Hoffer et al., 2020); an
            epoch has as many steps all the same, so it sees fewer of them.
        seed: of order and augmentation.
        rank: of this process.
        processes: that share a batch.

    Raises:
        UserError: more images per batch than there are, or a batch that cannot be shared out evenly.
    """

    def __init__(
        self, pictures: Pictures, index: Tensor, augment: Augment, batch_size: int, repeats: int, seed: int, rank: int, processes: int
    ) -> None:
        if batch_size > len(index):
            raise UserError(f"batch_size={batch_size} is more than the {len(index)} training images")
        if batch_size % processes:
            raise UserError(f"batch_size={batch_size} cannot be shared out evenly among {processes} processes")
        self.pictures, self.index, self.augment = pictures, index, augment
        self.batch_size, self.repeats, self.seed = batch_size, repeats, seed
        share = batch_size // processes
        self.share = range(rank * share, (rank + 1) * share)
        self.steps_per_epoch = len(index) // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(n, C, H, W)``, uint8, and labels ``(n,)``."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, STREAM_ORDER, epoch))
            self._order, self._epoch = torch.randperm(len(self.index), generator=generator), epoch
        different = -(-self.batch_size // self.repeats)
        order = self._order[number * different : (number + 1) * different]
        which = self.index[order].tolist()
        which = [which[place % different] for place in self.share]
        seeds = derive_seeds(self.seed, STREAM_AUGMENT, step, self.batch_size)
        images = []
        with own_random_states():
            for place, picture in zip(self.share, which, strict=True):
                seed_transforms(seeds[place])
                images.append(self.augment(self.pictures.read(picture)))
        return _stacked(images), self.pictures.labels[which]


class EvalMaker:
    """Makes the batches of a fixed set of pictures, scaled and cropped."""

    def __init__(self, pictures: Pictures, index: Tensor, fit: Fit, batch_size: int) -> None:
        self.pictures, self.index, self.fit, self.batch_size = pictures, index, fit, batch_size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(n, C, H, W)``, uint8, and labels ``(n,)``."""
        index = self.index[step * self.batch_size : (step + 1) * self.batch_size]
        return _stacked([to_tensor(self.fit(self.pictures.read(number))) for number in index.tolist()]), self.pictures.labels[index]


def _stacked(images: list[Tensor]) -> Tensor:
    """One tensor of images ``(n, C, H, W)`` that are channels last in memory, as it is itself."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class StreamedBatches:
    """A `bcnet.data.interfaces.TrainSource` of batches that workers make."""

    def __init__(self, maker: TrainMaker, normalize: Normalize, workers: int, mix: Mix | None) -> None:
        self.batch_size, self.steps_per_epoch = maker.batch_size, maker.steps_per_epoch
        self._normalize, self._mix = normalize, mix
        self._batches = Prefetched(maker, workers, pin=normalize.device.type == "cuda")

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(n, C, H, W)`` as floats; labels ``(n,)``, or probabilities ``(n, classes)`` of mixed images."""
        images, labels = self._batches.batch(step)
        images, labels = self._normalize(images), labels.to(self._normalize.device, non_blocking=True)
        return (images, labels) if self._mix is None else self._mix(images, labels, step)


class StreamedImages:
    """A `bcnet.data.interfaces.EvalSource` of pictures that are decoded once if they fit into ``gib``, else whenever they are asked for."""

    def __init__(self, maker: EvalMaker, normalize: Normalize, workers: int, shape: tuple[int, int, int], gib: float) -> None:
        self._maker, self._normalize, self._workers, self.shape = maker, normalize, workers, shape
        self._fits = len(self) * int(np.prod(shape)) <= gib * 2**30

    def __len__(self) -> int:
        return len(self._maker.index)

    @property
    def largest_batch(self) -> int:
        """Images of the largest batch."""
        return self._maker.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._fits:
            yield from self._resident
            return
        for images, labels in self._decoded():
            yield self._normalize(images), labels.to(self._normalize.device)

    @cached_property
    def _resident(self) -> EvalBatches:
        images, labels = (torch.cat(parts) for parts in zip(*self._decoded(), strict=True))
        where = self._normalize.device
        return EvalBatches(ImageSet(images.to(where), labels.to(where)), self._normalize, self._maker.batch_size)

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor]]:
        number = -(-len(self) // self._maker.batch_size)
        batches = Prefetched(self._maker, self._workers)
        for step in range(number):
            yield batches.batch(step, number)
