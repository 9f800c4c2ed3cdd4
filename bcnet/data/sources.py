"""Image sources: every one becomes uint8 images and integer labels, a training and a test set."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.folder import Files, find_held_out, find_images, open_image
from bcnet.errors import UserError
from bcnet.files import cache_folder, is_file, write_atomic
from bcnet.progress import ProgressBar, notice
from bcnet.seals import check_seal, seal
from bcnet.seeds import STREAM_SPLIT, derive_seed

DIGITS_TEST_IMAGES = 800


class ImageSet:
    """Some of the images of a tensor, without a copy of them.

    Args:
        images: ``(M, C, H, W)``, uint8.
        labels: ``(M,)``, int64.
        index: positions of this set's images in the two; unset: all of them.
    """

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        self.images, self.labels = images, labels
        self.index = torch.arange(len(labels)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, index: Tensor) -> "ImageSet":
        """The images at the given positions of this set, as a set."""
        return ImageSet(self.images, self.labels, self.index[index])

    def get(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(n, C, H, W)`` and labels ``(n,)`` at the given positions of this set, where the images live."""
        where = self.index[index].to(self.images.device)
        return self.images[where], self.labels[where]


@dataclass(frozen=True)
class Source:
    """A data set: training images, test images, class names."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    names: tuple[list[str], ...] = ([], [])
    """Of the files of training, test and held-out images, where they are files."""
    held_out: ImageSet | None = None
    """Where these are no training images."""


def fingerprint(*parts: tuple[Tensor, Sequence[str]]) -> str:
    """What tells images from others without looking at a pixel: labels ``(M,)`` and names of each part, in their order."""
    digest = hashlib.sha256()
    for labels, names in parts:
        digest.update(labels.to("cpu", torch.int64).numpy().astype("<i8").tobytes())
        digest.update(os.fsencode("\0".join(names)))
    return digest.hexdigest()


def load_source(config: DataConfig) -> Source:
    """Load the data set that a config names.

    Raises:
        UserError: the files are not where the config says, or not images.
    """
    if config.source == "digits":
        return _digits()
    if config.root is None:
        raise UserError(f"data.source={config.source} wants data.root, the folder of the data set (e.g. data.root=/data)")
    if config.source == "imagefolder":
        return _imagefolder(config.root, config.image_size, config.held_out == "val")
    return _cifar(config)


def balanced_split(labels: Tensor, num_second: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Split positions into two parts; the second has ``num_second`` of them, as evenly over the classes as they allow.

    Returns:
        Two ascending int64 tensors of positions.

    Raises:
        UserError: fewer images than asked for.
    """
    if num_second >= len(labels):
        raise UserError(f"{num_second} images cannot be held out of {len(labels)}: lower data.num_val")
    order = rng.permutation(len(labels))
    ranked = labels.numpy()[order]
    place = np.empty(len(labels), dtype=np.int64)  # how many of the same class come earlier
    for label in np.unique(ranked):
        mine = np.flatnonzero(ranked == label)
        place[mine] = np.arange(len(mine))
    second = order[np.argsort(place, kind="stable")[:num_second]]
    is_second = np.zeros(len(labels), dtype=bool)
    is_second[second] = True
    return torch.from_numpy(np.flatnonzero(~is_second)), torch.from_numpy(np.flatnonzero(is_second))


def split(labels: Tensor, num_val: int, seed: int, held_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions of what is trained on, and of ``num_val`` images that scores are measured on, spread evenly over the classes.

    Args:
        labels: of the training images, ``(M,)``.
        num_val: how many are held out.
        seed: of the run.
        held_out: labels of images of their own, of which so many are taken, or all there are; unset: training images are held out.

    Raises:
        UserError: more are to be held out of the training images than there are, or all of a class.
    """
    rng = np.random.default_rng(derive_seed(seed, STREAM_SPLIT))
    if held_out is None:
        train, val = balanced_split(labels, num_val, rng)
        before, after = (torch.bincount(own, minlength=int(labels.max()) + 1) for own in (labels, labels[train]))
        if len(gone := torch.nonzero((before > 0) & (after == 0)).flatten()):
            most = f"all {int(before[gone].max())} images of " + (f"{len(gone)} classes" if len(gone) > 1 else "a class")
            raise UserError(f"data.num_val={num_val} would hold out {most}, of which none would be trained on: lower data.num_val")
        return train, val
    chosen = balanced_split(held_out, num_val, rng)[1] if num_val < len(held_out) else torch.arange(len(held_out))
    return torch.arange(len(labels)), chosen


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8)[:, None])
    everything = ImageSet(images, torch.from_numpy(bunch.target.astype(np.int64)))
    # part of the data set's definition, so not from the run's seed
    train, test = balanced_split(everything.labels, DIGITS_TEST_IMAGES, np.random.default_rng(0))
    return Source(everything.subset(train), everything.subset(test), tuple(map(str, bunch.target_names)))


def _cifar(config: DataConfig) -> Source:
    from torchvision import datasets

    kind = datasets.CIFAR10 if config.source == "cifar10" else datasets.CIFAR100
    try:
        parts = [kind(str(config.root), train=train, download=config.download) for train in (True, False)]
    except Exception as error:
        hint = "" if config.download else ", or pass data.download=true"
        what = f"{config.root}: no {config.source} there ({str(error).splitlines()[0]})"
        raise UserError(f"{what}; expected the folder {kind.base_folder} of the official download in it{hint}") from error
    sets = [ImageSet(torch.from_numpy(part.data.transpose(0, 3, 1, 2).copy()), torch.tensor(part.targets)) for part in parts]
    return Source(sets[0], sets[1], tuple(parts[0].classes))


_DECODING = 2  # how pictures are decoded; what another version kept is not used


def _imagefolder(root: Path, image_size: int | None, has_held_out: bool) -> Source:
    train, test, classes = find_images(root)
    files = [train, test, *([find_held_out(root, classes)] if has_held_out else [])]
    sets = [_read_folder(one, image_size) for one in files]
    if odd := next((one.folder.name for one, images in zip(files, sets, strict=True) if images.shape != sets[0].shape), None):
        raise UserError(f"{root}: images of train and {odd} differ in size; set data.image_size to bring them to one")
    return Source(sets[0], sets[1], classes, tuple(one.names for one in files), sets[2] if has_held_out else None)


def _read_folder(images: Files, image_size: int | None) -> ImageSet:
    """Decode once; later runs read the cached array."""
    folder, files, labels = images.folder, images.paths, images.labels
    key = hashlib.sha256(os.fsencode(f"{folder.resolve()} {image_size} {_DECODING}"))
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        key.update(os.fsencode(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}"))
    cached = cache_folder() / f"images-{key.hexdigest()[:24]}.npy"
    if not _is_whole(cached):
        write_atomic(cached, lambda temporary: _decode_all(files, image_size, temporary))
    array = np.load(cached, mmap_mode="c", allow_pickle=False)
    return ImageSet(torch.from_numpy(array), torch.tensor(labels))


def _is_whole(cached: Path) -> bool:
    """Whether the images have been decoded before, and are as they were written; what is damaged is decoded again."""
    if not is_file(cached):
        return False
    try:
        if check_seal(cached):
            return True
        notice(f"{cached}: has no checksum; the images are decoded again")
    except UserError as error:
        notice(f"{error}; the images are decoded again")
    return False


def _decode_all(files: list[Path], image_size: int | None, target: Path) -> None:
    first = _decode(files[0], image_size)
    shape = (len(files), *first.shape)
    array: Any = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here; behind the memory map it would kill the process
            with target.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, target.stat().st_size)
        with ProgressBar(f"decoding {files[0].parent.parent}", len(files)) as bar:
            for number, path in enumerate(files):
                image = _decode(path, image_size)
                if image.shape != first.shape:
                    sizes = " and ".join(f"{i.shape[2]}x{i.shape[1]}" for i in (first, image))
                    raise UserError(f"{path}: images differ in size ({sizes}); set data.image_size to bring them to one")
                array[number] = image
                bar.update(number + 1)
        array.flush()
    finally:
        del array  # an error on its way would keep it, and Windows removes no file that is mapped
    with target.open("r+b") as file:
        seal(file)


def _decode(path: Path, image_size: int | None) -> np.ndarray[Any, Any]:
    from PIL import Image, ImageOps

    image = open_image(path)
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels: np.ndarray[Any, Any] = np.asarray(image).transpose(2, 0, 1)
    return pixels
