"""The parts of an experiment, each built from the config when it is first used."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bcnet.config import BaseConfig, Config, RecipeConfig, complete
from bcnet.data.interfaces import DataSet, EvalSource, Part
from bcnet.data.load import load_data
from bcnet.errors import UserError, first_line
from bcnet.kernels import status
from bcnet.latency.table import Measured, load_latency
from bcnet.machine import environment, half_type, resolve_device
from bcnet.models.copying import copy_network
from bcnet.models.factory import build_model, check_logits, default_divisor
from bcnet.models.layout import keep_contiguous, needs_contiguous
from bcnet.models.weights import load_weights
from bcnet.plugins import find_by_name, import_object
from bcnet.progress import ProgressBar, notice
from bcnet.scoring.additive import WidthEffects, least_sample
from bcnet.scoring.cache import ScoreCache
from bcnet.scoring.evaluate import Evaluation, evaluate
from bcnet.scoring.metrics import METRICS, SQUARED_CROSS_ENTROPY, Metric
from bcnet.scoring.scorer import Scorer
from bcnet.search import SEARCH_ALGORITHMS, SearchAlgorithm, SearchProblem, SearchResult
from bcnet.search.predicted import best_predicted
from bcnet.search.short_training import ShortTraining, choose, most_important, search_by_training
from bcnet.seeds import STREAM_MODEL, STREAM_SAMPLE, STREAM_SEARCH, derive_seed
from bcnet.space.cost import Budget, Cost, CostTable, parse_budgets, widest
from bcnet.space.sampling import balanced_sample, spread_sample
from bcnet.space.widths import Space, Widths
from bcnet.supernet.calibrate import calibrate, undisturbed
from bcnet.supernet.importance import channel_importance
from bcnet.supernet.order import sort_channels
from bcnet.supernet.proof import trace, trace_for_channels
from bcnet.supernet.supernet import Supernet, narrow, set_active_channels
from bcnet.supernet.switchable import SwitchableNetwork
from bcnet.supernet.widen import widen
from bcnet.training.records import LossRecords
from bcnet.training.strategies import STRATEGIES, Strategy
from bcnet.training.strategies.base import Pass
from bcnet.training.train_width import settle_norms, train_width
from bcnet.training.trainer import Trainer
from bcnet.training.watch import make_watchers

LOOKED_AT = ("narrowest_accuracy", "middle_accuracy", "widest_accuracy")
LOOKS = 8  # in a training, unless the config says otherwise
LOOK_IMAGES = 1000  # at most, for BN statistics and for accuracies
COLUMNS = ("loss", "lr", "images_per_second", "gpu_gib", *LOOKED_AT)
IMPORTANCE_IMAGES = 2048  # training images, not augmented, by which channels are ranked


class Resources:
    """The machine and the images that a config asks for.

    Args:
        config: the settings.
    """

    def __init__(self, config: BaseConfig) -> None:
        self._base = config
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        return resolve_device(self._base.device)

    @property
    def half(self) -> torch.dtype | None:
        """What to autocast to; unset: not at all."""
        return half_type(self._base.amp, self.device)

    def environment(self) -> dict[str, Any]:
        """Versions, commit and hardware, and whether the compiled kernels are on."""
        return environment(self.device) | {"kernels": status() if self.device.type == "cpu" else "for the CPU only"}

    @cached_property
    def data(self) -> DataSet:
        """The images."""
        return load_data(self._base.data, self._base.seed, self.device, self._base.workers)


class Experiment(Resources):
    """Data, model, space, trainer and scorer of a config; it has no folder and writes nothing by itself.

    Args:
        config: the settings. What is chosen by name in it is found here, and its settings are completed.

    Raises:
        UserError: a strategy, metric or search algorithm that does not exist, or has no such settings.
    """

    def __init__(self, config: Config) -> None:
        self._strategy, strategy = complete(config.train.strategy, STRATEGIES, "train.strategy", Strategy)
        self._algorithm, algorithm = complete(config.search.algorithm, SEARCH_ALGORITHMS, "search.algorithm", SearchAlgorithm)
        self.metric: Metric = find_by_name(config.score.metric, METRICS, "score.metric", Metric)
        train = config.train.model_copy(update={"strategy": strategy})
        search = config.search.model_copy(update={"algorithm": algorithm})
        self.config = config.model_copy(update={"train": train, "search": search})
        _refuse_without_weights(config)
        self._needs_contiguous: bool | None = None  # asked of the first model that is built
        super().__init__(config)

    # Model ------------------------------------------------------------------------------------------------------------

    def build_model(self, seed: int, *, pretrained: bool = False) -> nn.Module:
        """The plain model, freshly initialised or with trained weights; widened where the config says so."""
        chosen, space = self.config.model, self.config.space
        model = build_model(chosen.name, len(self.data.classes), seed=seed, pretrained=pretrained and chosen.pretrained, args=chosen.args)
        if pretrained and chosen.weights is not None:
            load_weights(model, chosen.weights, chosen.name)
        if self.model_space is not None:
            model = widen(model, self.model_space, space.widen, divisor=space.divisor)
        if self._needs_contiguous is None:
            check_logits(model, self.data.input_shape, len(self.data.classes), chosen.name)
            self._needs_contiguous = needs_contiguous(model, self.data.input_shape)
        if self._needs_contiguous:
            keep_contiguous(model)
        return model

    @cached_property
    def model(self) -> nn.Module:
        """The plain model that the supernet is made from."""
        return self.build_model(derive_seed(self.config.seed, STREAM_MODEL), pretrained=True)

    @cached_property
    def start(self) -> nn.Module:
        """What the supernet starts from: the model, its channels sorted by importance if its weights are trained."""
        criterion = self.config.space.importance or "taylor"
        if not self.config.model.is_trained or criterion == "off":
            return self.model
        batches = self.data.eval_batches("train", self.config.score.batch_size, IMPORTANCE_IMAGES) if criterion == "taylor" else ()
        importance = channel_importance(self.model, self.space, criterion, batches, self.device)
        # A wide supernet has copies of the first channels at its other end; there, both ends in turn did worse on digits (0.53 and 0.58
        # mean accuracy of the left and right subnets after 4 epochs, against 0.60 and 0.58).
        both_ends = len(self.strategy.sides) > 1 and not self.strategy.wide
        return sort_channels(self.model, self.space, importance, self.data.input_shape, both_ends=both_ends)

    # Space and costs -------------------------------------------------------------------------------------------------

    @cached_property
    def model_space(self) -> Space | None:
        """Of a model that is widened: the space of the model as it was."""
        if self.config.space.widen == 1:
            return None
        chosen = self.config.model
        model = build_model(chosen.name, len(self.data.classes), seed=derive_seed(self.config.seed, STREAM_MODEL), args=chosen.args)
        return trace_for_channels(model, self.data.input_shape, exclude=self.config.space.exclude)

    @cached_property
    def space(self) -> Space:
        """The width space of the model, proven to slice right."""
        chosen = self.config.space
        return trace(
            self.model,
            self.data.input_shape,
            bins=chosen.bins,
            min_bins=chosen.min_bins,
            divisor=chosen.divisor,
            choices=chosen.groups,
            exclude=chosen.exclude,
        )

    @cached_property
    def costs(self) -> CostTable:
        """FLOPs, params and the costs that the config adds."""
        chosen = self.config.model
        of = Measured(chosen.name, len(self.data.classes), self.data.input_shape, chosen.args)
        return CostTable(self.space, [load_cost(name, self.space, of) for name in self.config.costs], self.model_space)

    def uniform_channels(self, flops: float) -> tuple[int, ...]:
        """Channels of the model scaled by one factor, filled up to ``flops``; no wider than the supernet.

        The factor is the largest at which rounded channel counts keep within ``flops``. What rounding leaves over goes to the groups
        that are narrowest beside the factor, a unit each, until no unit fits.
        """
        groups = list(zip(self.space.groups, self.costs.model_channels, strict=True))

        def scaled(factor: float) -> tuple[int, ...]:
            return tuple(min(g.channels, g.unit * max(1, int(factor * own / g.unit + 0.5))) for g, own in groups)

        low, high = 0.0, self.config.space.widen
        if self.costs.of_channels(scaled(high), "flops") <= flops:
            return scaled(high)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.costs.of_channels(scaled(middle), "flops") <= flops else (low, middle)
        filled, places = list(scaled(low)), list(range(len(groups)))
        while places:
            place = min(places, key=lambda p: filled[p] / groups[p][1])
            wider = [*filled[:place], filled[place] + groups[place][0].unit, *filled[place + 1 :]]
            if wider[place] <= groups[place][0].channels and self.costs.of_channels(wider, "flops") <= flops:
                filled = wider
            else:
                places.remove(place)
        return tuple(filled)

    def random_widths(self, flops: float, count: int) -> list[Widths]:
        """Different random width vectors that use 95 to 100 % of ``flops``; where there are too few of these, the costliest within."""
        rng = np.random.default_rng(derive_seed(self.config.seed, STREAM_SAMPLE, 1))
        drawn = spread_sample(self.space, 400 * count, rng) if count else []
        costs = {widths: self.costs.one(widths, "flops") for widths in drawn}
        within = [widths for widths in drawn if costs[widths] <= flops]
        near = [widths for widths in within if costs[widths] >= 0.95 * flops]
        if len(near) < count:
            return sorted(within, key=lambda widths: -costs[widths])[:count]
        return [near[place] for place in rng.choice(len(near), count, replace=False)]

    # Training --------------------------------------------------------------------------------------------------------

    @cached_property
    def strategy(self) -> Strategy:
        """How the supernet is trained."""
        settings = self._strategy.Settings.model_validate(self.config.train.strategy.settings)
        strategy: Strategy = self._strategy(self.space, self.config.seed, settings)
        return strategy

    def make_trainer(self, checkpoint: Path | None = None, identity: str = "", *, watched: bool = False) -> Trainer:
        """A trainer of a fresh supernet.

        Args:
            checkpoint: file to save to and resume from; unset: neither.
            identity: a string that the checkpoint must carry to be continued.
            watched: write how it goes beside the checkpoint.
        """
        config = self.config
        batches = self.data.train_batches("train", config.train.batch_size, config.seed)
        if config.watch_every:
            self.validation  # noqa: B018  where there is none, that is said now
        look_epochs = self._epochs_between_looks()
        is_begun = checkpoint is not None and checkpoint.exists()  # then its weights come from there, and nothing need be sorted
        supernet = Supernet(
            self.model if is_begun else self.start,
            self.space,
            wide=self.strategy.wide,
            seed=derive_seed(config.seed, STREAM_MODEL, 1),
            wrap=config.model.is_trained,
            switchable_norms=config.train.switchable_norms,
            switchable_classifier=config.train.switchable_classifier,
        )
        return Trainer(
            supernet,
            batches,
            config.train,
            device=self.device,
            half=self.half,
            seed=config.seed,
            passes=self.strategy.passes,
            records=LossRecords(config.train.records),
            checkpoint=checkpoint,
            checkpoint_seconds=config.checkpoint_seconds,
            identity=identity,
            label=f"supernet {config.train.strategy.name}",
            teacher=self.teacher(config.train),
            watchers=make_watchers(checkpoint.parent, config.watch, COLUMNS) if watched and checkpoint is not None else (),
            look=self.look if look_epochs else None,
            look_steps=max(1, round(look_epochs * batches.steps_per_epoch)),
        )

    def _epochs_between_looks(self) -> float:
        every = self.config.watch_every
        if every is None:
            return max(2.0, self.config.train.epochs / LOOKS) if self.data.num_images("val") else 0.0
        return every

    def look(self, supernet: nn.Module) -> dict[str, float]:
        """Validation accuracy of the narrowest, a middle and the widest subnet on the left, 0..1; the supernet stays as it was."""
        assert isinstance(supernet, Supernet)
        space = self.space
        middle = tuple((group.smallest + group.bins) // 2 for group in space.groups)
        batch_size, most = self.config.score.batch_size, self.config.score.max_images or LOOK_IMAGES
        calibration = self.data.eval_batches("train", batch_size, min(LOOK_IMAGES, self.config.score.calibration_images))
        validation = self.data.eval_batches("val", batch_size, min(LOOK_IMAGES, most))
        accuracies = {}
        with undisturbed(supernet):
            for name, widths in zip(LOOKED_AT, (space.narrowest, middle, space.full), strict=True):
                supernet.set_active_subnet(widths, "left")
                calibrate(supernet, calibration, half=self.half)
                accuracies[name] = evaluate(supernet, validation, half=self.half)["accuracy"]
        if accuracies[LOOKED_AT[0]] < 1.5 / len(self.data.classes) <= accuracies[LOOKED_AT[2]] / 2:
            notice("the narrowest subnet learns nothing: a larger space.min_bins, or a smaller train.lr, may help")
        return accuracies

    def teacher(self, recipe: RecipeConfig) -> nn.Module | None:
        """The trained model, if a recipe wants to learn from it."""
        return self.model if recipe.teacher == "pretrained" else None

    def inherited(self, supernet: Supernet, channels: Sequence[int]) -> nn.Module:
        """A plain network with the supernet's weights of the left side, BN statistics calibrated.

        Args:
            supernet: trained; its active subnet stays what it was.
            channels: of every group; they need not be choices.
        """
        before = supernet.active
        set_active_channels(supernet.net, channels, "left")
        try:
            calibrate(supernet, self.calibration, half=self.half)
            return supernet.get_active_subnet()
        finally:
            supernet.set_active_subnet(*before)

    def train_width(
        self,
        channels: Sequence[int],
        seeds: Sequence[int],
        *,
        start: nn.Module | None = None,
        recipe: RecipeConfig | None = None,
        part: Part = "full_train",
        **options: Any,
    ) -> list[nn.Module]:
        """Train networks of the given channels per group on all training images, from scratch unless told otherwise.

        Args:
            channels: of every group.
            seeds: one network each.
            start: a network of these channels, from whose weights every one starts.
            recipe: unset: that of ``retrain``.
            part: of the images.
            options: ``checkpoint``, ``identity`` and ``label`` of a training that is to be resumed.

        Returns:
            What `bcnet.training.train_width.train_width` does.
        """
        recipe = recipe or self.config.retrain

        def first(seed: int) -> nn.Module:
            if start is not None:
                return copy_network(start)
            return narrow(self.build_model(derive_seed(seed, STREAM_MODEL)), self.space, channels)

        return train_width(
            [first(seed) for seed in seeds],
            [self.data.train_batches(part, recipe.batch_size, seed) for seed in seeds],
            recipe,
            seeds=seeds,
            input_shape=self.data.input_shape,
            device=self.device,
            half=self.half,
            teacher=self.teacher(recipe),
            **options,
        )

    def train_together(self, widths: Sequence[Widths], seed: int, **options: Any) -> list[nn.Module]:
        """Train several width vectors from scratch as one network with batch norms of their own, on all training images.

        Args:
            widths: all different.
            seed: of the network.
            options: ``checkpoint``, ``identity`` and ``label`` of a training that is to be resumed.

        Returns:
            A plain network per width vector.
        """
        recipe = self.config.retrain
        if recipe.layer_decay is not None:
            raise UserError("retrain.layer_decay: timm orders only layers of its own networks; train widths one by one, or leave it out")
        batches = self.data.train_batches("full_train", recipe.batch_size, seed)
        trainer = Trainer(
            SwitchableNetwork(self.build_model(derive_seed(seed, STREAM_MODEL)), self.space, widths),
            batches,
            recipe,
            device=self.device,
            half=self.half,
            seed=seed,
            passes=lambda step: [Pass(one) for one in widths],
            teacher=self.teacher(recipe),
            **options,
        )
        trainer.resume()
        trainer.run()
        trained = trainer.trained
        assert isinstance(trained, SwitchableNetwork)
        networks = trained.split()
        for network in networks if recipe.ema_decay is not None else ():
            settle_norms(network, batches, self.half)
        return networks

    # Scoring and search ----------------------------------------------------------------------------------------------

    @cached_property
    def calibration(self) -> EvalSource:
        """Training images for BN statistics."""
        score = self.config.score
        return self.data.eval_batches("train", score.batch_size, score.calibration_images)

    @cached_property
    def validation(self) -> EvalSource:
        """Held-out images for scores."""
        self._check_held_out()
        return self.data.eval_batches("val", self.config.score.batch_size, self.config.score.max_images)

    @property
    def test(self) -> EvalSource:
        """Test images, which only finished networks see."""
        return self.data.eval_batches("test", self.config.score.batch_size)

    def make_scorer(
        self, supernet: Supernet, cache: ScoreCache | None = None, *, images: tuple[EvalSource, EvalSource] | None = None
    ) -> Scorer:
        """A scorer of a trained supernet; ``images`` to calibrate and to evaluate on, unless they are the experiment's own."""
        score = self.config.score
        calibration, validation = images or (self.calibration, self.validation)
        return Scorer(
            supernet,
            calibration,
            validation,
            sides=self.strategy.sides,
            metric=self.metric,
            half=self.half,
            memory_gib=score.memory_gib,
            whole_layers=score.whole_layers,
            sample=self._additive_sample(),
            batch_statistics=score.statistics == "batch",
            shape=score.shape,
            cache=cache,
        )

    def _additive_sample(self) -> list[Widths]:
        self._check_additive()
        count = self.config.score.additive
        return [] if count is None else balanced_sample(self.space, count, derive_seed(self.config.seed, STREAM_SAMPLE))

    def check_scoring(self) -> None:
        """Raise if scores and searches could not be what the config says: no images held out, too few scored, no such cost."""
        self._check_held_out()
        self._check_additive()
        self._check_weighed()

    def _check_held_out(self) -> None:
        if not self.data.num_images("val"):
            raise UserError("data.num_val is 0: scores need training images held out for them")

    def _check_weighed(self) -> None:
        weighed, known = self.config.search.cost, self.costs.names  # which reads tables of costs
        if weighed and weighed not in known:
            raise UserError(f"search.cost: {weighed!r} is none of {', '.join(known)}")

    def _check_additive(self) -> None:
        count, groups = self.config.score.additive, self.space.groups
        if count is None:
            return
        choices = [len(group.choices) for group in groups]
        least = least_sample(groups, self.config.score.shape)
        if count < least:
            each = str(choices[0]) if len(set(choices)) == 1 else f"{min(choices)} to {max(choices)}"
            raise UserError(f"score.additive is {count}: {len(groups)} groups of {each} widths each need at least {least} scored ones")

    @property
    def num_scored(self) -> int:
        """How many width vectors a search evaluates at most."""
        return self.config.score.additive or self._algorithm.most_scored(self.space, self.config.search.evaluations)

    def parse_budgets(self, texts: Sequence[str]) -> tuple[Budget, ...]:
        """Budgets such as ``flops=0.5``; several of one cost are for an algorithm that passes one after the other.

        Raises:
            UserError: one cannot be read or met, or two of one cost must hold together.
        """
        return parse_budgets(texts, self.costs, passed=self.passes_budgets)

    def describe_images(self) -> dict[str, Any]:
        """How a network wants its images: what stands in the description of each that is written."""
        data = self.data
        normalised = {"input_shape": list(data.input_shape), "mean": list(data.mean), "std": list(data.std)}
        return normalised | {"crop_fraction": self.config.data.crop_fraction, "classes": list(data.classes)}

    @property
    def passes_budgets(self) -> bool:
        """Whether the search passes one budget after the other, and knows the best within each alone."""
        passes: bool = self._algorithm.passes_budgets
        return passes

    def search(self, scorer: Scorer, budgets: Sequence[Budget], records: LossRecords | None) -> SearchResult:
        """Search as the config says.

        Args:
            scorer: of a trained supernet.
            budgets: all of which the result keeps.
            records: of the training.
        """
        evaluations = self.config.search.evaluations
        most = scorer.most_evaluations(self._algorithm.most_scored(self.space, evaluations))
        seed = derive_seed(self.config.seed, STREAM_SEARCH) % 2**32
        known = records.sorted() if records is not None else []
        self._check_weighed()
        weighed = self.config.search.cost or ""
        settings = self._algorithm.Settings.model_validate(self.config.search.algorithm.settings)
        with ProgressBar(f"search, at most {most} to evaluate", most) as bar:
            score_many = partial(scorer.score_many, shown=bar)
            problem = SearchProblem(self.space, self.costs, score_many, evaluations, tuple(budgets), seed, known, weighed)
            result: SearchResult = self._algorithm.search(problem, settings, np.random.default_rng(seed))
        return result

    def check_short_trainings(self, budgets: Sequence[Budget]) -> None:
        """Raise if trainings are asked for that could not correct scores."""
        score = self.config.score
        if not self.config.search.short_trainings:
            return
        if not score.additive or not score.shape:
            raise UserError("search.short_trainings correct an additive model: they want score.additive=N and score.effects=smooth")
        if not budgets:
            raise UserError("search.short_trainings want a budget: without one the full width is the best")
        if len({budget.cost for budget in budgets}) < len(budgets):
            raise UserError("search.short_trainings are for budgets that hold together; search each of these by itself")

    def search_by_training(
        self, scorer: Scorer, best: Widths, budgets: Sequence[Budget], train: Callable[[Widths], Evaluation]
    ) -> tuple[list[ShortTraining], Widths]:
        """Train some width vectors for a short time, as ``search.short_trainings`` says; see `bcnet.search.short_training`.

        Args:
            scorer: of a trained supernet.
            best: what its scores alone have found.
            budgets: all of which hold.
            train: trains one.

        Returns:
            What was trained, in order, and which of it is expected to be the best.
        """

        def best_of(model: WidthEffects) -> Widths:
            return best_predicted(self.costs, budgets, model.predict, self.config.seed)

        first = [("score", best), ("uniform", widest(self.costs, budgets, self.space.uniform))]
        if self.config.model.is_trained:
            importance = channel_importance(self.model, self.space, "l1")
            first.append(("importance", widest(self.costs, budgets, partial(most_important, self.space, importance))))
        rng = np.random.default_rng(derive_seed(self.config.seed, STREAM_SEARCH, 1))
        count = self.config.search.short_trainings
        effects, groups = scorer.effects(), self.space.groups
        trained = search_by_training(effects, groups, first=first, best_of=best_of, train=train, count=count, rng=rng)
        return trained, choose(effects, groups, trained).widths

    @property
    def short_steps(self) -> int:
        """Steps of a short training."""
        batches = self.data.train_batches("train", self.config.retrain.batch_size, self.config.seed)
        return max(1, round(self.config.search.short_epochs * batches.steps_per_epoch))

    def train_shortly(self, supernet: Supernet, widths: Widths, **options: Any) -> Evaluation:
        """What a width vector reaches on the images held out from training, trained for a short time from the supernet's weights.

        Returns its accuracy, its cross-entropy and the standard error of that.

        Args:
            supernet: trained.
            widths: its width vector.
            options: ``checkpoint``, ``identity`` and ``label`` of the training.
        """
        channels, epochs = self.space.channels(widths), self.config.search.short_epochs
        recipe = self.config.retrain.lasting(epochs)
        start = self.inherited(supernet, channels)
        (network,) = self.train_width(channels, [self.config.seed], start=start, recipe=recipe, part="train", **options)
        metrics = (METRICS["accuracy"], METRICS["cross_entropy"], SQUARED_CROSS_ENTROPY)
        reached = evaluate(network, self.data.eval_batches("val", self.config.score.batch_size), metrics=metrics, half=self.half)
        variance = reached.pop(SQUARED_CROSS_ENTROPY.name) - reached["cross_entropy"] ** 2
        return reached | {"error": (max(0.0, variance) / self.data.num_images("val")) ** 0.5}


def _refuse_without_weights(config: Config) -> None:
    """Refuse what wants trained weights where there are none, and the other way round."""
    if config.space.widen > 1 and config.model.is_trained:
        raise UserError(
            "space.widen: trained weights are of the model's own widths; leave out model.pretrained and model.weights, or widen"
        )
    if config.model.is_trained:
        return
    if config.space.importance is not None:
        raise UserError(
            "space.importance sorts the channels of trained weights: give model.pretrained=true or model.weights=FILE, or leave it out"
        )
    for name in ("train", "retrain"):
        if getattr(config, name).teacher is not None:
            raise UserError(f"{name}.teacher=pretrained wants trained weights: give model.pretrained=true or model.weights=FILE")


def with_divisor(config: Config, divisor: int | None = None) -> Config:
    """A config that says what channel counts are multiples of; by default what suits the model."""
    if config.space.divisor is not None:
        return config
    space = config.space.model_copy(update={"divisor": divisor or default_divisor(config.model.name)})
    return config.model_copy(update={"space": space})


def load_cost(name: str, space: Space, of: Measured | None = None) -> Cost:
    """A cost of one's own: ``package.module:name`` is called with the space and gives a `Cost`; a file of ``bcnet latency`` is one.

    Args:
        name: such as ``mypackage.costs:energy``, or a path that ends with ``.json``.
        space: of the model.
        of: the model, which must be that of the file.

    Raises:
        UserError: it cannot be imported or gives something else; or the file is none, or of another network.
    """
    if name.endswith(".json"):
        return load_latency(Path(name), space, of)
    try:
        cost = import_object(name, "cost")(space)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cost {name!r} could not be made for this space: {first_line(error)}") from error
    if not isinstance(cost, Cost):
        raise UserError(f"cost {name!r} gives no bcnet.space.cost.Cost but {type(cost).__name__}")
    return cost
