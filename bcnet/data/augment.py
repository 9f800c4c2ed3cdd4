"""Augmentation of single pictures, by timm's and torchvision's transforms, and mixing of a batch's images with each other."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.errors import UserError, first_line
from bcnet.seeds import STREAM_MIX, derive_seed

Picture = Any  # PIL.Image
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


class Augment:
    """What happens to a training picture: crop, flip, policy, colours, erased parts.

    All that is random is drawn from the global generators of Python, NumPy and torch; see `seed_transforms`.

    Args:
        config: which of these.
        size: ``(H, W)`` of the result.
        mean: per channel, in 0..1: the colour of what is erased.

    Raises:
        UserError: a policy that timm does not know.
    """

    def __init__(self, config: DataConfig, size: tuple[int, int], mean: Sequence[float]) -> None:
        from timm.data.transforms import RandomResizedCropAndInterpolation
        from torchvision import transforms

        steps: list[Callable[[Picture], Any]] = []
        if config.resized_crop is not None:
            low, high = config.resized_crop
            crop: Any = RandomResizedCropAndInterpolation
            steps.append(crop(size, (low, high), interpolation="bicubic"))
        else:
            steps.append(Fit(size))
        if config.pad:
            steps.append(transforms.RandomCrop(size, padding=config.pad))
        if config.flip:
            steps.append(transforms.RandomHorizontalFlip())
        if config.auto_augment is not None:
            steps.append(_policy(config.auto_augment, min(size), mean))
        if config.color_jitter:
            steps.append(transforms.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
        self._steps = steps
        self._erase = transforms.RandomErasing(config.erase, value=[255 * value for value in mean]) if config.erase else None
        self._cutout = config.cutout

    def __call__(self, picture: Picture) -> Tensor:
        """A picture as uint8 ``(C, H, W)``."""
        for step in self._steps:
            picture = step(picture)
        image = to_tensor(picture)
        if self._erase is not None:
            image = self._erase(image.contiguous())
        if self._cutout:
            _cut_out(image, self._cutout)
        return image


class Fit:
    """Scale and crop the centre, where a picture is not of the wanted size or only a share of it is wanted.

    Args:
        size: ``(H, W)``.
        fraction: share of the scaled picture's sides that the crop takes.
    """

    def __init__(self, size: tuple[int, int], fraction: float = 1.0) -> None:
        self.size, self.fraction = size, fraction

    def __call__(self, picture: Picture) -> Picture:
        """The picture, scaled and cropped."""
        from PIL import ImageOps

        height, width = self.size
        if picture.size == (width, height) and self.fraction == 1:
            return picture
        return ImageOps.fit(picture, (width, height), _BICUBIC, bleed=(1 - self.fraction) / 2)  # type: ignore[arg-type]


def to_tensor(picture: Picture) -> Tensor:
    """A picture as uint8 ``(C, H, W)``, channels last in memory."""
    pixels = np.array(picture)  # a copy: one's own, and writable
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)


def _policy(name: str, size: int, mean: Sequence[float]) -> Callable[[Picture], Picture]:
    """RandAugment, AutoAugment and AugMix by timm's names, or TrivialAugment."""
    from timm.data import auto_augment
    from torchvision import transforms

    colour = tuple(min(255, round(255 * value)) for value in mean)
    if name == "trivial":
        trivial: Callable[[Picture], Picture] = transforms.TrivialAugmentWide(fill=list(colour))
        return trivial
    kinds = {"rand": auto_augment.rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    make = next((kind for start, kind in kinds.items() if name.startswith(start)), auto_augment.auto_augment_transform)
    settings = {"translate_const": int(0.45 * size), "img_mean": colour} | ({"translate_pct": 0.3} if name.startswith("augmix") else {})
    try:
        policy: Callable[[Picture], Picture] = make(name, settings)  # with what timm's own transforms tell it
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        known = "rand-m9-mstd0.5, original, v0, 3a, augmix-m3 (timm's) or trivial"
        raise UserError(f"data.auto_augment {name!r} is no policy ({first_line(error)}): such as {known}") from error
    return policy


def _cut_out(image: Tensor, side: int) -> None:
    """Make a square around a random point black, in place (DeVries and Taylor, 2017)."""
    _, height, width = image.shape
    y, x = (int(torch.randint(extent, ())) for extent in (height, width))
    top, left = max(0, y - side // 2), max(0, x - side // 2)
    image[:, top : y - side // 2 + side, left : x - side // 2 + side] = 0


def seed_transforms(seed: int) -> None:
    """Let everything that transforms draw follow from a seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (transforms use it)
    torch.default_generator.manual_seed(seed)


@contextmanager
def own_random_states() -> Iterator[None]:
    """Leave the generators that transforms draw from as they were."""
    python, numpy, own = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(own)


class Mix:
    """Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of every image with its neighbour in the batch, which is in random order.

    What is mixed does not depend on how many processes share a batch, as long as each has an even number of images.

    Args:
        mixup: the parameter of the Beta distribution of the share; 0: never.
        cutmix: the same for CutMix; where both are wanted, a coin decides for each batch.
        num_classes: of the labels.
        seed: of the run.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.mixup, self.cutmix, self.num_classes, self.seed = mixup, cutmix, num_classes, seed

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixed images ``(n, C, H, W)`` and probabilities ``(n, classes)``.

        Args:
            images: normalised.
            labels: of the images.
            step: of the training, from which all that is random follows.
        """
        rng = np.random.default_rng(derive_seed(self.seed, STREAM_MIX, step))
        cuts = self.cutmix > 0 and (self.mixup == 0 or bool(rng.random() < 0.5))
        parameter = self.cutmix if cuts else self.mixup
        share = float(rng.beta(parameter, parameter))
        number = torch.arange(len(labels), device=labels.device)
        partner = (number ^ 1).clamp(max=len(labels) - 1)
        if cuts:
            rows, columns, share = _box(images.shape[-2], images.shape[-1], share, rng)
            mixed = images.clone(memory_format=torch.preserve_format)
            mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
        else:
            mixed = torch.lerp(images[partner], images, share)
        hot = torch.nn.functional.one_hot(labels, self.num_classes).float()
        return mixed, torch.lerp(hot[partner], hot, share)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice, float]:
    """A box of ``1 - share`` of an image around a random point, and the share that is left when it is cut off at the border."""
    half = math.sqrt(1 - share) / 2
    y, x = rng.integers(height), rng.integers(width)
    top, bottom = (int(np.clip(round(y + sign * half * height), 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(round(x + sign * half * width), 0, width)) for sign in (-1, 1))
    return slice(top, bottom), slice(left, right), 1 - (bottom - top) * (right - left) / (height * width)
