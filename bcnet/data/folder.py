"""Image files in folders: the layouts that people have, and reading one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcnet.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}
_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class Files:
    """Images of one part of a data set.

    Attributes:
        folder: in which they are.
        paths: of the images.
        labels: the class number of each.
    """

    folder: Path
    paths: list[Path]
    labels: list[int]


def find_images(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """Training images, test images and class names of a folder.

    Either ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` or ``val/CLASS/*.jpg``, as ImageNet is laid out for torchvision; or Tiny-ImageNet
    as it is published: ``train/CLASS/images/*.JPEG`` and ``val/images/*.JPEG`` with ``val/val_annotations.txt``, whose own ``test/`` has
    no labels.

    Raises:
        UserError: the folder has another layout.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; imagefolder wants {root}/train/CLASS/*.jpg and {root}/test/CLASS/*.jpg")
    classes = _class_names(root / "train")
    train = _by_class(root / "train", classes)
    if (root / "val" / _ANNOTATIONS).is_file():
        return train, _annotated(root / "val", classes), classes
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    test_classes = _class_names(test)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"{root}: class folders of train and {test.name} differ: {', '.join(odd[:5])}")
    return train, _by_class(test, classes), classes


def open_image(path: Path) -> Any:
    """A ``PIL.Image`` in RGB.

    Raises:
        UserError: it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be decoded as an image ({type(error).__name__}); replace or remove the file") from error


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; imagefolder wants train/ and test/ (or val/) with one folder per class")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if not names:
        raise UserError(f"{folder}: no class folders in it; imagefolder wants {folder}/CLASS/*.jpg")
    return names


def _by_class(folder: Path, classes: tuple[str, ...]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = _images_in(folder / name) or _images_in(folder / name / "images")
        if not images:
            raise UserError(f"{folder / name}: no images in it; expected files such as 0001.jpg or .png")
        paths += images
        labels += [label] * len(images)
    return Files(folder, paths, labels)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []


def _annotated(folder: Path, classes: tuple[str, ...]) -> Files:
    """Images that a list gives classes to: ``NAME<tab>CLASS<tab>...`` a line."""
    table = folder / _ANNOTATIONS
    known = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        label = known.get(rest.split("\t")[0])
        if not name or label is None:
            raise UserError(f"{table}, line {number}: expected NAME, a tab and one of the classes of train, found {line[:60]!r}")
        if not (folder / "images" / name).is_file():
            raise UserError(f"{table}, line {number}: {folder / 'images' / name} does not exist")
        paths.append(folder / "images" / name)
        labels.append(label)
    if not paths:
        raise UserError(f"{table}: no images in it")
    return Files(folder, paths, labels)
