"""Image files in folders: the layouts that people have, and reading one file."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bcnet.errors import UserError
from bcnet.files import is_file, read_text

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".jfif", ".webp", ".tif", ".tiff"}
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF")  # none that runs a program, whatever a file is called
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

    @property
    def names(self) -> list[str]:
        """Of the images, within the folder."""
        start = len(str(self.folder)) + 1  # `Path.relative_to` would take ten seconds for ImageNet
        return [str(path)[start:].replace(os.sep, "/") for path in self.paths]


def find_images(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """Training images, test images and class names of a folder.

    Either ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` or ``val/CLASS/*.jpg``, as ImageNet is laid out for torchvision, whatever folders
    there are within those of the classes; or Tiny-ImageNet as it is published: ``train/CLASS/images/*.JPEG`` and ``val/images/*.JPEG`` with
    ``val/val_annotations.txt``, whose own ``test/`` has no labels.

    Raises:
        UserError: the folder has another layout.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; imagefolder wants {root}/train/CLASS/*.jpg and {root}/test/CLASS/*.jpg")
    classes = _class_names(root / "train")
    train = _by_class(root / "train", classes)
    if (root / "val" / _ANNOTATIONS).is_file():
        return train, _annotated(root / "val", classes), classes
    test = next((root / name for name in ("test", "val") if _has_classes(root / name)), root / "test")
    test_classes = _class_names(test)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"{root}: class folders of train and {test.name} differ: {', '.join(odd[:5])}")
    return train, _by_class(test, classes), classes


def find_held_out(root: Path, classes: tuple[str, ...]) -> Files:
    """Images of ``val/CLASS/`` where ``test/CLASS/`` stands beside it.

    Raises:
        UserError: there are not both, or their classes differ.
    """
    folder = root / "val"
    if not has_own_val(root):
        raise UserError(f"{root}: data.held_out=val wants val/CLASS/*.jpg and test/CLASS/*.jpg; data.held_out=train needs no val/")
    if odd := sorted(set(classes) ^ set(_class_names(folder))):
        raise UserError(f"{root}: class folders of train and val differ: {', '.join(odd[:5])}")
    return _by_class(folder, classes)


def has_own_val(root: Path) -> bool:
    """Whether ``val/`` stands beside ``test/``: alone it is what networks are tested on."""
    return _has_classes(root / "val") and _has_classes(root / "test")


def open_image(source: Path | BinaryIO, name: str = "") -> Any:
    """A ``PIL.Image`` in RGB.

    Args:
        source: the file.
        name: what messages call it; empty: its path.

    Raises:
        UserError: it cannot be decoded.
    """
    with _opened(source, name) as file:
        return _in_8_bits(file, name or source).convert("RGB")


def size_of_image(source: Path | BinaryIO, name: str = "") -> tuple[int, int]:
    """Width and height of an image in pixels, from the head of its file; arguments and mistakes as of `open_image`."""
    with _opened(source, name) as file:
        width, height = file.size
        return width, height


@contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[Any]:
    from PIL import Image

    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of odd metadata
            with Image.open(source, formats=[one for one in _FORMATS if one in Image.OPEN]) as file:
                yield file
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name or source}: has too many pixels ({Image.MAX_IMAGE_PIXELS:,} is the most); scale or remove it") from error
    except Exception as error:  # what a decoder raises for a damaged file is anybody's guess
        what = f"cannot be decoded as an image ({type(error).__name__})"
        raise UserError(f"{name or source}: {what}; replace or remove {'it' if name else 'the file'}") from error


def _in_8_bits(picture: Any, name: object) -> Any:
    """A picture of at most 8 bits a channel; one of 16 is scaled by its full range.

    Raises:
        UserError: its range is not known, as of 32 bits or floating point.
    """
    from PIL import Image

    if picture.mode in ("I", "F"):
        is_16 = picture.format in ("PNG", "PPM")  # whose I is 16 bits wide in older versions of Pillow
        if not is_16 or picture.mode == "F":
            raise UserError(f"{name}: has 32 bits a pixel (mode {picture.mode}), whose range is not known; convert it to 8 or 16 bits")
    if picture.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
    return picture


def _has_classes(folder: Path) -> bool:
    """ImageNet's own ``test/`` has none: its pictures have no labels."""
    return folder.is_dir() and any(_is_class(entry) for entry in _entries(folder))


def _is_class(entry: "os.DirEntry[str]") -> bool:
    return not entry.name.startswith(".") and Path(entry.path).is_dir()


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; imagefolder wants train/ and test/ (or val/) with one folder per class")
    names = tuple(sorted(entry.name for entry in _entries(folder) if _is_class(entry)))
    for name in names:
        if not name.isprintable():
            raise UserError(f"{folder}: the class folder {name!r} has a name that cannot be printed (line breaks, not UTF-8); rename it")
    if not names:
        raise UserError(f"{folder}: no class folders in it; imagefolder wants {folder}/CLASS/*.jpg")
    return names


def _by_class(folder: Path, classes: tuple[str, ...]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = _images_in(folder / name)
        if not images:
            raise UserError(f"{folder / name}: no images in it; expected files such as 0001.jpg or .png")
        paths += images
        labels += [label] * len(images)
    return Files(folder, paths, labels)


def _images_in(folder: Path) -> list[Path]:
    """Those of folders within it, too, as torchvision takes them; every folder is read once, and links to those around it are left."""
    images, folders, known = [], [folder], set(folder.resolve().parents)
    for one in folders:  # which grows meanwhile
        if (here := one.resolve()) in known:
            continue
        known.add(here)
        for entry in sorted(_entries(one), key=lambda entry: entry.name):
            is_plain = entry.is_file(follow_symlinks=False)
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                if not (is_plain or is_file(Path(entry.path))):
                    raise UserError(f"{entry.path}: no regular file, nor a link to one; replace or remove it")
                images.append(Path(entry.path))
            elif not is_plain and _is_class(entry):
                folders.append(Path(entry.path))
    return sorted(images)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _annotated(folder: Path, classes: tuple[str, ...]) -> Files:
    """Images that a list gives classes to: ``NAME<tab>CLASS<tab>...`` a line."""
    table = folder / _ANNOTATIONS
    known = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for number, line in enumerate(read_text(table, "NAME, a tab and a class a line").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        label = known.get(rest.split("\t")[0])
        if not name or label is None:
            raise UserError(f"{table}, line {number}: expected NAME, a tab and one of the classes of train, found {line[:60]!r}")
        if not is_file(folder / "images" / name):
            raise UserError(f"{table}, line {number}: {folder / 'images' / name} does not exist")
        paths.append(folder / "images" / name)
        labels.append(label)
    if not paths:
        raise UserError(f"{table}: no images in it")
    return Files(folder, paths, labels)
