"""A run directory of a grid's search, in the spirit of `bcnet.run`.

config.yaml        the resolved config         environment.json  versions, commit, hardware
checkpoint.pt      the search's state          search.json       what it found, and how it went
net_config.txt     the network that was found  network/          the same with inherited weights
refine.yaml        its width search            refined/          the run of that
retrain/           networks from scratch       *.png, index.html pictures of it all
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch import nn

from bcnet.config import differing_keys, dump_config, load_as
from bcnet.dense.config import DenseConfig
from bcnet.dense.costs import count_network
from bcnet.dense.derive import Inherited, candidates, choose, inherit
from bcnet.dense.experiment import MODEL, DenseExperiment
from bcnet.dense.grid import Choice
from bcnet.dense.paths import Scores, most_probable
from bcnet.dense.results import Candidate, DenseRecord, TrainedNetwork
from bcnet.dense.search import Search
from bcnet.distributed import process_rank, world_size
from bcnet.errors import UserError
from bcnet.files import is_unused, write_json, write_text
from bcnet.formatting import shell_word
from bcnet.models.net_config import NetConfig, read_net_config
from bcnet.provenance import refuse_other_kind
from bcnet.results import BudgetRecord, RetrainedNetwork, read_record
from bcnet.scoring.evaluate import evaluate
from bcnet.supernet.extract import save_network
from bcnet.trees import dump_yaml

_FIXED_SECTIONS = ("seed", "data", "grid", "weights", "architecture", "cost")
_WHAT = "the result of a search of a grid"
FOUND = "found"  # the name under which what was found is retrained


class DenseRun:
    """A run directory.

    Args:
        folder: the directory.
        experiment: the parts that its config names.
    """

    def __init__(self, folder: Path, experiment: DenseExperiment) -> None:
        self.folder, self.experiment = folder, experiment

    @classmethod
    def create(cls, folder: Path, config: DenseConfig, *, resume: bool = False) -> "DenseRun":
        """Start a run, or continue one with the same config.

        Raises:
            UserError: the directory holds a run already and ``resume`` was not asked for, its config is another, or nothing can be
                searched so; nothing is written then.
        """
        run, written = cls(folder, DenseExperiment(config)), folder / "config.yaml"
        if process_rank() != 0:
            return run
        if written.exists():
            refuse_other_kind(folder, "dense")
            if not resume:
                raise UserError(f"{folder} already holds a run; continue it by --resume (in Python: resume=True), or choose another --out")
            _refuse_changes(folder, load_as(DenseConfig, written, trust=True), config)  # nothing of it is run
        elif not is_unused(folder):
            raise UserError(f"{folder} exists, is not empty and is not a run; choose another --out")
        run.trainer  # noqa: B018  what cannot be searched (budget, data, grid) is refused before anything is written
        write_text(written, dump_config(config), new=not written.exists())
        write_json(folder / "environment.json", {"seed": config.seed} | run.experiment.environment())
        return run

    @classmethod
    def open(cls, folder: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> "DenseRun":
        """Open a run that was searched.

        Args:
            folder: the directory.
            overrides: other settings of derivation and retraining.
            trust: as of `bcnet.run.Run.open`.

        Raises:
            UserError: not a run of a grid, or an override of what was searched with.
        """
        written = folder / "config.yaml"
        if not written.is_file():
            raise UserError(
                f"{folder}: not a run directory (no config.yaml in it); search first: bcnet dense train CONFIG --out {shell_word(folder)}"
            )
        refuse_other_kind(folder, "dense")
        config = load_as(DenseConfig, written, overrides, trust=trust)
        if overrides:
            _refuse_changes(folder, load_as(DenseConfig, written, trust=True), config)
        return cls(folder, DenseExperiment(config))

    @property
    def config(self) -> DenseConfig:
        """The settings."""
        return self.experiment.config

    # Search ----------------------------------------------------------------------------------------------------------

    @cached_property
    def trainer(self) -> Search:
        """The search, before or after resuming."""
        return self.experiment.make_search(self.folder / "checkpoint.pt", self.experiment.identity())

    def train(self) -> Search:
        """Search, from the checkpoint if there is one."""
        search = self.trainer
        search.resume()
        if search.step < search.total_steps:
            search.run()
        if world_size() > 1:
            dist.barrier()
        return search

    @cached_property
    def searched(self) -> Search:
        """The search with the checkpoint's state, as far as it went.

        Raises:
            UserError: no checkpoint, a damaged one, or one of another run.
        """
        if not self.trainer.resume():
            raise UserError(
                f"{self.folder}: no checkpoint; search first: bcnet dense train CONFIG --out {shell_word(self.folder)} --resume"
            )
        return self.trainer

    def derive(self, budget_text: str | None = None) -> DenseRecord:
        """Take the best network within a budget; writes ``search.json``, ``net_config.txt``, ``network/`` and ``refine.yaml``.

        Args:
            budget_text: another budget than the search was for.

        Raises:
            UserError: a budget out of reach.
        """
        experiment, search = self.experiment, self.searched
        budget = experiment.parse_budget(budget_text) if budget_text else search.budget
        costs, scores, own = experiment.costs, Scores.of(search.architecture), self.config.derive
        choices = candidates(search.architecture, costs, budget, count=own.candidates, search_paths=own.search_paths, fill=own.fill)
        found = [
            inherit(search.network, c, scores.of_choice(costs.grid, c), experiment.calibration, experiment.validation, half=experiment.half)
            for c in choices
        ]
        best = choose(found)
        probable = most_probable(costs.grid, scores)
        record = DenseRecord(
            best=self._candidate(best),
            candidates=[self._candidate(one) for one in found],
            most_probable=str(costs.grid.net_config(probable)),
            most_probable_costs=costs.all_of(probable),
            budget=None if budget is None else BudgetRecord(text=budget.text, cost=budget.cost, limit=budget.limit),
            reachable={name: costs.range(name) for name in costs.names},
            epochs=search.course,
            steps=search.step,
            search_seconds=search.history.seconds,
            operation_deviation=search.operations.deviation,
            meta={"config": self.config.model_dump(mode="json"), "environment": experiment.environment()},
        )
        self._write(record, best)
        return record

    def _candidate(self, found: Inherited) -> Candidate:
        grid, choice = self.experiment.grid, found.choice
        return Candidate(
            net_config=str(grid.net_config(choice)),
            path=list(choice.path),
            heads=list(choice.heads),
            stacks=[list(stack) for stack in choice.stacks],
            score=found.score,
            costs=self.experiment.costs.all_of(choice),
            val_accuracy=100 * found.accuracy,
        )

    def _write(self, record: DenseRecord, best: Inherited) -> None:
        net = self.experiment.grid.net_config(best.choice)
        save_network(self.folder / "network", best.network, self._describe(net) | {"val_accuracy": record.best.val_accuracy})
        write_text(self.folder / "net_config.txt", f"{net}\n")
        lines = f"# The width search of the network that was found: bcnet dense refine {self.folder.name}\n"
        lines += f"# At the same cost as before: --budget {same_cost(record)}\n"
        write_text(self.folder / "refine.yaml", lines + dump_yaml(self._refinement(net)))
        record.write(self.folder / "search.json")

    def _describe(self, net: NetConfig) -> dict[str, Any]:
        data = self.experiment.data
        counted = count_network(net, data.input_shape, len(data.classes), self.config.grid.stem_stride)
        return {
            "model": {"name": MODEL, "num_classes": len(data.classes), "args": self.experiment.model_args(net)},
            "net_config": str(net),
            **counted,
            "input_shape": list(data.input_shape),
            "mean": list(data.mean),
            "std": list(data.std),
            "classes": list(data.classes),
        }

    def _refinement(self, net: NetConfig) -> dict[str, Any]:
        """The config of a width search of the network: wider than it is, so that widths may move from one layer to another."""
        tree = self.config.model_dump(mode="json")
        recipe = tree["retrain"]
        return {key: tree[key] for key in ("seed", "device", "threads", "amp", "checkpoint_seconds", "data")} | {
            "model": {"name": MODEL, "args": self.experiment.model_args(net)},
            "space": {"bins": 10, "min_bins": 3, "widen": 1.25},
            "train": recipe,
            "score": {"calibration_images": tree["derive"]["calibration_images"], "additive": None},
            "retrain": dict(recipe),
        }

    # What was found --------------------------------------------------------------------------------------------------

    def record(self) -> DenseRecord:
        """What the last derivation found.

        Raises:
            UserError: nothing was derived yet.
        """
        file = self.folder / "search.json"
        if not file.is_file():
            raise UserError(f"{self.folder}: nothing was derived yet: bcnet dense derive {shell_word(self.folder)}")
        return read_record(file, DenseRecord, _WHAT)

    def found(self) -> tuple[Choice, NetConfig]:
        """The network of the last derivation."""
        best = self.record().best
        choice = Choice(tuple(best.path), tuple(best.heads), tuple(tuple(stack) for stack in best.stacks))
        return choice, read_net_config(best.net_config, f"{self.folder}/search.json")

    def retrain(self, net: NetConfig, name: str, seeds: Sequence[int]) -> TrainedNetwork:
        """Train a network from scratch over several seeds, on all training images; test images are looked at once, at the end.

        Finished seeds are kept, an unfinished one is resumed.

        Args:
            net: its blocks.
            name: of its folder and on pages.
            seeds: one training each.
        """
        folder = self.folder / "retrain" / name
        accuracies = [self._retrain_one(net, seed, folder / f"seed{seed}", f"{name}, seed {seed}") for seed in seeds]
        described = self._describe(net)
        counted = {cost: described[cost] for cost in ("flops", "params")}
        record = TrainedNetwork(name=name, net_config=str(net), acc=accuracies, seeds=list(seeds), costs=counted)
        if process_rank() == 0:
            record.write(self.folder / "retrain" / f"{name}.json")
        return record

    def _retrain_one(self, net: NetConfig, seed: int, folder: Path, label: str) -> float:
        config = self.config
        identity = f"{config.data.model_dump_json()} {config.retrain.model_dump_json()} {config.grid.stem_stride} {net} {seed}"
        result, checkpoint = folder / "result.json", folder / "checkpoint.pt"
        if result.exists():
            known = read_record(result, RetrainedNetwork, "the result of a retraining")
            if known.identity == identity:
                if process_rank() == 0:
                    checkpoint.unlink(missing_ok=True)  # killed between the two
                return known.accuracy
        network = self.experiment.train_network(net, seed, checkpoint=checkpoint, identity=identity, label=f"retrain {label}")
        return self._keep(network, net, seed, folder, identity)

    def _keep(self, network: nn.Module, net: NetConfig, seed: int, folder: Path, identity: str) -> float:
        test = evaluate(network, self.experiment.test, half=self.experiment.half)
        accuracy = 100 * test["accuracy"]
        if process_rank() == 0:
            save_network(folder, network, self._describe(net) | {"test_accuracy": accuracy, "seed": seed})
            RetrainedNetwork(identity=identity, accuracy=accuracy, cross_entropy=test["cross_entropy"]).write(folder / "result.json")
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        return accuracy

    def retrained(self) -> list[TrainedNetwork]:
        """Every network that was trained from scratch so far; what an earlier derivation had found is ``found before``."""
        files = sorted((self.folder / "retrain").glob("*.json"))
        known = [read_record(file, TrainedNetwork, "the result of a retraining") for file in files]
        now = self.record().best.net_config
        return [one.model_copy(update={"name": "found before"}) if one.name == FOUND and one.net_config != now else one for one in known]


def same_cost(record: DenseRecord) -> str:
    """The budget of what was found for a width search: its params where these were limited, else its FLOPs."""
    cost = "params" if record.budget is not None and record.budget.cost == "params" else "flops"
    return f"{cost}={int(record.best.costs[cost])}"


def _refuse_changes(folder: Path, searched: DenseConfig, asked: DenseConfig) -> None:
    keys = [key for key in differing_keys(searched, asked) if key.split(".")[0] in _FIXED_SECTIONS]
    if keys:
        raise UserError(f"{folder}: was searched with another {', '.join(keys[:4])}; use the same settings, or search into another folder")
