"""A data set whose images live on the device: augmentation is a few tensor operations, random only through the step."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.interfaces import Part
from bcnet.data.sources import ImageSet, fingerprint, load_source, split
from bcnet.distributed import process_rank, world_size
from bcnet.errors import UserError
from bcnet.seeds import STREAM_AUGMENT, STREAM_ORDER, derive_seed


class ResidentData:
    """A `bcnet.data.interfaces.DataSet` of decoded images, on the device where they fit.

    Args:
        config: which images, how they are split and augmented.
        seed: of the split.
        device: where batches are wanted.

    Raises:
        UserError: the files are not where the config says, are not images, or are too few.
    """

    def __init__(self, config: DataConfig, seed: int, device: torch.device) -> None:
        source = load_source(config)
        sets = [source.train, source.test, *([source.held_out] if source.held_out is not None else [])]
        labels = [one.labels[one.index] for one in sets]
        train, val = split(labels[0], config.num_val, seed, *labels[2:])
        self.classes = source.classes
        self.fingerprint = fingerprint(*zip(labels, source.names, strict=True))
        self.input_shape = source.train.shape
        self.mean, self.std = chosen_statistics(config, self.input_shape[0]) or _channel_statistics(source.train)
        resident = _bytes(sets) <= config.resident_gib * 2**30

        def place(part: ImageSet) -> ImageSet:
            return ImageSet(part.images.to(device), part.labels.to(device), part.index) if resident else part

        everything, test, *others = map(place, sets)
        self.parts: dict[Part, ImageSet] = {
            "train": everything.subset(train),
            "val": (others[0] if others else everything).subset(val),
            "full_train": everything,
            "test": test,
        }
        self.normalize = Normalize(self.mean, self.std, device)
        self._pad, self._flip = config.pad, config.flip

    def num_images(self, part: Part) -> int:
        """Images of a part."""
        return len(self.parts[part])

    def train_batches(self, part: Part, batch_size: int, seed: int) -> "TrainBatches":
        """Augmented batches of a part; each process of a group gets its share of every batch."""
        return TrainBatches(
            self.parts[part],
            self.normalize,
            batch_size=batch_size,
            pad=self._pad,
            flip=self._flip,
            seed=seed,
            rank=process_rank(),
            world_size=world_size(),
        )

    def eval_batches(self, part: Part, batch_size: int, max_images: int | None = None) -> "EvalBatches":
        """A part's images, or at most so many of them."""
        return EvalBatches(self.parts[part], self.normalize, batch_size, max_images)


def _bytes(sets: Sequence[ImageSet]) -> int:
    return sum(one.images.numel() for one in sets)


def chosen_statistics(config: DataConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and standard deviation that a config names, if it does.

    Raises:
        UserError: they are of another number of channels than the images.
    """
    if config.mean is None or config.std is None:
        return None
    if len(config.mean) != channels:
        raise UserError(f"data.mean has {len(config.mean)} values, and the images have {channels} channels")
    return tuple(config.mean), tuple(config.std)


def _channel_statistics(images: ImageSet, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0..1, from at most ``most`` images spread over the set."""
    sample = images.get(torch.arange(0, len(images), max(1, len(images) // most)))[0].double() / 255
    std = sample.std((0, 2, 3)).clamp_min(1e-3)
    return tuple(sample.mean((0, 2, 3)).tolist()), tuple(std.tolist())


class Normalize:
    """uint8 images to floats of zero mean and unit variance.

    Args:
        mean, std: per channel, of images in 0..1.
        device: where the result lives.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.device = device
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        self.shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)``; the result is in channels_last order."""
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            return self._one_by_one(images)
        return images.float().mul_(self.scale.view(-1, 1, 1)).sub_(self.shift.view(-1, 1, 1))

    def _one_by_one(self, images: Tensor) -> Tensor:
        """An image stays in the cache, and threads do not wait for each other where workers have the cores: twice as fast."""
        number, channels, height, width = images.shape
        scale, shift = (np.tile(values.numpy(), width) for values in (self.scale, self.shift))
        result = torch.empty_like(images, dtype=torch.float32)
        rows = [one.permute(0, 2, 3, 1).view(number, height, width * channels).numpy() for one in (images, result)]
        for pixels, image in zip(*rows, strict=True):
            np.multiply(pixels, scale, out=image)
            np.subtract(image, shift, out=image)
        return result


class TrainBatches:
    """Endless training batches; batch ``step`` follows from the seed and the step alone, so a run resumes anywhere.

    Args:
        images: what to train on.
        normalize: to make inputs of them.
        batch_size: images per step over all processes; the images left over in an epoch are skipped.
        pad: pixels of zero padding for random crops.
        flip: random horizontal flips.
        seed: of order and augmentation.
        rank: of this process, which gets every ``world_size``-th part of a batch.
        world_size: number of processes.

    Raises:
        UserError: more images per batch than there are, or a batch that cannot be shared out evenly.
    """

    def __init__(
        self,
        images: ImageSet,
        normalize: Normalize,
        *,
        batch_size: int,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size > len(images):
            raise UserError(f"batch_size={batch_size} is more than the {len(images)} training images")
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size} cannot be shared out evenly among {world_size} processes")
        self.images, self.normalize = images, normalize
        self.batch_size, self.pad, self.flip, self.seed = batch_size, pad, flip, seed
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return len(self.images) // self.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of a batch: images ``(n, C, H, W)`` as floats, labels ``(n,)``."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, STREAM_ORDER, epoch))
            self._order = torch.randperm(len(self.images), generator=generator)
            self._epoch = epoch
        index = self._order[number * self.batch_size : (number + 1) * self.batch_size][self.share]
        images, labels = self.images.get(index)
        if self.pad or self.flip:
            images = self._augment(images, torch.Generator().manual_seed(derive_seed(self.seed, STREAM_AUGMENT, step)))
        return self.normalize(images), labels.to(self.normalize.device)

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random crop of the zero-padded image and random flip, as one gather."""
        count, _, height, width = images.shape
        shift = torch.randint(2 * self.pad + 1, (2, self.batch_size, 1), generator=generator)[:, self.share]
        mirrored = torch.rand((self.batch_size, 1), generator=generator)[self.share] < (0.5 if self.flip else 0.0)
        columns = torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width)) + shift[1]
        rows = torch.arange(height) + shift[0]
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        which = torch.arange(count, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class EvalBatches:
    """A fixed set of images in a fixed order, not augmented.

    Args:
        images: the set.
        normalize: to make inputs of them.
        batch_size: images per batch; the last may be smaller.
        max_images: use only the first this many of a fixed random order (fair to the classes on average).
    """

    def __init__(self, images: ImageSet, normalize: Normalize, batch_size: int, max_images: int | None = None) -> None:
        self.images, self.normalize, self.batch_size = images, normalize, batch_size
        self.max_images = len(images) if max_images is None else min(max_images, len(images))

    def __len__(self) -> int:
        return self.max_images

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return self.images.shape

    @property
    def largest_batch(self) -> int:
        """Images of the largest batch."""
        return min(self.batch_size, self.max_images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        index = torch.arange(len(self.images))
        if self.max_images < len(self.images):
            index = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))[: self.max_images]
        for part in index.split(self.batch_size):
            images, labels = self.images.get(part)
            yield self.normalize(images), labels.to(self.normalize.device)
