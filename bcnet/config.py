"""One strict schema per stage: YAML in, dotted overrides, resolved YAML out.

A config file may name a ``base`` file, which it overrides; ``train.epochs=5`` on the command line overrides both. Every field
below is documented where it stands; unknown keys are refused with the nearest valid name. What is chosen by name and has
settings of its own (the strategy, the search algorithm) is a `Named`: its settings stand under it and are checked against it.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from bcnet.errors import UserError, shown
from bcnet.files import is_file, read_text, shipped
from bcnet.former import FORMER_HINTS, FORMER_KEYS, FORMER_METRICS, read_former_config
from bcnet.plugins import find_by_name, named_code, refuse_untrusted
from bcnet.trees import dump_yaml, numbers, parse_yaml

MOST = 1_000_000  # of whatever is counted; more is a slip, and some of it would end the process


class Section(BaseModel):
    """Settings that belong together; unknown names are refused, and every field has a docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Types are strict (``true`` is no number, ``"5"`` neither), but YAML has no paths and no tuples, and knows words for booleans."""
        annotation = str(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, str) and "bool" in annotation:
            return _WORDS.get(value, value)
        if isinstance(value, str) and "Path" in annotation:
            return Path(value)
        if isinstance(value, list | tuple):
            return tuple(value) if "tuple" in annotation else list(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _counts(cls, tree: Any) -> Any:
        """Also what is free in a section, as arguments of a model are, holds numbers that something can be counted with."""
        for place, value in numbers(tree):
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{place}: {shown(value)} is no finite number of at most 64 bits")
        return tree


_WORDS = {"yes": True, "on": True, "no": False, "off": False}


class Named(BaseModel):
    """Something chosen by its name, with settings of its own: ``autoslim`` or ``{name: autoslim, num_random: 3}``."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer
    def _to_plain(self) -> Any:
        return {"name": self.name} | self.settings if self.settings else self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were given."""
        return dict(self.model_extra or {})


class DataConfig(Section):
    """Images, and how they are split and augmented."""

    source: str = "digits"
    """Where the images come from: ``digits`` (needs no files), ``cifar10``, ``cifar100``, ``imagefolder``, ``huggingface`` (a folder of its
    ``datasets``), or your own as ``package.module:name`` (see CONTRIBUTING)."""
    root: Path | None = None
    """Folder of the data set; ``imagefolder`` wants ``train/CLASS/`` and ``test/CLASS/`` (or ``val/``) in it; ``huggingface`` what
    ``save_to_disk`` wrote, or Parquet files as the hub has them."""
    download: bool = False
    """Fetch cifar10 or cifar100 into ``root`` when it is not there."""
    image_size: int | None = Field(None, gt=0, le=16_384)
    """Resize the shorter side to this many pixels and crop the centre (imagefolder, huggingface); unset: images must agree in size."""
    num_val: int = Field(300, ge=0, le=MOST)
    """Images held out for search scores, the same number of every class."""
    held_out: Literal["train", "val"] = "train"
    """Of which these are: training images, which only ``retrain`` and ``fit`` learn from then; or, where the data set has ``val`` beside
    ``test``, those of ``val`` (all, if it has no more), for whoever brings a network that was trained on all of ``train``."""
    pad: int = Field(0, ge=0, le=256)
    """Pixels of zero padding for random crops."""
    flip: bool = False
    """Random horizontal flips."""
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """Per channel, of images in 0..1: what is subtracted from them; unset: their own mean. Trained weights want
    those that they were trained with."""
    std: list[float] | None = None
    """Per channel, of images in 0..1: what they are divided by; unset: their own standard deviation."""
    resident_gib: float = Field(8.0, ge=0, le=MOST)
    """Data sets up to this size live on the device as one uint8 tensor; larger ones stay in a memory-mapped file."""
    streaming: bool | None = None
    """Decode and augment pictures while they are used, in worker processes, instead of decoding all of them once. Unset: where an
    augmentation below wants it, and for image folders that would be larger than the machine's memory."""
    resized_crop: tuple[float, float] | None = None
    """Random-resized crops of this smallest and largest share of the area, such as ``[0.08, 1]``; the result is of ``image_size``."""
    auto_augment: str | None = None
    """A policy: timm's ``rand-m9-mstd0.5`` (RandAugment), ``original`` or ``v0`` (AutoAugment), ``3a``, ``augmix-m3``; or ``trivial``
    (TrivialAugment)."""
    color_jitter: float = Field(0.0, ge=0, le=100)
    """Strength of random brightness, contrast and saturation."""
    erase: float = Field(0.0, ge=0, le=1)
    """Probability that a random rectangle is erased (takes the mean colour)."""
    cutout: int = Field(0, ge=0, le=16_384)
    """Side in pixels of a square that is made black at a random place."""
    mixup: float = Field(0.0, ge=0, le=1000)
    """Mixup: parameter of the Beta distribution; 0: none. Together with ``cutmix`` a coin decides for each batch."""
    cutmix: float = Field(0.0, ge=0, le=1000)
    """CutMix: parameter of the Beta distribution; 0: none."""
    repeats: int = Field(1, ge=1, le=1000)
    """Repeated augmentation: how often a picture comes in a batch, differently augmented each time."""
    crop_fraction: float = Field(1.0, gt=0, le=1)
    """Of streamed pictures that are not augmented: the central share of the sides that is used."""
    args: dict[str, Any] = {}
    """Settings of a data source of your own; of ``huggingface`` the names of its columns where there are several: ``{image: img, label:
    fine_label}``."""

    @model_validator(mode="after")
    def _fits_the_source(self) -> "DataConfig":
        if ":" in self.source:
            return self
        if self.source not in SOURCES:
            raise ValueError(f"the source must be one of {', '.join(map(repr, SOURCES))} or your own as package.module:name")
        fields = type(self).model_fields
        idle = [name for name, own in _SOURCES_WITH.items() if self.source not in own and getattr(self, name) != fields[name].default]
        if idle:
            raise ValueError(f"{idle[0]} does nothing with source={self.source}; leave it out")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()) or min(self.std or (1.0,)) <= 0:
            raise ValueError("mean and std go together: as many of one as of the other, all of std above 0")
        wants = self.wants_streaming
        if self.streaming is False and wants:
            raise ValueError(f"{wants} wants streaming; leave out streaming=false")
        if self.streaming is False and self.source == "huggingface":
            raise ValueError("source=huggingface is streamed; leave out streaming=false")
        if self.resized_crop is not None and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError("resized_crop is the smallest and the largest share of the area, such as [0.08, 1]")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Any) -> Any:
        """Without a setting that came later where it is what it was: trainings are known by these texts."""
        tree = handler(self)
        if tree.get("held_out") == "train":
            del tree["held_out"]
        return tree

    @property
    def wants_streaming(self) -> str:
        """The first setting that only streamed pictures have, or nothing."""
        defaults = type(self).model_fields
        return next((name for name in STREAMED if getattr(self, name) != defaults[name].default), "")


SOURCES = ("digits", "cifar10", "cifar100", "imagefolder", "huggingface")
STREAMED = ("resized_crop", "auto_augment", "color_jitter", "erase", "cutout", "mixup", "cutmix", "repeats", "crop_fraction")
_SOURCES_WITH = {
    "root": SOURCES[1:],
    "download": ("cifar10", "cifar100"),
    "image_size": ("imagefolder", "huggingface"),
    "held_out": ("imagefolder", "huggingface"),
    "args": ("huggingface",),
}


class ModelConfig(Section):
    """The plain network."""

    name: str = "digits/resnet"
    """``channel_bench/mobilenet``, ``channel_bench/resnet``, ``cifar/resnet20``, ``densenas/chain`` (with ``args: {net_config: ...}``),
    ``digits/resnet``, ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``."""
    pretrained: bool = False
    """Start the supernet from published weights: of timm or torchvision, or whatever a factory of your own with an argument
    ``pretrained`` loads. Retraining is from scratch all the same."""
    weights: Path | None = None
    """Start the supernet from trained weights of your own: a ``.pth``, ``.pt``, ``.th`` or ``.safetensors`` file."""
    args: dict[str, Any] = {}
    """Further keyword arguments of the factory; ``{cifar_stem: true}`` makes the stem of any network one for 32x32 images."""

    @property
    def is_trained(self) -> bool:
        """Whether the supernet starts from trained weights."""
        return self.pretrained or self.weights is not None

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights are two starts; give one of them")
        return self


class SpaceConfig(Section):
    """The width space."""

    bins: int = Field(4, ge=1, le=1000)
    """Equal bins K per group."""
    min_bins: int = Field(1, ge=1, le=1000)
    """Smallest width index k_min."""
    divisor: int | None = Field(None, gt=0, le=MOST)
    """Channel counts are multiples of it in every group whose full count is one. Unset: 8 for timm and torchvision models, whose
    narrower versions are to run fast somewhere, and 1 for others."""
    groups: dict[str, list[int]] = {}
    """Choices of single groups, by a pattern of layer names: ``{"blocks.*.conv1": [4, 8, 12, 16]}``; later patterns win."""
    exclude: list[str] = []
    """Patterns of layers whose groups stay whole."""
    importance: Literal["taylor", "l1", "bn", "off"] | None = None
    """By what the channels of every group are sorted when the supernet starts from trained weights: what the loss loses without one, to
    first order (``taylor``), kernels (``l1``), scales of batch norms (``bn``), or not at all (``off``). Unset: ``taylor``."""
    widen: float = Field(1.0, ge=1, le=16)
    """Make the supernet this many times as wide as the model: what is found at the model's own cost may then be wider than the model
    in some layers (AutoSlim: 1.5). Fractions of a cost mean the model as it was; lists in ``groups`` end with the widened counts."""


class RecipeConfig(Section):
    """How a network is trained: by default SGD with momentum, cosine schedule with linear warm-up."""

    # Fields that finished trainings may know nothing of: they trained with the defaults.
    newer: ClassVar[tuple[str, ...]] = (
        *("teacher", "optimizer", "optimizer_args", "schedule", "lr_floor", "step_epochs", "step_factor", "poly_power"),
        *("accumulate", "clip_mode", "layer_decay", "compile"),
    )

    epochs: float = Field(20, gt=0, le=MOST)
    """Passes over the training images; may be a fraction."""
    batch_size: int = Field(64, gt=0, le=MOST)
    """Images per step, over all processes together."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate."""
    warmup_epochs: float = Field(0.0, ge=0, le=MOST)
    """Epochs of linear warm-up."""
    schedule: Literal["cosine", "step", "poly", "one_cycle", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; ``one_cycle`` has a warm-up of its own."""
    lr_floor: float = Field(0.0, ge=0, lt=1)
    """Where ``cosine`` and ``poly`` end, as a share of the peak learning rate."""
    step_epochs: float = Field(30.0, ge=1e-3, le=MOST)
    """Epochs between two falls of ``step``."""
    step_factor: float = Field(0.1, gt=0, le=1)
    """Factor of a fall of ``step``."""
    poly_power: float = Field(1.0, gt=0, le=100)
    """Exponent of ``poly``; 1: linear."""
    optimizer: str = "sgd"
    """``sgd``, or any optimizer of timm: ``adamw``, ``lamb``, ``rmsprop``, ``muon``, ..."""
    optimizer_args: dict[str, Any] = {}
    """Further arguments of the optimizer, such as ``{betas: [0.9, 0.98]}``."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor of the learning rate from one layer to the one before it, for models whose layers timm can order."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD and of those like it."""
    nesterov: bool = False
    """Nesterov momentum, of ``sgd``."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty."""
    decay_norm_and_bias: bool = True
    """Whether the penalty also holds for BN parameters and biases."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest gradient norm; with another ``clip_mode`` its limit."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """What ``clip_norm`` limits: the norm of all gradients, every entry, or the norm of every unit relative to its weights' (AGC)."""
    accumulate: int = Field(1, ge=1, le=MOST)
    """Parts in which a batch is run, one after the other, where it does not fit into memory; BN sees them one by one."""
    compile: str | None = None
    """Backend of ``torch.compile`` for networks that are retrained, such as ``inductor``."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights, and use it in place of them afterwards, with BN statistics measured for it."""
    teacher: Literal["pretrained"] | None = None
    """Learn from the softmax of the model with its trained weights (``model.pretrained`` or ``model.weights``) instead of the labels."""

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "RecipeConfig":
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g} and epochs is {self.epochs:g}: the warm-up would never end")
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(f"nesterov does nothing with optimizer={self.optimizer}; leave it out, or take optimizer=sgd")
        return self

    def lasting(self, epochs: float) -> "RecipeConfig":
        """The same recipe over another number of epochs: warm-up and steps of the schedule keep their share of it."""
        share = epochs / self.epochs
        return self.model_copy(
            update={"epochs": epochs, "warmup_epochs": self.warmup_epochs * share, "step_epochs": self.step_epochs * share}
        )


class TrainConfig(RecipeConfig):
    """Training of the supernet."""

    strategy: Named = Named(name="bcnetv2_distilled")
    """Which subnets one step trains: ``uniform``, ``fair``, ``autoslim``, ``bcnet`` and ``bcnetv2`` as published, ``bcnet_distilled``,
    ``bcnetv2_distilled``, or your own as ``package.module:Class``; settings of a strategy stand under it."""
    switchable_norms: bool = False
    """Give every BN layer of the supernet scales and shifts of its own for every width (slimmable networks), instead of shared ones."""
    switchable_classifier: bool = False
    """Give the classifier weights of its own for every width of what it reads."""
    records: int = Field(1000, gt=0, le=MOST)
    """How many of the best (loss, widths) records are kept for the prior initial population."""

    @model_validator(mode="after")
    def _compiles_nothing(self) -> "TrainConfig":
        if self.compile is not None:
            raise ValueError("a supernet changes its shape at every pass and is not compiled; leave out compile here, retrain has it")
        return self


class ScoreConfig(Section):
    """How a subnet is scored."""

    metric: Annotated[str, BeforeValidator(lambda name: FORMER_METRICS.get(name, name) if isinstance(name, str) else name)] = "kl"
    """What is measured on the search-validation images: ``accuracy``, ``cross_entropy``, ``kl`` (how far the predictions are from
    those of the full width), or your own as ``package.module:name``. The score is its value or, where less is better, the negative."""
    additive: int | None = Field(None, gt=0, le=MOST)
    """Score this many random widths only, and any others by what each group's width is worth in those (an additive model)."""
    effects: Literal["smooth", "concave", "free"] = "smooth"
    """What the additive model may say of a group: ``concave``: its worth never falls with its channels, and each doubling adds no more
    than the one before; ``smooth``: the same, and nearly ``a log(channels) - b / channels``, from which it differs only as far as the
    scores insist; ``free``: anything."""
    statistics: Literal["calibrated", "batch"] = "calibrated"
    """Which BN statistics a subnet is scored with: those of training images, or of every batch of search-validation images."""
    calibration_images: int = Field(1024, gt=0, le=MOST)
    """Training images, not augmented, for the BN statistics of the subnet; the same ones for all."""
    max_images: int | None = Field(None, gt=0, le=MOST)
    """Use at most this many search-validation images."""
    batch_size: int = Field(256, gt=0, le=MOST)
    """Images per forward pass in calibration and evaluation."""
    memory_gib: float = Field(4.0, gt=0, le=MOST)
    """Memory for what width vectors share when many are scored; where it does not suffice, each is scored alone."""
    whole_layers: bool = False
    """Compute every layer at full width and let all width vectors use it: faster when much of a space is scored (1.6 times for all
    of Channel-Bench-Digits), slower for a few. Sums have another order, so scores differ in the last digits."""

    @property
    def shape(self) -> Literal["smooth", "concave"] | None:
        """What effects keep to; ``None`` if they are free."""
        return None if self.effects == "free" else self.effects


class SearchConfig(Section):
    """The search for a width vector."""

    algorithm: Named = Named(name="evolution")
    """``evolution`` (NSGA-II), ``greedy`` slimming (AutoSlim), ``random`` widths under the budgets as a baseline, or your own as
    ``package.module:Class``; settings of an algorithm stand under it: ``search.algorithm.population=60``."""
    evaluations: int = Field(400, gt=0, le=MOST)
    """Width vectors to score; a greedy descent scores as many as it needs."""
    cost: str | None = None
    """What scores are weighed against, in a Pareto front and per cost: ``flops``, ``params`` or a cost of ``costs``. Unset: the
    first budget's, or FLOPs."""
    short_trainings: int = Field(0, ge=0, le=MOST)
    """Train so many width vectors for a short time, from the supernet's weights, by the recipe of ``retrain``; what they reach on held-out
    images corrects the additive scores, and the one that is then expected to be the best is what the search finds. 0: scores alone
    decide. Wants ``score.additive``."""
    short_epochs: float = Field(0.25, gt=0, le=MOST)
    """Epochs of each of them."""


class BaseConfig(Section):
    """What every experiment has: a seed, a machine, images."""

    seed: int = Field(0, ge=0)
    """Of everything random: initial weights, split, order, augmentation, widths, search."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes the GPU when there is one."""
    workers: int | None = Field(None, ge=0, le=256)
    """Processes that decode and augment streamed pictures; unset: one per core, at most 8. They change no numbers."""
    threads: int | None = Field(None, gt=0, le=256)
    """CPU threads; unset: as many as torch likes. Small networks want 1: more threads only wait for each other."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Autocast to bf16, or to fp16, whose losses are scaled so that gradients do not vanish (for GPUs without bf16); ``auto``: bf16 where
    the hardware computes in it."""
    checkpoint_seconds: float = Field(60.0, gt=0, le=1e9)
    """Longest time between two checkpoints."""
    data: DataConfig = DataConfig()


class Config(BaseConfig):
    """A whole experiment."""

    model: ModelConfig = ModelConfig()
    space: SpaceConfig = SpaceConfig()
    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    search: SearchConfig = SearchConfig()
    retrain: RecipeConfig = RecipeConfig()
    watch: list[Literal["tensorboard", "wandb"]] = []
    """Where to show how a training goes, beside ``progress.csv`` in its folder."""
    watch_every: float | None = Field(None, ge=0, le=MOST)
    """Epochs of supernet training between two looks at the validation accuracy of the narrowest, a middle and the widest subnet; 0: none;
    unset: eight looks in all, where there are images held out, and two epochs apart at least. They change no numbers of the training."""
    costs: list[str] = []
    """Costs beside FLOPs and params that budgets may name, each as ``package.module:name`` or a file of ``bcnet latency``."""


_SettingsType = TypeVar("_SettingsType", bound=Section)
_SchemaType = TypeVar("_SchemaType", bound=Section)
_NAMED = ("train.strategy", "search.algorithm")
_FREE = ("groups", "args", "optimizer_args")  # whose keys are anything: ``{}`` empties what the base has


def check_settings(named: Named, schema: type[_SettingsType], where: str) -> _SettingsType:
    """The settings of something chosen by name, checked and complete.

    Raises:
        UserError: an unknown setting or a value of the wrong type.
    """
    try:
        return schema.model_validate(named.settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            valid = ", ".join(schema.model_fields) or "it has none"
            raise UserError(f"{where}.{key}: {named.name} has no such setting ({valid})") from error
        raise UserError(f"{where}.{key}: {shown(first['input'])} is wrong: {_lowered(first['msg'])}") from error


def complete(named: Named, shipped: Mapping[str, Any], where: str, kind: type[Any]) -> tuple[Any, Named]:
    """The class that a name means, and the name with all settings of that class.

    Raises:
        UserError: an unknown name or wrong settings.
    """
    chosen = find_by_name(named.name, shipped, where, kind)
    settings = check_settings(named, chosen.Settings, where)
    return chosen, Named.model_validate({"name": named.name} | settings.model_dump(mode="json"))


def load_config(name: str | Path, overrides: Sequence[str] = (), *, trust: bool | Collection[str] = False) -> Config:
    """Read a config file, its bases and the overrides.

    Args:
        name: a path, or the name of a shipped config such as ``digits/bcnetv2``.
        overrides: ``section.key=value``, the value in YAML.
        trust: whether the files may name code from outside bcnet, or which code; what overrides name may always be run.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value of the wrong type, or code that is not trusted.
    """
    path, strategy = find_config(name)
    return _read_and_check(validate_config, path, overrides, trust, strategy)


def load_as(
    schema: type[_SchemaType], name: str | Path, overrides: Sequence[str] = (), *, trust: bool | Collection[str] = False
) -> _SchemaType:
    """Read a config file of another schema than `Config`; arguments and mistakes as in `load_config`."""
    path, _ = find_config(name)
    return _read_and_check(partial(_validate, schema), path, overrides, trust)


def _read_and_check(
    check: Callable[[Any, str], _SchemaType],
    path: Path,
    overrides: Sequence[str],
    trust: bool | Collection[str],
    strategy: str | None = None,
) -> _SchemaType:
    """What is wrong is said of the overrides where the file alone is right."""
    tree = _read_with_overrides(path, overrides, trust, strategy)
    try:
        return check(tree, str(path))
    except UserError:
        if overrides and _is_right(lambda: check(_read_with_overrides(path, (), trust, strategy), str(path))):
            return check(tree, "settings")
        raise


def _is_right(read: Callable[[], object]) -> bool:
    try:
        read()
    except UserError:
        return False
    return True


def _read_with_overrides(
    path: Path, overrides: Sequence[str], trust: bool | Collection[str], strategy: str | None = None
) -> dict[str, Any]:
    tree = _read_tree(path, ())
    if strategy:
        _set(tree, "train.strategy", strategy)
    asked: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
        apply_override(asked, override)
    own = [name for _, name in named_code(asked)]
    refuse_untrusted(named_code(tree), path, trust is True or [*(trust or ()), *own])
    return tree


def read_overrides(overrides: Sequence[str]) -> Config:
    """The defaults with some overrides.

    Raises:
        UserError: as `load_config` does.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    return validate_config(tree, "settings")


def validate_config(tree: Any, where: str) -> Config:
    """Check a tree of plain values against the schema.

    Raises:
        UserError: naming the first offending key, its value and what would be right.
    """
    for key in _NAMED:
        section, _, leaf = key.partition(".")
        inner = tree.get(section) if isinstance(tree, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get(leaf), dict) and "name" not in inner[leaf]:
            inner[leaf] = {"name": getattr(getattr(Config(), section), leaf).name} | inner[leaf]
    return _validate(Config, tree, where)


def _validate(schema: type[_SchemaType], tree: Any, where: str) -> _SchemaType:
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error.errors()[0], schema)}") from error


def dump_config(config: Section) -> str:
    """The resolved config as YAML, every field included."""
    return dump_yaml(config.model_dump(mode="json"))


def differing_keys(one: Section, other: Section) -> list[str]:
    """Dotted names of the fields in which two configs differ."""
    a, b = (dict(_leaves(config.model_dump(mode="json"), "")) for config in (one, other))
    return [key for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]]


def shipped_configs() -> list[str]:
    """Names of the shipped configs."""
    folder = shipped("configs")
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(("study/", "dense/")))  # lists of experiments; another schema


def find_config(name: str | Path) -> tuple[Path, str | None]:
    """The file for a path or the name of a shipped config, and the strategy that the name carries.

    ``channel_bench/mobilenet_autoslim`` is the shipped ``channel_bench/mobilenet`` with ``train.strategy=autoslim``.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    if is_file(path):
        return path, None
    asked = str(name).removesuffix(".yaml").removeprefix("configs/").replace("_taught", "_distilled")  # as 0.1 called the recipe
    exact = shipped("configs") / f"{asked}.yaml"
    if is_file(exact):
        return exact, None
    base = max((known for known in shipped_configs() if asked.startswith(f"{known}_")), key=len, default=None)
    if base is not None:
        return shipped("configs") / f"{base}.yaml", asked.removeprefix(f"{base}_")
    raise UserError(f"config {shown(str(name))}: no such file, and no shipped config of that name ({', '.join(shipped_configs())})")


def read_yaml(path: Path) -> Any:
    """The tree of a YAML file.

    Raises:
        UserError: missing, or not YAML as `bcnet.trees.parse_yaml` reads it.
    """
    text = read_text(path, "a config")
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not a YAML file: {error}") from error
    return {} if tree is None else tree


def _read_tree(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"{path}: its base files form a circle")
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path}: expected a mapping of sections such as 'train:', found {shown(tree)}")
    tree = read_former_config(tree)
    base = tree.pop("base", None)
    if base is None:
        return tree
    base_path = path.parent / str(base)
    if not is_file(base_path):
        base_path = shipped("configs") / f"{str(base).removesuffix('.yaml')}.yaml"
    if not is_file(base_path):
        raise UserError(f"{path}: its base {shown(base)} does not exist (looked for it beside this file and among the shipped configs)")
    return _merge(_read_tree(base_path, (*above, path.resolve())), tree)


def _merge(base: dict[str, Any], top: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        merged[key] = _merged_value(merged.get(key), value, f"{prefix}{key}")
    return merged


def _merged_value(old: Any, new: Any, key: str) -> Any:
    if key in _NAMED and isinstance(new, dict):
        old = {"name": old} if isinstance(old, str) else old
        if isinstance(old, dict) and new.get("name", old.get("name")) == old.get("name"):
            return old | new  # settings of the same one; another one starts from its own defaults
        return new
    is_emptied = new == {} and key.rpartition(".")[2] in _FREE
    return _merge(old, new, f"{key}.") if isinstance(old, dict) and isinstance(new, dict) and not is_emptied else new


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set what ``section.key=value`` says in a tree of plain values.

    Raises:
        UserError: it has another form.
    """
    if not _is_text(override):
        raise UserError(f"override {shown(override)} is not in UTF-8")
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {shown(override)} is not KEY=VALUE, e.g. train.epochs=5")
    if key in FORMER_HINTS:
        raise UserError(f"{key}: {FORMER_HINTS[key]}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"override {shown(override)}: the value is not YAML ({error})") from error
    _set(tree, FORMER_KEYS.get(key, key), value)


def _is_text(words: str) -> bool:
    """Whether words of the command line are text; bytes that are none stand in them as surrogates."""
    return words.encode(errors="replace").decode() == words


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for depth, section in enumerate(sections, start=1):
        inner = tree.setdefault(section, {})
        if isinstance(inner, str) and ".".join(sections[:depth]) in _NAMED:
            inner = tree[section] = {"name": inner}
        if not isinstance(inner, dict):
            raise UserError(f"override {key}: {section!r} is a value, not a section")
        tree = inner
    tree[leaf] = value if sections else _merged_value(tree.get(leaf), value, leaf)  # of a whole section: what it names


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


def _explain(error: Any, schema: type[BaseModel]) -> str:
    key = ".".join(map(str, error["loc"]))
    if key in FORMER_HINTS:
        return f"{key}: {FORMER_HINTS[key]}"
    if error["type"] == "value_error":  # between the fields of a section
        return f"{key}: {_lowered(error['msg'].removeprefix('Value error, '))}".removeprefix(": ")
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] != "extra_forbidden":
        return f"{key}: {shown(error['input'])} is wrong: {_lowered(error['msg'])}"
    valid = list(_valid_keys(schema))
    siblings = [name for name in valid if name.rpartition(".")[0] == key.rpartition(".")[0]]
    near = difflib.get_close_matches(key, siblings, 1, 0.6) or [v for v in valid if v.endswith("." + key.rpartition(".")[2])][:1]
    hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(siblings) or 'nothing'}"
    return f"unknown key {key!r}; {hint}"


def _lowered(message: str) -> str:
    return message[0].lower() + message[1:]
