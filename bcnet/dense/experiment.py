"""The parts of a DenseNAS experiment, each built from the config when it is first used."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcnet.data.interfaces import EvalSource, Part
from bcnet.dense.architecture import Architecture
from bcnet.dense.config import DenseConfig
from bcnet.dense.costs import GridCosts, count_grid
from bcnet.dense.grid import Grid
from bcnet.dense.latency import read_latency
from bcnet.dense.search import Search
from bcnet.dense.supernet import SuperNetwork
from bcnet.errors import UserError
from bcnet.experiment import Resources
from bcnet.models.factory import build_model
from bcnet.models.net_config import NetConfig
from bcnet.seeds import STREAM_IMAGES, STREAM_MODEL, derive_seed
from bcnet.space.cost import Budget
from bcnet.training.train_width import train_width

MODEL = "densenas/chain"


class DenseExperiment(Resources):
    """Data, grid, costs and search of a config; it has no folder and writes nothing by itself.

    Args:
        config: the settings.
    """

    def __init__(self, config: DenseConfig) -> None:
        super().__init__(config)
        self.config = config

    # Images ----------------------------------------------------------------------------------------------------------

    @property
    def calibration(self) -> EvalSource:
        """Training images for BN statistics."""
        own = self.config.derive
        return self.data.eval_batches("train", own.batch_size, own.calibration_images)

    @property
    def validation(self) -> EvalSource:
        """Held-out images."""
        return self.data.eval_batches("val", self.config.derive.batch_size)

    @property
    def test(self) -> EvalSource:
        """Test images, which only networks trained from scratch see."""
        return self.data.eval_batches("test", self.config.derive.batch_size)

    # Grid and costs --------------------------------------------------------------------------------------------------

    @cached_property
    def grid(self) -> Grid:
        """The blocks and edges."""
        return Grid(self.config.grid)

    @cached_property
    def costs(self) -> GridCosts:
        """FLOPs and params, and a latency where there is a table."""
        table = self.config.cost.latency
        shape, classes = self.data.input_shape, len(self.data.classes)
        more = [] if table is None else [read_latency(table, self.grid, shape, classes)]
        return count_grid(self.grid, shape, classes, more)

    def parse_budget(self, text: str | None) -> Budget | None:
        """A budget such as ``flops=350M``.

        Raises:
            UserError: it cannot be read, or no network of the grid meets it; names the reachable range.
        """
        if text is not None and text.startswith("latency") and "latency" not in self.costs.names:
            raise UserError(f"budget {text!r}: a latency wants a table: cost.latency=FILE, made by bcnet dense latency")
        return None if text is None else Budget.parse(text, self.costs)

    # Search ----------------------------------------------------------------------------------------------------------

    def make_search(self, checkpoint: Path | None = None, identity: str = "") -> Search:
        """A search that has not begun.

        Args:
            checkpoint: file to save to and resume from; unset: neither.
            identity: a string that the checkpoint must carry to be continued.

        Raises:
            UserError: a budget out of reach, or no images held out; before any work.
        """
        config = self.config
        budget = self.parse_budget(config.cost.budget)
        if not self.data.num_images("val"):
            raise UserError("data.num_val is 0: an architecture is learned on training images that are held out")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, STREAM_MODEL))
            network = SuperNetwork(self.grid, len(self.data.classes), self.data.input_shape[0], superkernel=self.config.weights.superkernel)
        size = config.architecture.batch_size or config.weights.batch_size
        return Search(
            network,
            Architecture(self.grid),
            self.data.train_batches("train", config.weights.batch_size, config.seed),
            self.data.train_batches("val", size, derive_seed(config.seed, STREAM_IMAGES)),
            config,
            self.costs,
            budget,
            device=self.device,
            half=self.half,
            checkpoint=checkpoint,
            checkpoint_seconds=config.checkpoint_seconds,
            identity=identity,
            label="search",
        )

    def identity(self) -> str:
        """What ties a checkpoint to its settings; defaults say nothing, so that a setting that comes later orphans no older run."""
        config = self.config
        parts = {"seed", "data", "grid", "weights", "architecture", "cost"}
        tree = config.model_dump(mode="json", include=parts, exclude_defaults=True)
        table = config.cost.latency
        if table is not None:
            tree["cost"]["latency"] = hashlib.sha256(table.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    # Networks trained from scratch -----------------------------------------------------------------------------------

    def model_args(self, net: NetConfig) -> dict[str, Any]:
        """Arguments of the model that a network is: ``densenas/chain``."""
        return {"net_config": str(net), "in_channels": self.data.input_shape[0], "stem_stride": self.config.grid.stem_stride}

    def train_network(self, net: NetConfig, seed: int, part: Part = "full_train", **options: Any) -> nn.Module:
        """Train a network from scratch, on all training images.

        Args:
            net: its blocks.
            seed: of initial weights, order and augmentation.
            part: of the images; ``train`` leaves the held-out ones alone.
            options: ``checkpoint``, ``identity`` and ``label`` of a training that is to be resumed.
        """
        recipe, data = self.config.retrain, self.data
        network = build_model(MODEL, len(data.classes), seed=derive_seed(seed, STREAM_MODEL), args=self.model_args(net))
        (trained,) = train_width(
            [network],
            [data.train_batches(part, recipe.batch_size, seed)],
            recipe,
            seeds=[seed],
            input_shape=data.input_shape,
            device=self.device,
            half=self.half,
            checkpoint_seconds=self.config.checkpoint_seconds,
            **options,
        )
        return trained
