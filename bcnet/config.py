"""One strict schema per stage: YAML in, dotted overrides, resolved YAML out.

A config file may name a ``base`` file, which it overrides; ``train.epochs=5`` on the command line overrides both.
Every field below is documented where it stands; unknown keys are refused with the nearest valid name.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bcnet.errors import UserError
from bcnet.files import shipped


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(_Section):
    """Images, and how they are split and augmented."""

    source: Literal["digits", "cifar10", "cifar100", "imagefolder"] = "digits"
    """Where the images come from; ``digits`` needs no files."""
    root: Path | None = None
    """Folder of the data set; ``imagefolder`` wants ``train/CLASS/`` and ``test/CLASS/`` (or ``val/``) in it."""
    download: bool = False
    """Fetch cifar10 or cifar100 into ``root`` when it is not there."""
    image_size: int | None = Field(None, gt=0)
    """Resize the shorter side to this many pixels and crop the centre (imagefolder); unset: images must agree in size."""
    num_val: int = Field(300, ge=0)
    """Training images held out for search scores, the same number of every class."""
    pad: int = Field(0, ge=0)
    """Pixels of zero padding for random crops."""
    flip: bool = False
    """Random horizontal flips."""
    resident_gib: float = Field(8.0, ge=0)
    """Data sets up to this size live on the device as one uint8 tensor; larger ones stay in a memory-mapped file."""


class ModelConfig(_Section):
    """The plain network."""

    name: str = "digits/resnet"
    """``channel_bench/mobilenet``, ``channel_bench/resnet``, ``digits/resnet``, ``timm/NAME``, ``torchvision/NAME`` or
    ``package.module:factory``."""
    pretrained: bool = False
    """Start from the weights that timm or torchvision publish."""
    args: dict[str, Any] = {}
    """Further keyword arguments of the factory."""


class SpaceConfig(_Section):
    """The width space."""

    bins: int = Field(4, ge=1)
    """Bins K per group."""
    min_bins: int = Field(1, ge=1)
    """Smallest width index k_min."""
    divisor: int | None = Field(None, gt=0)
    """Channel counts are multiples of it in every group whose full count is one."""


class RecipeConfig(_Section):
    """How a network is trained: SGD with momentum, cosine schedule with linear warm-up."""

    epochs: float = Field(20, gt=0)
    """Passes over the training images; may be a fraction."""
    batch_size: int = Field(64, gt=0)
    """Images per step, over all processes together."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs of linear warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty."""
    decay_norm_and_bias: bool = True
    """Whether the penalty also holds for BN parameters and biases."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest gradient norm."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights, and use it in place of them afterwards."""


class TrainConfig(RecipeConfig):
    """Training of the supernet."""

    strategy: Literal["uniform", "autoslim", "bcnet", "bcnetv2"] = "bcnetv2"
    """Which subnets one step trains."""
    num_random: int = Field(2, ge=0)
    """Random subnets per step of ``autoslim``, beside the widest and the narrowest."""
    inplace_distillation: bool = True
    """``bcnet`` and ``bcnetv2``: every step trains the whole supernet by the labels, and by its softmax widths on one side and
    their complement on the other; false: as published."""
    records: int = Field(1000, gt=0)
    """How many of the best (loss, widths) records are kept for the prior initial population."""


METRIC_NAMES = {
    "accuracy": "accuracy",
    "neg_cross_entropy": "negative cross-entropy",
    "neg_kl": "negative KL divergence from the full width",
}


class ScoreConfig(_Section):
    """How a subnet is scored."""

    metric: Literal["accuracy", "neg_cross_entropy", "neg_kl"] = "neg_kl"
    """The score, on the search-validation images; higher is better. ``neg_kl``: how near the predictions are to those of the
    full width."""
    additive: int | None = Field(None, gt=0)
    """Score this many random widths only, and any others by what each group's width is worth in those (an additive model)."""
    calibration_images: int = Field(1024, gt=0)
    """Training images, not augmented, for the BN statistics of the subnet; the same ones for all."""
    max_images: int | None = Field(None, gt=0)
    """Use at most this many search-validation images."""
    batch_size: int = Field(256, gt=0)
    """Images per forward pass in calibration and evaluation."""
    memory_gib: float = Field(4.0, gt=0)
    """Memory for what width vectors share when many are scored; where it does not suffice, each is scored alone."""


class SearchConfig(_Section):
    """The search for a width vector."""

    algorithm: Literal["evolution", "random"] = "evolution"
    """NSGA-II, or random widths under the budget as a baseline."""
    objective: Literal["score", "score_and_cost"] = "score"
    """Best score under the budget, or a Pareto front of score against the budget's cost."""
    init: Literal["prior", "random"] = "prior"
    """First generation: from the training's loss records, or random."""
    population: int = Field(40, gt=1)
    """Individuals per generation."""
    evaluations: int = Field(400, gt=0)
    """Width vectors to score."""


class Config(_Section):
    """A whole experiment."""

    seed: int = Field(0, ge=0)
    """Of everything random: initial weights, split, order, augmentation, widths, search."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes the GPU when there is one."""
    threads: int | None = Field(None, gt=0)
    """CPU threads; unset: as many as torch likes. Small networks want 1: more threads only wait for each other."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """bf16 autocast; ``auto``: where the hardware computes in bf16."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Longest time between two checkpoints."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    space: SpaceConfig = SpaceConfig()
    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    search: SearchConfig = SearchConfig()
    retrain: RecipeConfig = RecipeConfig()


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, its bases and the overrides.

    Args:
        name: a path, or the name of a shipped config such as ``digits/bcnetv2``.
        overrides: ``section.key=value``, the value in YAML.

    Raises:
        UserError: no such file, not YAML, an unknown key or a value of the wrong type.
    """
    path = find_config(name)
    tree = _read_tree(path, ())
    for override in overrides:
        _apply_override(tree, override)
    return validate_config(tree, str(path))


def validate_config(tree: Any, where: str) -> Config:
    """Check a tree of plain values against the schema.

    Raises:
        UserError: naming the first offending key, its value and what would be right.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error.errors()[0])}") from error


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every field included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differing_keys(one: Config, other: Config) -> list[str]:
    """Dotted names of the fields in which two configs differ."""
    a, b = (dict(_leaves(config.model_dump(mode="json"), "")) for config in (one, other))
    return [key for key in a if a[key] != b.get(key, object())]


def shipped_configs() -> list[str]:
    """Names of the shipped configs."""
    folder = shipped("configs")
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("study/"))  # those are lists of experiments


def find_config(name: str | Path) -> Path:
    """The file for a path or the name of a shipped config.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    found = shipped("configs") / f"{str(name).removesuffix('.yaml').removeprefix('configs/')}.yaml"
    if found.is_file():
        return found
    raise UserError(f"config {str(name)!r}: no such file, and no shipped config of that name ({', '.join(shipped_configs())})")


def _read_tree(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"{path}: its base files form a circle")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of sections such as 'train:', found {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    base_path = path.parent / str(base)
    if not base_path.is_file():
        raise UserError(f"{path}: its base {str(base)!r} does not exist (looked for {base_path})")
    return _merge(_read_tree(base_path, (*above, path.resolve())), tree)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not KEY=VALUE, e.g. train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML") from error
    *sections, leaf = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {section!r} is a value, not a section")
        tree = inner
    tree[leaf] = value


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _valid_keys(field.annotation, f"{prefix}{name}.")


def _explain(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['input']!r} is wrong: {error['msg'][0].lower()}{error['msg'][1:]}"
    valid = list(_valid_keys())
    siblings = [name for name in valid if name.rpartition(".")[0] == key.rpartition(".")[0]]
    near = difflib.get_close_matches(key, siblings, 1, 0.6) or [v for v in valid if v.endswith("." + key.rpartition(".")[2])][:1]
    hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(siblings) or 'nothing'}"
    return f"unknown key {key!r}; {hint}"
