"""The one training loop: supernets by any strategy and plain networks alike, in one process or under torchrun."""

import inspect
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean as mean
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bcnet.config import RecipeConfig
from bcnet.data.interfaces import TrainSource
from bcnet.distributed import agree, process_rank, world_size
from bcnet.errors import Interrupted, UserError, first_line
from bcnet.files import remove_leftovers
from bcnet.kernels.pointwise import safe_convolutions
from bcnet.machine import autocast, seed_dropout
from bcnet.models.layout import to_device
from bcnet.models.outputs import logits_of
from bcnet.progress import ProgressBar
from bcnet.seeds import STREAM_STEP, derive_seed
from bcnet.supernet.supernet import Supernet
from bcnet.training.checkpoint import load_checkpoint, save_checkpoint
from bcnet.training.fairness import TrainingCounts
from bcnet.training.records import LossRecords
from bcnet.training.strategies.base import Pass, plain_passes

FLUSH_STEPS = 20  # steps between two looks at the losses, which wait for the device; then, too, processes agree on what to do


@dataclass
class History:
    """What a run remembers of its course.

    Attributes:
        loss: mean loss of the passes of every step (natural logarithm).
        seconds: training time of the whole run so far, all its processes' lives together.
        passes: forward and backward passes so far, each over one batch.
    """

    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    passes: int = 0


class Trainer:
    """Trains a model; its state can be saved after any step and continued bit for bit.

    Args:
        model: a `Supernet`, or a plain model (then ``passes`` is left out).
        batches: training batches.
        recipe: epochs, optimizer, schedule.
        device: where to train.
        bf16: autocast to bf16.
        seed: of the run.
        passes: what a step trains.
        records: where to note the losses of widths.
        checkpoint: file to save to and resume from; unset: neither.
        checkpoint_seconds: longest time between two saves.
        identity: a string that a checkpoint must carry to be continued here.
        label: shown beside the progress bar; empty: no bar.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: TrainSource,
        recipe: RecipeConfig,
        *,
        device: torch.device,
        bf16: bool = False,
        seed: int = 0,
        passes: Callable[[int], list[Pass]] = plain_passes,
        records: LossRecords | None = None,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 60.0,
        identity: str = "",
        label: str = "",
    ) -> None:
        self.model = to_device(model, device).train()
        self.batches, self.recipe, self.device, self.bf16, self.seed = batches, recipe, device, bf16, seed
        self.passes, self.records, self.label = passes, records, label
        self.checkpoint, self.checkpoint_seconds, self.identity = checkpoint, checkpoint_seconds, identity
        self.total_steps = max(1, round(recipe.epochs * batches.steps_per_epoch))
        self.optimizer = _make_optimizer(model, recipe)
        self.warmup_steps = min(round(recipe.warmup_epochs * batches.steps_per_epoch), self.total_steps - 1)
        self.ema = _make_ema(model, recipe.ema_decay)
        self.counts = TrainingCounts(model.space.groups, model.wide) if isinstance(model, Supernet) else None
        self.history = History()
        self.step = 0
        self._pending: list[tuple[list[Pass], list[Tensor]]] = []
        self._stop_signal = 0
        self._resumed, self._announced = False, None  # what a checkpoint said of its next step

    @property
    def trained(self) -> nn.Module:
        """The model to use afterwards: with averaged weights if the recipe keeps an average."""
        return self.model if self.ema is None else self.ema.module

    def run(self, until_step: int | None = None) -> None:
        """Train to the end (or to ``until_step``), then save.

        Raises:
            Interrupted: a signal asked to stop; the state was saved first.
            UserError: the loss became NaN or infinite; the last good checkpoint stays. Or the next step would train other subnets
                than those it was going to train when the checkpoint was written.
        """
        last = self.total_steps if until_step is None else min(until_step, self.total_steps)
        if self.step < last:
            self._refuse_other_steps()
        if self.checkpoint is not None and process_rank() == 0:
            remove_leftovers(self.checkpoint)
        replica = _replicate(self.model) if world_size() > 1 else None
        done_before, seconds_before = self.step, self.history.seconds
        started = saved = time.monotonic()
        bar = ProgressBar(self.label, self.total_steps, self.step)
        with self._catch_signals(), bar, _own_random_state(self.device), safe_convolutions(self.model):
            while self.step < last:
                self._train_step(replica)
                self.step += 1
                self._after_step()
                now = time.monotonic()
                self.history.seconds = seconds_before + now - started
                if self.step % FLUSH_STEPS == 0 or self.step == last:
                    self._flush()
                    rate = (self.step - done_before) * self.batches.batch_size / (now - started)
                    bar.update(self.step, f"loss {mean(self.history.loss[-FLUSH_STEPS:]):.3f}, {rate:,.0f} images/s")
                must_stop, must_save = self._agree(now - saved >= self.checkpoint_seconds)
                if must_stop:
                    self.save()
                    where = f"; saved at step {self.step} of {self.total_steps}, continue with --resume" if self.checkpoint else ""
                    raise Interrupted(f"stopped by {signal.Signals(self._stop_signal).name}{where}", self._stop_signal)
                if must_save:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _after_step(self) -> None:
        """What a trainer of another kind does between two steps."""

    def _agree(self, wants_to_save: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether to save. Each process has its own clock and signals, so they decide together, now and then."""
        if world_size() > 1 and self.step % FLUSH_STEPS:
            return False, False
        self._stop_signal, save = agree([self._stop_signal, int(wants_to_save)], self.device)
        return self._stop_signal != 0, bool(save)

    def _refuse_other_steps(self) -> None:
        """Raise if the steps so far were made by other passes than those to come."""
        ahead = self.passes(self.step)
        if self._announced is not None:
            is_other = self._announced != repr(ahead)
        else:  # a checkpoint of 0.1 does not say what it was going to train; its steps all had as many passes
            is_other = self._resumed and self.history.passes != self.step * len(ahead)
        if is_other:
            raise UserError(
                f"{self.checkpoint}: step {self.step} would train other subnets than when it was saved: begun by another version of "
                "bcnet or of the strategy; choose another folder"
            )

    def _train_step(self, replica: DistributedDataParallel | None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * cosine_with_warmup(self.step, self.warmup_steps, self.total_steps)
        seed_dropout(derive_seed(self.seed, STREAM_STEP, self.step * world_size() + process_rank()), self.device)
        images, labels = self.batches.batch(self.step)
        passes = self.passes(self.step)
        self.optimizer.zero_grad(set_to_none=False)
        losses: list[Tensor] = []
        teacher: Tensor | None = None
        for number, one in enumerate(passes):
            if one.widths is not None:
                self.model.set_active_subnet(one.widths, one.side)  # type: ignore[operator]
            network = self.model if replica is None else replica
            with _no_sync(replica, number < len(passes) - 1):
                with autocast(self.device, self.bf16):
                    logits = logits_of(network(images))
                loss = self._loss(logits.float(), labels, teacher if one.distilled else None)
                (loss * one.weight).backward()
            if number == 0:
                teacher = logits.detach().float().softmax(1)
            losses.append(loss.detach())
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        if self.counts is not None:
            self.counts.add(passes)
        self.history.passes += len(passes)
        self._pending.append((passes, losses))

    def _loss(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        if teacher is not None:
            return F.cross_entropy(logits, teacher)
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)

    def _flush(self) -> None:
        """Look at the losses since the last flush: stop if one is not finite, keep the records."""
        if not self._pending:
            return
        values = torch.stack([loss for _, losses in self._pending for loss in losses])
        if world_size() > 1:
            torch.distributed.all_reduce(values)
            values /= world_size()
        flat: list[float] = values.tolist()
        first = self.step - len(self._pending)
        position = 0
        for offset, (passes, losses) in enumerate(self._pending):
            part = flat[position : position + len(losses)]
            position += len(losses)
            if not all(map(math.isfinite, part)):
                kept = f"; the last good checkpoint is {self.checkpoint}" if self.checkpoint and self.checkpoint.exists() else ""
                raise UserError(f"the loss is {part[0]} at step {first + offset}: lower the learning rate (lr={self.recipe.lr}){kept}")
            self._record(passes, part)
            self.history.loss.append(sum(part) / len(part))
        self._pending.clear()

    def _record(self, passes: list[Pass], losses: list[float]) -> None:
        if self.records is None:
            return
        by_widths: dict[tuple[int, ...], list[float]] = {}
        taught = any(one.distilled for one in passes)  # the teacher's loss is of another kind
        for one, loss in zip(passes, losses, strict=True):
            if one.widths is not None and one.distilled == taught:
                by_widths.setdefault(one.widths, []).append(loss)
        for widths, values in by_widths.items():
            self.records.add(sum(values) / len(values), widths)

    # Saving and resuming ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, if there is a file for it (rank 0 only)."""
        self._flush()
        if self.checkpoint is None or process_rank() != 0:
            return
        state: dict[str, Any] = {
            "identity": self.identity,
            "step": self.step,
            "next_passes": repr(self.passes(self.step)),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": vars(self.history) | {"loss": torch.tensor(self.history.loss, dtype=torch.float64)},
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.counts is not None:
            state["counts"] = [torch.from_numpy(own.copy()) for own in self.counts.counts]
        if self.records is not None:
            state["records"] = self.records.to_list()
        save_checkpoint(self.checkpoint, state | self._more_state())

    def _more_state(self) -> dict[str, Any]:
        """What a trainer of another kind has in its checkpoint beside this."""
        return {}

    def _restore_more(self, state: dict[str, Any]) -> None:
        """Take that from a checkpoint."""

    def resume(self) -> bool:
        """Continue from the checkpoint; returns whether there was one.

        Raises:
            UserError: it is damaged or belongs to another run.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        state = load_checkpoint(self.checkpoint, self.device)
        if state["identity"] != self.identity:
            raise UserError(f"{self.checkpoint}: belongs to a run with another config; choose another folder")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if self.counts is not None:
                self.counts.restore([own.cpu().numpy() for own in state["counts"]])
            self._restore_more(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{self.checkpoint}: does not fit this model: {first_line(error)}") from error
        self.step, self.history = state["step"], History(**state["history"] | {"loss": state["history"]["loss"].tolist()})
        self._resumed, self._announced = True, state.get("next_passes")
        if self.records is not None:
            self.records = LossRecords.from_list(self.records.most, state["records"])
        return True

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a stop after the current step; a second Ctrl-C stops at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._stop_signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_signal = number
            if process_rank() == 0:
                print("\nbcnet: stopping after this step; Ctrl-C once more stops at once", file=sys.stderr, flush=True)

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs it there decides
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if recipe.decay_norm_and_bias or p.ndim > 1]
    kept = [p for p in parameters if not (recipe.decay_norm_and_bias or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    used = [group for group in groups if group["params"]]
    return torch.optim.SGD(used, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def cosine_with_warmup(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor of the peak learning rate: linear to 1 over ``warmup_steps``, then half a cosine down to 0 at the end."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def _make_ema(model: nn.Module, decay: float | None) -> AveragedModel | None:
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _replicate(model: nn.Module) -> DistributedDataParallel:
    """The model as one of several that average their gradients; BN statistics stay each process's own.

    Unused parameters are looked for, though most networks have none: otherwise the first step of every life orders the gradients
    in buckets of its own, more than two processes add them up in another order there, and a resumed training is not the same.
    """
    sync = (
        "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers"
    )
    options: dict[str, Any] = {sync: False, "find_unused_parameters": True}
    return DistributedDataParallel(model, **options)


def _no_sync(replica: DistributedDataParallel | None, more_passes: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over the processes once per step, in its last pass."""
    return replica.no_sync() if replica is not None and more_passes else nullcontext()


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave the caller's global random state as it was; let cuDNN use only algorithms that repeat bit for bit."""
    cudnn = torch.backends.cudnn
    repeatable = cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=cudnn.allow_tf32)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), repeatable:
        yield
