"""A run directory: one config, one supernet, and everything made from it.

config.yaml        the resolved config        environment.json  versions, commit, hardware
checkpoint.pt      the training's state       scores/           evaluated width vectors, one file per setting
search.json        what the search found      retrain/          networks of found widths, trained
*.png, index.html  pictures of it all
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from bcnet.config import Config, differing_keys, dump_config, load_config, read_yaml
from bcnet.data.folder import has_own_val
from bcnet.distributed import of_first, process_rank, world_size
from bcnet.errors import UserError
from bcnet.experiment import Experiment, with_divisor
from bcnet.files import is_unused, write_json, write_text
from bcnet.formatting import shell_word
from bcnet.latency.timing import measure_networks
from bcnet.machine import device_name
from bcnet.models.factory import build_model
from bcnet.plugins import named_code, trust_option
from bcnet.progress import notice
from bcnet.provenance import made_of, read_environment, refuse_other_kind, refuse_others, sha256
from bcnet.results import (
    BudgetRecord,
    EvaluatedWidths,
    R,
    Ranking,
    RetrainedNetwork,
    RetrainedWidth,
    RetrainRecord,
    ScoreFile,
    SearchRecord,
    SearchSettings,
    ShortTrained,
    Speed,
    Start,
    TogetherRecord,
    read_record,
)
from bcnet.scoring.cache import ScoreCache
from bcnet.scoring.evaluate import Evaluation, evaluate
from bcnet.scoring.scorer import Scorer
from bcnet.search.short_training import ShortTraining
from bcnet.space.cost import Budget, CostTable
from bcnet.space.widths import Space, Widths
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.extract import refuse_other_folder, save_network
from bcnet.supernet.supernet import Supernet
from bcnet.training.trainer import Trainer
from bcnet.trees import dump_yaml, parse_yaml

# Sections that decide what the supernet is; the others may be changed for each command on a run.
_FIXED_SECTIONS = ("seed", "data", "model", "space", "train")
SIDE_BY_SIDE = 2e6  # FLOPs; smaller networks spend their time between operations, and several are trained in the time of one


class Run:
    """A run directory.

    Args:
        folder: the directory.
        experiment: the parts that its config names, maybe with other settings of scoring, search and retraining.
    """

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self.folder, self.experiment = folder, experiment

    @classmethod
    def create(cls, folder: Path, config: Config, *, resume: bool = False) -> "Run":
        """Start a run, or continue one with the same config.

        Raises:
            UserError: the directory holds a run already and ``resume`` was not asked for, or its config is another.
        """
        written = folder / "config.yaml"
        if written.exists():
            refuse_other_kind(folder, "run")
        if resume and written.exists():  # as it was begun, also by versions that knew no default
            before = load_config(written, trust=True).space.divisor  # of which nothing is run
            config = with_divisor(config, before) if before else config
        else:
            config = with_divisor(config)
        run = cls(folder, Experiment(config))
        if process_rank() != 0:
            return run
        if written.exists():
            if not resume:
                raise UserError(f"{folder} already holds a run; continue it by --resume (in Python: resume=True), or choose another --out")
            trusted = [name for _, name in named_code(config.model_dump())]
            _refuse_changes(folder, Experiment(load_config(written, trust=trusted)).config, run.config, "amp")
        elif not is_unused(folder):
            raise UserError(f"{folder} exists, is not empty and is not a run; choose another --out")
        refuse_others(folder, run.experiment)
        run.trainer  # noqa: B018  what cannot be trained (device, data, model, batch size) is refused before anything is written
        run.experiment.check_scoring()  # so is what could not be scored or searched when it is trained
        data = config.data
        if data.source == "imagefolder" and data.held_out == "train" and data.root is not None and has_own_val(data.root):
            notice(f"{data.root / 'val'} is not looked at: scores are measured on images of train/; data.held_out=val takes those of val/")
        write_text(written, _dump(run.config, written), new=not written.exists())
        write_json(folder / "environment.json", {"seed": config.seed} | made_of(run.experiment) | run.experiment.environment())
        return run

    @classmethod
    def open(cls, folder: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> "Run":
        """Open a run that was trained.

        Args:
            folder: the directory.
            overrides: other settings, such as ``score.metric=cross_entropy`` or ``device=cpu``.
            trust: whether the code may be run that its config names, if there is any from outside bcnet.

        Raises:
            UserError: not a run, an override of what the supernet was trained with, or code that is not trusted.
        """
        written = folder / "config.yaml"
        if not written.is_file():
            raise UserError(
                f"{folder}: not a run directory (no config.yaml in it); train first: bcnet train CONFIG --out {shell_word(folder)}"
            )
        refuse_other_kind(folder, "run")
        experiment = Experiment(load_config(written, overrides, trust=trust))
        if overrides:
            trusted = trust or [name for _, name in named_code(experiment.config.model_dump())]
            _refuse_changes(folder, Experiment(load_config(written, trust=trusted)).config, experiment.config)
        return cls(folder, experiment)

    @property
    def config(self) -> Config:
        """The settings."""
        return self.experiment.config

    @property
    def space(self) -> Space:
        """The width space of the model."""
        return self.experiment.space

    @property
    def costs(self) -> CostTable:
        """Costs of the width vectors."""
        return self.experiment.costs

    def command(self, name: str, options: str = "") -> str:
        """A command on this run, ready to be typed; with ``--trust`` where its config names code."""
        words = f"bcnet {name} {shell_word(self.folder)} {options}".rstrip()
        return words + trust_option(self.config.model_dump())

    @property
    def search_command(self) -> str:
        """A search under a budget that can be kept: half of the FLOPs where some width takes no more."""
        least = self.costs.range("flops")[0] / self.costs.of_model("flops")
        share = 0.5 if least <= 0.5 else math.ceil(50 * (1 + least)) / 100
        return self.command("search", f"--budget flops={share:g}")

    # Training -------------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The file of the training's state."""
        return self.folder / "checkpoint.pt"

    @cached_property
    def identity(self) -> str:
        """What ties a checkpoint to the settings it was trained with: a hash of those settings as ``config.yaml`` holds them."""
        written = self.folder / "config.yaml"
        return run_identity(written.read_text(encoding="utf-8") if written.exists() else dump_config(self.config))

    @cached_property
    def trainer(self) -> Trainer:
        """The trainer of the supernet, before or after resuming."""
        return self.experiment.make_trainer(self.checkpoint, self.identity, watched=True)

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
        if self.checkpoint.exists():
            refuse_others(self.folder, self.experiment)
        if not self.trainer.resume():
            command = f"bcnet train {shell_word(self.folder / 'config.yaml')} --out {shell_word(self.folder)} --resume"
            raise UserError(f"{self.checkpoint}: no such checkpoint; train first: {command}")
        return self.trainer

    def describe(self) -> dict[str, Any]:
        """What stands beside every result: config, progress of training, environment."""
        trainer = self.trained
        return {
            "config": self.config.model_dump(mode="json"),
            "steps": trainer.step,
            "total_steps": trainer.total_steps,
            "passes": trainer.history.passes,
            "train_seconds": round(trainer.history.seconds, 1),
            "environment": self.experiment.environment(),
        }

    # Scoring and search ---------------------------------------------------------------------------------------------

    @cached_property
    def _supernet_hash(self) -> str:
        return sha256(self.checkpoint)

    @property
    def supernet(self) -> Supernet:
        """The trained supernet."""
        supernet = self.trained.trained
        assert isinstance(supernet, Supernet)
        return supernet

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of the trained supernet, with its cache on disk."""
        score = self.config.score
        settings = [self.identity, self._supernet_hash, score.calibration_images, score.max_images, score.batch_size]
        settings += [self.experiment.half == torch.bfloat16, score.whole_layers, *(["batch"] if score.statistics == "batch" else [])]
        settings += ["fp16"] * (self.experiment.half == torch.float16)
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        return self.experiment.make_scorer(self.supernet, ScoreCache(self.folder / "scores" / f"{name}.jsonl"))

    def score(self, widths: Sequence[Widths] | Mapping[str, Widths], out: Path) -> dict[str, float]:
        """Score width vectors, maybe under names of their own, and write them as a `bcnet.results.ScoreFile`."""
        scorer = self.scorer
        named = widths if isinstance(widths, Mapping) else {self.space.encode(one): one for one in widths}
        by_widths = scorer.score_many(dict.fromkeys(named.values()), "scoring")
        scores = {name: by_widths[one] for name, one in named.items()}
        if process_rank() == 0:
            costs = {name: [self.costs.one(one, cost) for cost in ("flops", "params")] for name, one in named.items()}
            explained = scorer.effects().explained if scorer.sample else None
            full = {cost: self.costs.of_model(cost) for cost in ("flops", "params")}
            meta = self.describe() | {
                "full": full,
                "sides": scorer.sides,
                "explained_by_effects": explained,
                "anchors": len(scorer.anchors),
            }
            ScoreFile(scores=scores, costs=costs, meta=meta).write(out)
        return scores

    def search(self, *budget_texts: str) -> SearchRecord:
        """Search a width vector; write and return what was found.

        Args:
            budget_texts: such as ``flops=0.5``; several hold together; none: no limit.

        Raises:
            UserError: a budget out of reach, refused before any work.
        """
        budgets = self.experiment.parse_budgets(budget_texts)
        self.experiment.check_short_trainings(budgets)
        scorer = self.scorer
        result = self.experiment.search(scorer, budgets, self.trained.records)
        short, best = self._search_by_training(result.best, budgets) if self.config.search.short_trainings else ([], result.best)
        evaluated = list(dict.fromkeys([*result.scores, *(one.widths for one in short)]))
        accuracies = [min(1.0, max(0.0, value)) for value in scorer.read(evaluated, metric="accuracy")]  # may be predictions
        scores = scorer.read(evaluated) if short else [result.scores[widths] for widths in evaluated]
        rows = {
            widths: EvaluatedWidths(widths=self.space.encode(widths), score=score, accuracy=accuracy, costs=self.costs.all_of(widths))
            for widths, score, accuracy in zip(evaluated, scores, accuracies, strict=True)
        }
        algorithm = self.config.search.algorithm
        settings = SearchSettings.model_validate(
            {
                "algorithm": algorithm.name,
                **algorithm.settings,
                "evaluations": self.config.search.evaluations,
                "budgets": [BudgetRecord(text=budget.text, cost=budget.cost, limit=budget.limit) for budget in budgets],
                "cost": result.cost,
                "metric": self.experiment.metric.name,
                "additive": self.config.score.additive,
                "anchors": len(scorer.anchors),
                "short_epochs": self.config.search.short_epochs if short else 0.0,
            }
        )
        record = SearchRecord(
            settings=settings,
            best=rows[best],
            front=[self.space.encode(widths) for widths in result.front],
            passed={budget.text: self.space.encode(widths) for budget, widths in zip(budgets, result.passed, strict=True)}
            if self.experiment.passes_budgets
            else {},
            generations=result.generations,
            evaluated=list(rows.values()),
            short=[
                ShortTrained(
                    widths=self.space.encode(one.widths),
                    proposed_by=one.proposed_by,
                    accuracy=one.accuracy,
                    cross_entropy=one.cross_entropy,
                    error=one.error,
                )
                for one in short
            ],
            meta=self.describe(),
        )
        if process_rank() == 0:
            record.write(self.folder / "search.json")
        return record

    def _search_by_training(self, best: Widths, budgets: Sequence[Budget]) -> tuple[list[ShortTraining], Widths]:
        """Short trainings of a search and the width that they find; those that were done before are known."""
        experiment, epochs = self.experiment, self.config.search.short_epochs
        identity = self._retrain_identity([epochs, "short, from", self._supernet_hash], self.config.seed)
        known = ScoreCache(self.folder / "scores" / f"short-{identity[:16]}.jsonl")
        count = self.config.search.short_trainings

        def train(widths: Widths) -> Evaluation:
            nonlocal count
            name = self.space.encode(widths)
            own = hashlib.sha256(f"{identity} {name}".encode()).hexdigest()
            checkpoint = self.folder / "scores" / f"short-{own[:16]}.pt"
            if name not in known.evaluations:
                trained = experiment.train_shortly(
                    self.supernet,
                    widths,
                    checkpoint=checkpoint,
                    checkpoint_seconds=min(20.0, self.config.checkpoint_seconds),
                    identity=own,
                    label=f"short training of {name}, {count} to do",
                )
                trained = of_first(trained)  # BN statistics, and so what is reached, are per process
                if process_rank() == 0:
                    known.add(name, {"left": trained})  # the side whose weights it started from
                known.evaluations[name] = {"left": trained}
            if process_rank() == 0:
                checkpoint.unlink(missing_ok=True)
            count -= 1
            return known.evaluations[name]["left"]

        return experiment.search_by_training(self.scorer, best, budgets, train)

    # What was found so far, for pages ---------------------------------------------------------------------------------

    def search_record(self) -> SearchRecord | None:
        """What the last search found, if there was one."""
        return self._record("search.json", SearchRecord, "the result of a search")

    def ranking(self) -> Ranking | None:
        """What ``bcnet rank`` wrote here, if it was asked."""
        return self._record("ranking.json", Ranking, "the result of a ranking")

    def retrainings(self) -> list[RetrainRecord]:
        """Every width that was retrained so far."""
        files = sorted((self.folder / "retrain").glob("*.json"))
        return [read_record(file, RetrainRecord, "the result of a retraining") for file in files]

    def environment(self) -> dict[str, Any]:
        """Where the run was made."""
        return read_environment(self.folder)

    def _record(self, name: str, kind: type[R], what: str) -> R | None:
        file = self.folder / name
        return read_record(file, kind, what) if file.is_file() else None

    def speed(self) -> Speed | None:
        """How fast the width that the last search found is, if it was measured."""
        return self._record("speed.json", Speed, "a measured speed")

    # Found networks -------------------------------------------------------------------------------------------------

    def measure(self, widths: Widths, *, repeats: int = 30) -> Speed:
        """Measure how long a subnet takes for one image, beside the model."""
        experiment = self.experiment
        chosen, data = self.config.model, experiment.data
        networks = [self.scorer.supernet.extract(widths), build_model(chosen.name, len(data.classes), args=chosen.args)]
        found, model = measure_networks(networks, data.input_shape, device=experiment.device, repeats=repeats)
        return Speed(
            widths=self.space.encode(widths),
            found_ms=found,
            model_ms=model,
            flops=self.costs.one(widths, "flops") / self.costs.of_model("flops"),
            batch_size=1,
            threads=torch.get_num_threads(),
            device=device_name(experiment.device),
        )

    def extract(self, widths: Widths, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
        """Write the subnet as a plain network with calibrated BN statistics; returns it and its description.

        Raises:
            UserError: the folder holds something else than a network.
        """
        refuse_other_folder(folder)
        experiment, supernet = self.experiment, self.scorer.supernet
        supernet.set_active_subnet(widths, "left")
        calibrate(supernet, experiment.calibration, half=experiment.half)
        network = supernet.get_active_subnet()
        held_out = evaluate(network, experiment.validation, half=experiment.half)
        channels = self.space.channels(widths)
        own = {"widths": self.space.encode(widths), "side": "left", "val_accuracy": 100 * held_out["accuracy"]}
        speed = self.measure(widths).model_dump(mode="json")
        description = self._describe_network(channels) | own | {"speed": speed}
        save_network(folder, network, description)
        return network, description

    def _describe_network(self, channels: Sequence[int]) -> dict[str, Any]:
        model, data = self.config.model, self.experiment.data
        return {
            "model": {"name": model.name, "num_classes": len(data.classes), "args": model.args},
            "channels": {group.name: count for group, count in zip(self.space.groups, channels, strict=True)},
            "flops": int(self.costs.of_channels(channels, "flops")),
            "params": int(self.costs.of_channels(channels, "params")),
            **self.experiment.describe_images(),
        }

    def retrain(
        self, widths: Widths, seeds: Sequence[int], *, inherit: bool = False, full: bool = False, num_random: int = 0
    ) -> RetrainRecord:
        """Train the found width and the uniform one of the same FLOPs, over several seeds: from scratch, or from the supernet's weights.

        All training images are used, also those held out for scores; test images are looked at once, after the last
        epoch. Finished seeds are kept, an unfinished one is resumed.

        Args:
            widths: the found width.
            seeds: one training each; of inherited weights they decide the order of the images and the augmentation alone.
            inherit: start all widths from the weights that the supernet has for them, on its left side.
            full: train the full model as well.
            num_random: so many random widths of the same FLOPs as well, one training each, with the seeds in turn.
        """
        start: Start = "inherited" if inherit else "scratch"
        suffix = "-inherited" if inherit else ""
        name = self.space.encode(widths)
        flops = self.costs.one(widths, "flops")
        record = RetrainRecord(
            found=self._retrain_width(self.space.channels(widths), seeds, name, f"found {name}", start, name),
            uniform=self._retrain_width(self.experiment.uniform_channels(flops), seeds, f"uniform-like-{name}", "uniform", start),
            full=self._retrain_width(self.costs.model_channels, seeds, "full", "full", start) if full else None,
            random=[
                self._retrain_width(self.space.channels(one), [seed], self.space.encode(one), "random", start, self.space.encode(one))
                for one, seed in zip(self.experiment.random_widths(flops, num_random), cycle(seeds), strict=False)
            ],
            start=start,
            recipe=self._recipe,
        )
        if process_rank() == 0:
            record.write(self.folder / "retrain" / f"{name}{suffix}.json")
        return record

    def _retrain_width(
        self, channels: Sequence[int], seeds: Sequence[int], folder: str, label: str, start: Start, widths: str | None = None
    ) -> RetrainedWidth:
        suffix = "-inherited" if start == "inherited" else ""
        return RetrainedWidth(
            channels=list(channels),
            acc=self._retrain_seeds(channels, seeds, self.folder / "retrain" / f"{folder}{suffix}", label, start),
            seeds=list(seeds),
            flops=int(self.costs.of_channels(channels, "flops")),
            params=int(self.costs.of_channels(channels, "params")),
            widths=widths,
        )

    def retrain_together(self, widths: Sequence[Widths], seeds: Sequence[int]) -> TogetherRecord:
        """Train several width vectors in one network with batch norms of their own, and split it; over several seeds.

        Images, finished seeds and interruptions as in `retrain`.
        """
        names = [self.space.encode(one) for one in widths]
        folder = self.folder / "retrain" / "together" / "+".join(names)
        by_seed = [self._retrain_together(widths, seed, folder / f"seed{seed}") for seed in seeds]
        rows = [
            RetrainedWidth(
                channels=list(self.space.channels(one)),
                acc=[accuracies[place] for accuracies in by_seed],
                seeds=list(seeds),
                flops=int(self.costs.one(one, "flops")),
                params=int(self.costs.one(one, "params")),
                widths=name,
            )
            for place, (one, name) in enumerate(zip(widths, names, strict=True))
        ]
        record = TogetherRecord(together=rows)
        if process_rank() == 0:
            record.write(folder / "together.json")
        return record

    def trained_alone(self) -> dict[str, RetrainedWidth]:
        """Width string -> what `retrain` from scratch found of it by the recipe of now, for all that it was asked."""
        alike = (known for known in self.retrainings() if known.start == "scratch" and known.recipe == self._recipe)
        return {str(known.found.widths): known.found for known in alike}

    @property
    def _recipe(self) -> str:
        return self._retrain_identity(["recipe"], 0)

    def togethers(self) -> list[TogetherRecord]:
        """All width vectors that were trained together so far."""
        files = sorted((self.folder / "retrain" / "together").glob("*/together.json"))
        return [read_record(file, TogetherRecord, "the result of training widths together") for file in files]

    def _retrain_together(self, widths: Sequence[Widths], seed: int, folder: Path) -> list[float]:
        experiment, names = self.experiment, [self.space.encode(one) for one in widths]
        identity = self._retrain_identity(["together", *names], seed)
        known = [self._retrained(folder / name / "result.json", identity) for name in names]
        finished = [accuracy for accuracy in known if accuracy is not None]
        if len(finished) == len(names):
            _remove_checkpoints(folder, identity)
            return finished
        networks = experiment.train_together(
            widths,
            seed,
            checkpoint=_checkpoint(folder, identity),
            checkpoint_seconds=self.config.checkpoint_seconds,
            identity=identity,
            label=f"retrain {len(widths)} together, seed {seed}",
        )
        accuracies = [
            self._keep_retrained(network, self.space.channels(one), seed, folder / name, identity)
            for one, name, network in zip(widths, names, networks, strict=True)
        ]
        _remove_checkpoints(folder, identity)
        return accuracies

    def _retrain_identity(self, what: Sequence[Any], seed: int | list[int]) -> str:
        recipe = self.config.retrain
        unset = {name for name in recipe.newer if getattr(recipe, name) == type(recipe).model_fields[name].default}
        amp = "" if self.config.amp == "auto" else f" amp={self.config.amp}"
        return hashlib.sha256(f"{self.identity} {recipe.model_dump_json(exclude=unset)} {list(what)} {seed}{amp}".encode()).hexdigest()

    @staticmethod
    def _retrained(result: Path, identity: str) -> float | None:
        """The accuracy of a network that was trained with just these settings."""
        if not result.exists():
            return None
        known = read_record(result, RetrainedNetwork, "the result of a retraining")
        return known.accuracy if known.identity == identity else None

    def _keep_retrained(
        self, network: nn.Module, channels: Sequence[int], seed: int, folder: Path, identity: str, start: Start = "scratch"
    ) -> float:
        """Test a trained network and write it; returns the accuracy in per cent."""
        test = evaluate(network, self.experiment.test, half=self.experiment.half)
        accuracy = 100 * test["accuracy"]
        if process_rank() == 0:
            save_network(folder, network, self._describe_network(channels) | {"test_accuracy": accuracy, "seed": seed, "start": start})
            RetrainedNetwork(identity=identity, accuracy=accuracy, cross_entropy=test["cross_entropy"]).write(folder / "result.json")
        return accuracy

    def _retrain_seeds(self, channels: Sequence[int], seeds: Sequence[int], folder: Path, label: str, start: Start) -> list[float]:
        """Accuracies of networks of one width; small ones are trained side by side."""
        inherits = start == "inherited"
        what = [*channels, "from", self._supernet_hash] if inherits else list(channels)
        identities = {seed: self._retrain_identity(what, seed) for seed in seeds}
        known = {seed: self._retrained(folder / f"seed{seed}" / "result.json", identities[seed]) for seed in seeds}
        is_small = self.costs.of_channels(channels, "flops") <= SIDE_BY_SIDE and world_size() == 1
        for share in [list(seeds)] if is_small else [[seed] for seed in seeds]:
            identity = identities[share[0]] if len(share) == 1 else self._retrain_identity(what, share)
            place = folder / f"seed{share[0]}" if len(share) == 1 else folder
            if all(known[seed] is not None for seed in share):
                _remove_checkpoints(place, identity)  # killed between the last result and this
                continue
            networks = self.experiment.train_width(
                channels,
                share,
                start=self.experiment.inherited(self.supernet, channels) if inherits else None,
                checkpoint=_checkpoint(place, identity),
                checkpoint_seconds=self.config.checkpoint_seconds,
                identity=identity,
                label=f"retrain {label}, {f'seed {share[0]}' if len(share) == 1 else f'{len(share)} seeds'}",
            )
            for seed, network in zip(share, networks, strict=True):
                if known[seed] is None:
                    known[seed] = self._keep_retrained(network, channels, seed, folder / f"seed{seed}", identities[seed], start)
            _remove_checkpoints(place, identity)
        return [accuracy for accuracy in known.values() if accuracy is not None]


def run_identity(text: str) -> str:
    """What ties a checkpoint to a ``config.yaml``: a hash of the settings that decide the supernet, as they stand there."""
    tree = parse_yaml(text)
    return hashlib.sha256(json.dumps({key: tree.get(key) for key in _FIXED_SECTIONS}, sort_keys=True).encode()).hexdigest()


def _checkpoint(folder: Path, identity: str) -> Path:
    return folder / f"checkpoint-{identity[:12]}.pt"


def _remove_checkpoints(folder: Path, identity: str) -> None:
    """Of trainings that are finished, one or side by side."""
    if process_rank() == 0:
        for checkpoint in folder.glob(f"checkpoint-{identity[:12]}*.pt"):
            checkpoint.unlink()


def _dump(config: Config, written: Path) -> str:
    """The text of ``config.yaml``; what decides the supernet stays as a file there has it, for the run's identity is made from that."""
    tree = config.model_dump(mode="json")
    if written.exists():
        before = read_yaml(written)
        tree |= {key: before[key] for key in _FIXED_SECTIONS if key in before}
    return dump_yaml(tree)


def _refuse_changes(folder: Path, trained: Config, asked: Config, *more: str) -> None:
    keys = [key for key in differing_keys(trained, asked) if key.split(".")[0] in (*_FIXED_SECTIONS, *more)]
    if keys:
        raise UserError(f"{folder}: was trained with another {', '.join(keys[:4])}; use the same settings, or train into another folder")
