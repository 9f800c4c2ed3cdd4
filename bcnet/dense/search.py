"""The search: weights of the super network by SGD, its architecture by Adam on held-out images, in turns (section 3.4)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bcnet.data.interfaces import TrainSource
from bcnet.dense.architecture import Architecture, ExpectedCost
from bcnet.dense.config import DenseConfig
from bcnet.dense.costs import GridCosts
from bcnet.dense.grid import Grid
from bcnet.dense.paths import Scores, most_probable
from bcnet.dense.results import EpochRecord
from bcnet.dense.sampling import keep_mass, sample_operations
from bcnet.dense.schedule import OperationCounts, Schedule, Step
from bcnet.dense.supernet import Active, SuperNetwork
from bcnet.distributed import average_gradients, process_rank, world_size
from bcnet.errors import UserError
from bcnet.kernels.depthwise import fast_depthwise
from bcnet.machine import autocast, seed_dropout
from bcnet.seeds import STREAM_STEP, derive_seed
from bcnet.space.cost import Budget
from bcnet.training.schedule import lr_factor
from bcnet.training.strategies.base import Pass
from bcnet.training.trainer import Trainer


class Search(Trainer):
    """Searches a grid; its state can be saved after any step and continued bit for bit.

    Args:
        network: the super network.
        architecture: its parameters.
        batches: images for the weights.
        held_out: images for the architecture.
        config: the settings.
        costs: of the grid.
        budget: what the network that is found may cost.
        options: further arguments of `Trainer`.
    """

    def __init__(
        self,
        network: SuperNetwork,
        architecture: Architecture,
        batches: TrainSource,
        held_out: TrainSource,
        config: DenseConfig,
        costs: GridCosts,
        budget: Budget | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, batches, config.weights, seed=config.seed, **options)
        self.network, self.held_out, self.settings, self.costs, self.budget = network, held_out, config, costs, budget
        self.architecture = architecture.to(self.device)
        self.grid: Grid = network.grid
        learned = config.architecture
        self.schedule = Schedule(int(config.weights.epochs), learned.start_epoch, batches.steps_per_epoch, held_out.steps_per_epoch)
        self.total_steps = self.schedule.total
        self.weight_steps = self.schedule.epochs * self.schedule.weight_steps
        self.warmup_steps = min(round(config.weights.warmup_epochs * batches.steps_per_epoch), self.weight_steps - 1)
        if config.weights.optimizer == "sgd" and config.weights.momentum:
            for parameter in network.parameters():  # fused SGD wants all of them at once, and operations come in one by one
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.adam = torch.optim.Adam(
            [p for p in self.architecture.parameters() if p.numel()],
            lr=learned.lr,
            betas=learned.betas,
            weight_decay=learned.weight_decay,
        )
        self.minimised = config.cost.minimise or (budget.cost if budget else "flops")
        if self.minimised not in costs.names:
            raise UserError(f"cost.minimise: {self.minimised!r} is none of {', '.join(costs.names)}")
        self.expected = {name: ExpectedCost(self.architecture, cost) for name, cost in costs.costs.items()}
        self.cost_weight = config.cost.weight
        self.course: list[EpochRecord] = []
        shapes = self.architecture.head.shape, self.architecture.stack.shape
        self.operations = OperationCounts(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))

    def run(self, until_step: int | None = None) -> None:
        """Search to the end (or to ``until_step``), then save; raises as `Trainer.run` does."""
        with fast_depthwise(self.network):
            super().run(until_step)

    def rate(self, step: int) -> float:
        """The learning rate of a step: of the weights, or of the architecture."""
        one = self.schedule.at(step)
        return self._rate(one.number) if one.kind == "weights" else self.settings.architecture.lr

    def _rate(self, number: int) -> float:
        """The learning rate of a step of the weights, counted without the architecture's."""
        steps_per_epoch = self.batches.steps_per_epoch
        return self.recipe.lr * lr_factor(self.recipe, number, self.warmup_steps, self.weight_steps, steps_per_epoch)

    # Steps -----------------------------------------------------------------------------------------------------------

    def _train_step(self, replica: DistributedDataParallel | None) -> None:
        seed_dropout(derive_seed(self.seed, STREAM_STEP, self.step * world_size() + process_rank()), self.device)
        loss = self.take(self.schedule.at(self.step), replica)
        self.history.passes += 1
        self._pending.append(([Pass()], [loss]))

    def take(self, step: Step, replica: nn.Module | None = None) -> Tensor:
        """Make a step, and nothing around it.

        Args:
            step: which one.
            replica: the super network as one of several that average their gradients; unset: alone.

        Returns:
            Its cross-entropy.
        """
        self.architecture.temperature = self.temperature(step.epoch)
        return self._train_weights(step, replica or self.network) if step.kind == "weights" else self._train_architecture(step)

    def _train_weights(self, step: Step, network: nn.Module) -> Tensor:
        rate = self._rate(step.number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        heads, stacks = self._sample(1, step.number)
        self.network.active = Active(self.architecture.edges().detach(), heads, stacks)
        images, labels = self.batches.batch(step.number)
        self.optimizer.zero_grad(set_to_none=True)  # what is not sampled is neither moved nor decayed
        loss = self._loss(self._logits(network, images), labels, None)
        self.scaler.scale(loss).backward()
        self._update(self.optimizer)
        self.operations.add(heads, stacks)
        return loss.detach()

    def _train_architecture(self, step: Step) -> Tensor:
        architecture = self.architecture
        heads, stacks = self._sample(2, step.number)
        before = [part.detach().clone() for part in (architecture.head, architecture.stack)]
        self.adam.zero_grad(set_to_none=True)
        images, labels = self.held_out.batch(step.number)
        with _frozen(self.network):
            loss = self.architecture_loss(images, labels, heads, stacks)
            term = self.expected[self.minimised]().log() / math.log(self.settings.cost.base)
            self.scaler.scale(loss + self.cost_factor(step.epoch) * term).backward()
        average_gradients(architecture.parameters())
        self.scaler.step(self.adam)
        self.scaler.update()
        with torch.no_grad():
            for parameter, old, used in zip((architecture.head, architecture.stack), before, (heads, stacks), strict=True):
                parameter.copy_(keep_mass(parameter, old, used.to(parameter.device), architecture.temperature))
        return loss.detach()

    def architecture_loss(self, images: Tensor, labels: Tensor, heads: Tensor, stacks: Tensor) -> Tensor:
        """Cross-entropy of the super network with pairs of operations, each mixed by the softmax over the two.

        Args:
            images: ``(N, C, H, W)``.
            labels: ``(N,)``.
            heads: numbers of the operations of every edge ``(edges, 2)``.
            stacks: the same of every layer.
        """
        architecture = self.architecture
        pairs = ((architecture.head, heads), (architecture.stack, stacks))
        shares = [(p.gather(1, used.to(p.device)) / architecture.temperature).softmax(1) if used.numel() else None for p, used in pairs]
        self.network.active = Active(architecture.edges(), heads, stacks, *shares)
        return F.cross_entropy(self._logits(self.network, images), labels)

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        with autocast(self.device, self.half):
            logits: Tensor = network(images)
        return logits if self.half is None else logits.float()

    def _sample(self, count: int, number: int) -> tuple[Tensor, Tensor]:
        how, architecture = self.settings.weights.sampling, self.architecture
        parts = (architecture.heads(), architecture.stacks())
        heads, stacks = (sample_operations(p.detach(), count, how, seed=self.seed, step=number, part=part) for part, p in enumerate(parts))
        return heads, stacks

    def temperature(self, epoch: int) -> float:
        """What parameters are divided by in an epoch."""
        learned = self.settings.architecture
        if learned.final_temperature is None:
            return learned.temperature
        done = max(0, epoch - self.schedule.start) / max(1, self.schedule.epochs - 1 - self.schedule.start)
        return float(learned.temperature * (learned.final_temperature / learned.temperature) ** done)

    def cost_factor(self, epoch: int) -> float:
        """Factor of the cost's term in an epoch, its warm-up included."""
        warmup = self.settings.cost.warmup_epochs
        grown = min(1.0, (epoch - self.schedule.start + 1) / (warmup + 1))
        return self.cost_weight * grown

    # Epochs ----------------------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        step = self.schedule.at(self.step - 1)
        if step.ends_epoch:
            self._flush()
            self._end_epoch(step.epoch)

    def _end_epoch(self, epoch: int) -> None:
        losses = self.history.loss
        searches = epoch >= self.schedule.start
        weights = losses[-self.schedule.weight_steps :]
        tail = self.schedule.weight_steps + self.schedule.architecture_steps
        held_out = losses[-tail : -self.schedule.weight_steps] if searches else []
        choice = most_probable(self.grid, Scores.of(self.architecture))
        derived = self.costs.all_of(choice)
        with torch.no_grad():
            expected = {name: float(cost()) for name, cost in self.expected.items()}
        row = EpochRecord(
            epoch=epoch,
            loss=sum(weights) / len(weights),
            held_out_loss=sum(held_out) / len(held_out) if held_out else None,
            cost_weight=self.cost_factor(epoch) if searches else 0.0,
            expected=expected,
            derived={name: float(value) for name, value in derived.items()},
            path=list(choice.path),
            shares=self.architecture.operation_shares(),
            temperature=self.architecture.temperature,
        )
        self.course.append(row)
        if searches and self.budget is not None:
            own = self.settings.cost
            over = math.log(derived[self.budget.cost] / self.budget.limit)
            self.cost_weight = min(own.limit, max(-own.limit, self.cost_weight + own.rate * over))

    # Saving and resuming ---------------------------------------------------------------------------------------------

    def _more_state(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture.state_dict(),
            "adam": self.adam.state_dict(),
            "cost_weight": self.cost_weight,
            "course": [row.model_dump() for row in self.course],
            "operations": [self.operations.heads, self.operations.stacks],
        }

    def _restore_more(self, state: dict[str, Any]) -> None:
        self.architecture.load_state_dict(state["architecture"])
        self.adam.load_state_dict(state["adam"])
        self.cost_weight = state["cost_weight"]
        self.course = [EpochRecord(**row) for row in state["course"]]
        self.operations = OperationCounts(*(part.cpu() for part in state["operations"]))
        if self.step:
            self.architecture.temperature = self.temperature(self.schedule.at(self.step - 1).epoch)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Without gradients of the weights: half of the work of a step for the architecture."""
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in weights:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in weights:
            parameter.requires_grad_(True)
