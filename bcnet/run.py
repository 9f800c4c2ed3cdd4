"""A run directory: one config, one supernet, and everything made from it.

config.yaml        the resolved config        environment.json  versions, commit, hardware
checkpoint.pt      the training's state       scores/           evaluated width vectors, one file per setting
search.json        what the search found      retrain/          networks trained from scratch
*.png, index.html  pictures of it all
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from bcnet.config import Config, differing_keys, dump_config, load_config
from bcnet.data.batches import Data, EvalBatches, Normalize, TrainBatches, load_data
from bcnet.data.sources import ImageSet
from bcnet.errors import UserError
from bcnet.files import read_json, write_json, write_text
from bcnet.models.factory import build_model
from bcnet.runtime import STREAM_MODEL, STREAM_SAMPLE, STREAM_SEARCH, derive_seed, environment, rank, resolve_device, use_bf16, world_size
from bcnet.search.effects import LEAST_PER_UNKNOWN, balanced_sample
from bcnet.search.evaluate import evaluate
from bcnet.search.scorer import LARGE_PART, ScoreCache, Scorer
from bcnet.space.cost import Budget, CostTable
from bcnet.space.trace import trace
from bcnet.space.widths import Space, Widths
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.extract import save_network
from bcnet.supernet.proof import prove
from bcnet.supernet.supernet import Supernet, narrow
from bcnet.training.records import LossRecords
from bcnet.training.strategies import Strategy, make_strategy
from bcnet.training.trainer import Trainer

# Sections that decide what the supernet is; the others may be changed for each command on a run.
_FIXED_SECTIONS = ("seed", "data", "model", "space", "train")


class Run:
    """A run directory.

    Args:
        folder: the directory.
        config: its config, maybe with other settings of scoring, search and retraining.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    @classmethod
    def create(cls, folder: Path, config: Config, *, resume: bool = False) -> "Run":
        """Start a run, or continue one with the same config.

        Raises:
            UserError: the directory holds a run already and ``resume`` was not asked for, or its config is another.
        """
        run = cls(folder, config)
        if rank() != 0:
            return run
        written = folder / "config.yaml"
        if written.exists():
            if not resume:
                raise UserError(f"{folder} already holds a run; add --resume to continue it, or choose another --out")
            _refuse_changes(folder, load_config(written), config)
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} exists, is not empty and is not a run; choose another --out")
        run.trainer  # noqa: B018  what cannot be trained (device, data, model, batch size) is refused before anything is written
        write_text(written, dump_config(config))
        write_json(folder / "environment.json", {"seed": config.seed} | environment(run.device))
        return run

    @classmethod
    def open(cls, folder: Path, overrides: Sequence[str] = ()) -> "Run":
        """Open a run that was trained.

        Args:
            folder: the directory.
            overrides: other settings, such as ``score.metric=neg_cross_entropy`` or ``device=cpu``.

        Raises:
            UserError: not a run, or an override of what the supernet was trained with.
        """
        written = folder / "config.yaml"
        if not written.is_file():
            raise UserError(f"{folder}: not a run directory (no config.yaml in it); train first: bcnet train CONFIG --out {folder}")
        config = load_config(written, overrides)
        _refuse_changes(folder, load_config(written), config)
        return cls(folder, config)

    # The parts of an experiment, each built when first used ---------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        return resolve_device(self.config.device)

    @property
    def bf16(self) -> bool:
        """Whether to autocast to bf16."""
        return use_bf16(self.config.amp, self.device)

    @cached_property
    def data(self) -> Data:
        """The images."""
        return load_data(self.config.data, self.config.seed, self.device)

    @cached_property
    def normalize(self) -> Normalize:
        """From images to network inputs."""
        return Normalize(self.data, self.device)

    def build_model(self, seed: int) -> nn.Module:
        """The plain model, freshly initialised (or pretrained)."""
        model = self.config.model
        return build_model(model.name, len(self.data.classes), seed=seed, pretrained=model.pretrained, args=model.args)

    @cached_property
    def model(self) -> nn.Module:
        """The plain model that the supernet is made from."""
        return self.build_model(derive_seed(self.config.seed, STREAM_MODEL))

    @cached_property
    def space(self) -> Space:
        """The width space of the model, proven to slice right."""
        chosen = self.config.space
        shape = self.data.input_shape
        space = trace(self.model, shape, bins=chosen.bins, min_bins=chosen.min_bins, divisor=chosen.divisor)
        prove(self.model, space, shape)
        return space

    @cached_property
    def costs(self) -> CostTable:
        """FLOPs and params of the width vectors."""
        return CostTable(self.space)

    @cached_property
    def strategy(self) -> Strategy:
        """How the supernet is trained."""
        train = self.config.train
        return make_strategy(
            train.strategy, self.space, self.config.seed, num_random=train.num_random, inplace_distillation=train.inplace_distillation
        )

    # Training -------------------------------------------------------------------------------------------------------

    @cached_property
    def trainer(self) -> Trainer:
        """The trainer of the supernet, before or after resuming."""
        config = self.config
        supernet = Supernet(self.model, self.space, wide=self.strategy.wide, seed=derive_seed(config.seed, STREAM_MODEL, 1))
        batches = self.train_batches(self.data.train, config.train.batch_size, config.seed)
        return Trainer(
            supernet,
            batches,
            config.train,
            device=self.device,
            bf16=self.bf16,
            seed=config.seed,
            passes=self.strategy.passes,
            records=LossRecords(config.train.records),
            checkpoint=self.checkpoint,
            checkpoint_seconds=config.checkpoint_seconds,
            identity=self.identity,
            label=f"supernet {self.strategy.name}",
        )

    def train_batches(self, images: ImageSet, batch_size: int, seed: int) -> TrainBatches:
        """Augmented batches of the images; each process of a group gets its part."""
        data = self.config.data
        return TrainBatches(
            images,
            self.normalize,
            batch_size=batch_size,
            pad=data.pad,
            flip=data.flip,
            seed=seed,
            rank=rank(),
            world_size=world_size(),
        )

    @property
    def checkpoint(self) -> Path:
        """The file of the training's state."""
        return self.folder / "checkpoint.pt"

    @property
    def identity(self) -> str:
        """What ties a checkpoint to the settings it was trained with."""
        tree = self.config.model_dump(mode="json")
        return hashlib.sha256(json.dumps({key: tree[key] for key in _FIXED_SECTIONS}, sort_keys=True).encode()).hexdigest()

    def train(self) -> Trainer:
        """Train the supernet, from the checkpoint if there is one."""
        trainer = self.trainer
        trainer.resume()
        if trainer.step < trainer.total_steps:
            trainer.run()
        if world_size() > 1:
            dist.barrier()
        return trainer

    @cached_property
    def trained(self) -> Trainer:
        """The trainer with the checkpoint's state, as far as it went.

        Raises:
            UserError: no checkpoint, a damaged one, or one of another run.
        """
        if not self.trainer.resume():
            raise UserError(f"{self.checkpoint}: no such checkpoint; train first (bcnet train CONFIG --out {self.folder})")
        return self.trainer

    # Scoring and search ---------------------------------------------------------------------------------------------

    @cached_property
    def calibration(self) -> EvalBatches:
        """Training images for BN statistics."""
        score = self.config.score
        return EvalBatches(self.data.train, self.normalize, score.batch_size, score.calibration_images)

    @cached_property
    def validation(self) -> EvalBatches:
        """Held-out images for scores."""
        if not len(self.data.val):
            raise UserError("data.num_val is 0: scores need training images held out for them")
        return EvalBatches(self.data.val, self.normalize, self.config.score.batch_size, self.config.score.max_images)

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of the trained supernet for some width vectors, with its cache on disk."""
        return self._make_scorer(whole_layers=False)

    @cached_property
    def exhaustive_scorer(self) -> Scorer:
        """The same for a large part of the space: its sums have another order, so its scores differ in the last digits."""
        return self._make_scorer(whole_layers=True)

    def scorer_for(self, count: int) -> Scorer:
        """The scorer that is faster for so many width vectors."""
        count = self.config.score.additive or count
        return self.exhaustive_scorer if count >= LARGE_PART * len(self.space) else self.scorer

    def _make_scorer(self, *, whole_layers: bool) -> Scorer:
        score = self.config.score
        supernet = self.trained.trained
        assert isinstance(supernet, Supernet)
        settings = [self.identity, _sha256(self.checkpoint), score.calibration_images, score.max_images, score.batch_size, self.bf16]
        name = hashlib.sha256(json.dumps([*settings, whole_layers]).encode()).hexdigest()[:16]
        return Scorer(
            supernet,
            self.calibration,
            self.validation,
            sides=self.strategy.sides,
            metric=score.metric,
            bf16=self.bf16,
            memory_gib=score.memory_gib,
            whole_layers=whole_layers,
            sample=self._additive_sample(),
            cache=ScoreCache(self.folder / "scores" / f"{name}.jsonl"),
        )

    def _additive_sample(self) -> list[Widths]:
        count, space = self.config.score.additive, self.space
        if count is None:
            return []
        groups, choices = len(space.groups), space.bins - space.min_bins + 1
        least = LEAST_PER_UNKNOWN * groups * choices
        if count < least:
            raise UserError(f"score.additive is {count}: {groups} groups of {choices} widths each need at least {least} scored ones")
        return balanced_sample(space, count, derive_seed(self.config.seed, STREAM_SAMPLE))

    def score(self, widths: Sequence[Widths], out: Path) -> dict[str, float]:
        """Score width vectors and write ``{"meta": ..., "costs": {WIDTHS: [FLOPs, params]}, "scores": {WIDTHS: score}}``."""
        scorer = self.scorer_for(len(widths))
        found = scorer.score_many(widths, "scoring")
        scores = {self.space.encode(w): value for w, value in found.items()}
        if rank() == 0:
            costs = {self.space.encode(w): [self.costs.one(w, cost) for cost in ("flops", "params")] for w in found}
            explained = scorer.effects().explained if scorer.sample else None
            meta = self.describe() | {"sides": self.strategy.sides, "explained_by_effects": explained}
            write_json(out, {"meta": meta, "costs": costs, "scores": scores})
        return scores

    def describe(self) -> dict[str, Any]:
        """What stands beside every result: config, progress of training, environment."""
        trainer = self.trained
        return {
            "config": self.config.model_dump(mode="json"),
            "steps": trainer.step,
            "total_steps": trainer.total_steps,
            "passes": trainer.history.passes,
            "train_seconds": round(trainer.history.seconds, 1),
            "environment": environment(self.device),
        }

    def search(self, budget_text: str | None) -> dict[str, Any]:
        """Search a width vector; write and return the contents of ``search.json``.

        Args:
            budget_text: such as ``flops=0.5``; unset: no limit.

        Raises:
            UserError: a budget out of reach, refused before any work.
        """
        from bcnet.search import evolution, prior

        settings, space = self.config.search, self.space
        budget = Budget.parse(budget_text, self.costs) if budget_text else None
        seed = derive_seed(self.config.seed, STREAM_SEARCH) % 2**32
        cost = budget.cost if budget else "flops"
        common: dict[str, Any] = {"budget": budget, "population": settings.population, "evaluations": settings.evaluations, "seed": seed}
        scorer = self.scorer
        done = 0

        def score_many(widths: Sequence[Widths]) -> dict[Widths, float]:
            nonlocal done
            found = scorer.score_many(widths, f"search, {done} of {settings.evaluations} scored")
            done += len(widths)
            return found

        if settings.algorithm == "random":
            result = evolution.random_search(space, self.costs, score_many, **common)
        else:
            records = self.trained.records
            probabilities = evolution.uniform_prior(space)
            if settings.init == "prior":
                if records is None or not records.losses:
                    raise UserError("search.init=prior needs the loss records of training, and there are none; use search.init=random")
                limit = budget or Budget(cost, self.costs.range(cost)[1])
                probabilities = prior.solve_prior(space, self.costs, limit, prior.expected_losses(space, records.sorted()))
            first = prior.sample_population(space, self.costs, budget, probabilities, settings.population, np.random.default_rng(seed))
            objective = cost if settings.objective == "score_and_cost" else None
            result = evolution.evolve(space, self.costs, score_many, first=first, cost=objective, **common)
        accuracies = scorer.read(list(result.scores), metric="accuracy")
        rows = {w: self._row(w, score, accuracy) for (w, score), accuracy in zip(result.scores.items(), accuracies, strict=True)}
        found = {
            "settings": settings.model_dump(mode="json")
            | {"budget": budget_text, "budget_limit": budget.limit if budget else None, "cost": cost}
            | {"metric": self.config.score.metric, "additive": self.config.score.additive},
            "best": rows[result.best],
            "front": [space.encode(widths) for widths in result.front],
            "generations": result.generations,
            "evaluated": list(rows.values()),
            "meta": self.describe(),
        }
        if rank() == 0:
            write_json(self.folder / "search.json", found)
        return found

    def _row(self, widths: Widths, score: float, accuracy: float) -> dict[str, Any]:
        costs = {cost: self.costs.one(widths, cost) for cost in ("flops", "params")}
        return {"widths": self.space.encode(widths), "score": score, "accuracy": accuracy} | costs

    # Found networks -------------------------------------------------------------------------------------------------

    def extract(self, widths: Widths, folder: Path) -> dict[str, Any]:
        """Write the subnet as a plain network with calibrated BN statistics; returns its description."""
        supernet = self.scorer.supernet
        supernet.set_active_subnet(widths, "left")
        calibrate(supernet, self.calibration, bf16=self.bf16)
        network = supernet.get_active_subnet()
        held_out = evaluate(network, self.validation, bf16=self.bf16)
        channels = self.space.channels(widths)
        description = self._describe_network(channels) | {"widths": self.space.encode(widths), "val_accuracy": held_out.accuracy}
        save_network(folder, network, description)
        return description

    def _describe_network(self, channels: Sequence[int]) -> dict[str, Any]:
        model = self.config.model
        return {
            "model": {"name": model.name, "num_classes": len(self.data.classes), "args": model.args},
            "channels": {group.name: count for group, count in zip(self.space.groups, channels, strict=True)},
            "flops": int(self.costs.of_channels(channels, "flops")),
            "params": int(self.costs.of_channels(channels, "params")),
            "input_shape": list(self.data.input_shape),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "classes": list(self.data.classes),
        }

    def uniform_channels(self, flops: int) -> tuple[int, ...]:
        """Channels of the largest uniformly scaled model whose FLOPs do not exceed ``flops``."""

        def scaled(factor: float) -> tuple[int, ...]:
            return tuple(g.unit * max(1, int(factor * g.channels / g.unit + 0.5)) for g in self.space.groups)

        low, high = 0.0, 1.0
        if self.costs.of_channels(scaled(high), "flops") <= flops:
            return scaled(high)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.costs.of_channels(scaled(middle), "flops") <= flops else (low, middle)
        return scaled(low)

    def retrain(self, widths: Widths, seeds: Sequence[int]) -> dict[str, Any]:
        """Train the found width and the uniform one of the same FLOPs from scratch, over several seeds.

        All training images are used, also those held out for scores; test images are looked at once, after the last
        epoch. Finished seeds are kept, an unfinished one is resumed.

        Returns:
            ``{"found": {...}, "uniform": {...}}`` with channels, costs and test accuracies in per cent.
        """
        name = self.space.encode(widths)
        channels = self.space.channels(widths)
        flops = self.costs.one(widths, "flops")
        wanted = {"found": channels, "uniform": self.uniform_channels(flops)}
        folders = {"found": self.folder / "retrain" / name, "uniform": self.folder / "retrain" / f"uniform-like-{name}"}
        results = {}
        for kind, counts in wanted.items():
            accuracies = [self._retrain_one(counts, seed, folders[kind] / f"seed{seed}", f"{kind}, seed {seed}") for seed in seeds]
            costs = {cost: int(self.costs.of_channels(counts, cost)) for cost in ("flops", "params")}
            results[kind] = {"channels": list(counts), "acc": accuracies, "seeds": list(seeds)} | costs
        results["found"]["widths"] = name
        if rank() == 0:
            write_json(self.folder / "retrain" / f"{name}.json", results)
        return results

    def _retrain_one(self, channels: Sequence[int], seed: int, folder: Path, label: str) -> float:
        recipe = self.config.retrain
        identity = hashlib.sha256(f"{self.identity} {recipe.model_dump_json()} {list(channels)} {seed}".encode()).hexdigest()
        result = folder / "result.json"
        if result.exists():
            known = read_json(result, "the result of a retraining")
            if known.get("identity") == identity:
                return float(known["accuracy"])
        checkpoint = folder / f"checkpoint-{identity[:12]}.pt"
        model = narrow(self.build_model(derive_seed(seed, STREAM_MODEL)), self.space, channels)
        trainer = Trainer(
            model,
            self.train_batches(self.data.full_train, recipe.batch_size, seed),
            recipe,
            device=self.device,
            bf16=self.bf16,
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_seconds=self.config.checkpoint_seconds,
            identity=identity,
            label=f"retrain {label}",
        )
        trainer.resume()
        trainer.run()
        test = evaluate(trainer.trained, EvalBatches(self.data.test, self.normalize, self.config.score.batch_size), bf16=self.bf16)
        accuracy = 100 * test.accuracy
        if rank() == 0:
            save_network(folder, trainer.trained, self._describe_network(channels) | {"test_accuracy": accuracy, "seed": seed})
            write_json(result, {"identity": identity, "accuracy": accuracy, "cross_entropy": test.cross_entropy})
            checkpoint.unlink(missing_ok=True)
        return accuracy


def _refuse_changes(folder: Path, trained: Config, asked: Config) -> None:
    keys = [key for key in differing_keys(trained, asked) if key.split(".")[0] in _FIXED_SECTIONS]
    if keys:
        raise UserError(f"{folder}: was trained with another {', '.join(keys[:4])}; use the same settings, or train into another folder")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
