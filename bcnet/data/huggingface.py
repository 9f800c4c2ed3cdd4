"""Pictures in a folder of Hugging Face ``datasets``: as ``save_to_disk`` writes it, or Parquet files as the hub has them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.augment import Picture
from bcnet.data.folder import open_image, size_of_image
from bcnet.errors import UserError, first_line
from bcnet.files import cache_folder

_TEST_PARTS = ("test", "validation", "val")


class HubPictures:
    """Pictures of one part of such a data set, decoded when they are asked for.

    Args:
        root: the folder, for messages.
        part: name of the part, for messages.
        rows: a ``datasets.Dataset`` whose pictures are not decoded.
        column: that holds the pictures.
        labels: ``(M,)``, int64.
    """

    def __init__(self, root: Path, part: str, rows: Any, column: str, labels: Tensor) -> None:
        self.root, self.part, self.rows, self.column, self.labels = root, part, rows, column, labels
        self.names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, number: int) -> Picture:
        """Picture ``number``.

        Raises:
            UserError: it is missing, or no image.
        """
        return open_image(*self._content(number))

    def size_of(self, number: int) -> tuple[int, int]:
        """Width and height of picture ``number``, in pixels."""
        return size_of_image(*self._content(number))

    def _content(self, number: int) -> tuple[Path | BytesIO, str]:
        """What holds picture ``number``, and how messages call it."""
        where = f"{self.root}, picture {number} of {self.part}"
        try:
            content = self.rows[number][self.column]
        except Exception as error:  # what a damaged file makes Arrow raise is anybody's guess
            raise UserError(f"{where}: cannot be read ({first_line(error)})") from error
        if content is None or (content["bytes"] is None and content["path"] is None):
            raise UserError(f"{where}: is missing")
        return (Path(content["path"]) if content["bytes"] is None else BytesIO(content["bytes"])), where


def find_pictures(config: DataConfig) -> tuple[list[HubPictures], tuple[str, ...]]:
    """Training pictures, test pictures (or ``validation``), with ``data.held_out=val`` those of ``validation``; class names of a folder.

    ``data.args`` may name the columns, ``{image: img, label: fine_label}``, where there are several.

    Raises:
        UserError: ``datasets`` is not installed, the folder is none of its, a part or a column is missing, or labels are.
    """
    root = config.root
    if root is None:
        raise UserError("data.source=huggingface wants data.root, the folder of the data set (e.g. data.root=/data)")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; huggingface wants one of save_to_disk, or of Parquet files")
    unknown = sorted(set(config.args) - {"image", "label"})
    if unknown:
        raise UserError(f"data.args: {unknown[0]!r} is no setting of huggingface, which has image and label, names of columns")
    parts = _load(root)
    test = next((name for name in _TEST_PARTS if name in parts), None)
    if "train" not in parts or test is None:
        raise UserError(f"{root}: has the parts {', '.join(parts) or 'none'}; wanted are train and one of {', '.join(_TEST_PARTS)}")
    held_out = [name for name in _TEST_PARTS[1:] if name in parts and name != test][:1] if config.held_out == "val" else []
    if config.held_out == "val" and not held_out:
        raise UserError(f"{root}: data.held_out=val wants the parts test and validation, and there are {', '.join(parts)}")
    import datasets

    features = parts["train"].features
    image = _column(root, config, features, "image", datasets.Image)
    label = _column(root, config, features, "label", datasets.ClassLabel)
    classes = _class_names(root, parts["train"], label)
    return [_pictures(root, part, parts[part], image, label, classes) for part in ("train", test, *held_out)], classes


def _load(root: Path) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.source=huggingface needs datasets: pip install 'bcnet[huggingface]'") from error
    datasets.disable_progress_bars()
    try:
        if (root / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(root)))
        if next(root.rglob("*.parquet"), None) is None:
            raise UserError(f"{root}: neither a folder of save_to_disk (with a train and a test part) nor of Parquet files")
        return dict(datasets.load_dataset(str(root), cache_dir=str(cache_folder() / "huggingface")))
    except UserError:
        raise
    except Exception as error:  # what a damaged folder makes the library raise is anybody's guess
        raise UserError(f"{root}: cannot be read by datasets ({first_line(error)})") from error


def _column(root: Path, config: DataConfig, features: Any, kind: str, type_: type) -> str:
    """The column that is asked for, or the only one of a type."""
    if kind in config.args:
        name = str(config.args[kind])
        if name not in features:
            raise UserError(f"{root}: has no column {name!r} (data.args.{kind}), only {', '.join(features)}")
        if kind == "image" and not isinstance(features[name], type_):
            raise UserError(f"{root}: the column {name!r} (data.args.image) holds no pictures")
        return name
    found: list[str] = [name for name, feature in features.items() if isinstance(feature, type_)]
    if len(found) != 1:
        several = f"{len(found)} columns of that kind ({', '.join(found)})" if found else f"no such column among {', '.join(features)}"
        raise UserError(f"{root}: which column is the {kind}? There is {several}; name it by data.args={{{kind}: NAME}}")
    return found[0]


def _class_names(root: Path, rows: Any, label: str) -> tuple[str, ...]:
    """The names that a column of labels has, or else its values, sorted."""
    feature = rows.features[label]
    if (names := getattr(feature, "names", None)) is not None:
        return tuple(names)
    if not getattr(feature, "dtype", "").startswith(("string", "int", "uint", "bool")):
        raise UserError(f"{root}: the column {label!r} (data.args.label) holds no classes, that is numbers or words")
    return tuple(map(str, sorted(value for value in set(rows[label]) if value is not None)))


def _pictures(root: Path, part: str, rows: Any, image: str, label: str, classes: tuple[str, ...]) -> HubPictures:
    import datasets

    missing = [name for name in (image, label) if name not in rows.features]
    if missing:
        raise UserError(f"{root}: {part} has no column {missing[0]!r}")
    numbers = {name: number for number, name in enumerate(classes)}
    names = getattr(rows.features[label], "names", None)
    if names is not None and tuple(names) != classes:
        raise UserError(f"{root}: classes of {part} are other ones, or in another order, than those of train")
    labels = [-1 if value is None else numbers.get(str(value), -1) if names is None else value for value in rows[label]]
    odd = next((place for place, value in enumerate(labels) if not 0 <= value < len(classes)), None)
    if odd is not None:
        raise UserError(f"{root}, picture {odd} of {part}: has no class (its {label} is {rows[odd][label]!r})")
    raw = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return HubPictures(root, part, raw, image, torch.tensor(labels, dtype=torch.int64))
