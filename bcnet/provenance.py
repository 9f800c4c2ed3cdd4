"""What a folder of trained networks was begun with: trained weights, classes, images; what comes later must have the same."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from bcnet.config import Config, read_yaml
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.files import read_json

Kind = Literal["run", "dense", "fit"]
_FILE = "environment.json"
_HOLDS: dict[Kind, str] = {
    "run": "the run of a supernet (bcnet train, search, ...)",
    "dense": "a search of a grid (bcnet dense ...)",
    "fit": "plain trainings (bcnet fit)",
}


def kind_of(folder: Path) -> Kind:
    """What a folder with a ``config.yaml`` is; one whose config cannot be read, or that has only begun, is taken for a supernet's."""
    try:
        tree = read_yaml(folder / "config.yaml")
    except UserError:
        return "run"
    if isinstance(tree, dict) and "grid" in tree:
        return "dense"
    is_fit = not (folder / "checkpoint.pt").exists() and ((folder / "fit.json").exists() or any(folder.glob("seed*")))
    return "fit" if is_fit else "run"


def refuse_other_kind(folder: Path, wanted: Kind) -> None:
    """See that a folder with a ``config.yaml`` is of one kind.

    Raises:
        UserError: it is of another.
    """
    kind = kind_of(folder)
    has_only_begun = kind == "run" and wanted == "fit" and not (folder / "checkpoint.pt").exists()
    if kind != wanted and not has_only_begun:
        raise UserError(f"{folder} holds {_HOLDS[kind]}, not {_HOLDS[wanted]}")


def made_of(experiment: Experiment) -> dict[str, Any]:
    """What of an experiment its config does not say: class names, numbers of images and which, and which file the trained weights are."""
    data = experiment.data
    images = {"train": data.num_images("full_train"), "test": data.num_images("test")}
    which = {"images_sha256": data.fingerprint} if hasattr(data, "fingerprint") else {}
    return {"classes": list(data.classes), "images": images} | which | _weights(experiment.config)


def refuse_others(folder: Path, experiment: Experiment) -> None:
    """See that an experiment is what a folder was begun with, as far as that is known there.

    Raises:
        UserError: other weights under the same name, other classes, more, fewer or other images; that of a run with weights is damaged.
    """
    try:
        known = read_environment(folder)
    except UserError:  # damaged: it is no part of the training, and only weights are told apart by nothing else
        if experiment.config.model.weights is not None:
            raise
        return
    now = made_of(experiment)
    before = {key: known.get(key, value) for key, value in now.items()}
    if before["classes"] != now["classes"]:
        raise UserError(f"{folder}: was trained with other classes than the images of {len(now['classes'])} classes that are there now")
    if before["images"] != now["images"]:
        there, here = (_counted(images) for images in (before["images"], now["images"]))
        raise UserError(f"{folder}: was trained with {there}, and there are {here} now; bring those back, or train into another folder")
    if before.get("images_sha256") != now.get("images_sha256"):
        what = f"was trained with as many images, but their names or classes are no longer the same ({experiment.config.data.root})"
        raise UserError(f"{folder}: {what}; bring those back, or train into another folder")
    if before.get("weights_sha256") != now.get("weights_sha256"):
        raise UserError(f"{folder}: model.weights is another file than when the run was begun; give that one, or choose another --out")


def read_environment(folder: Path) -> dict[str, Any]:
    """What a folder says of how it was made; empty where it does not.

    Raises:
        UserError: that is damaged.
    """
    file = folder / _FILE
    known = read_json(file, "the environment of a run") if file.is_file() else {}
    if not isinstance(known, dict):
        raise UserError(f"{file}: not the environment of a run, which is an object")
    return known


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _weights(config: Config) -> dict[str, str]:
    """What tells the file of trained weights from another of its name, if there is one."""
    file = config.model.weights
    return {"weights_sha256": sha256(file)} if file is not None and file.is_file() else {}


def _counted(images: Any) -> str:
    known = images if isinstance(images, dict) else {}
    return " and ".join(f"{known.get(part)} {part} images" for part in ("train", "test"))
