"""The one training loop: supernets by any strategy and plain networks alike, in one process or under torchrun."""

import inspect
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from bcnet.errors import Interrupted, Stopped, UserError, first_line, shown
from bcnet.kernels.pointwise import safe_convolutions
from bcnet.locks import locked
from bcnet.machine import autocast, memory, seed_dropout
from bcnet.models.copying import copy_network
from bcnet.models.layout import to_device
from bcnet.models.outputs import logits_of
from bcnet.progress import ProgressBar
from bcnet.seeds import STREAM_STEP, derive_seed
from bcnet.supernet.supernet import Supernet
from bcnet.tensors import refuse_not_finite
from bcnet.training.checkpoint import load_checkpoint, save_checkpoint
from bcnet.training.fairness import TrainingCounts
from bcnet.training.optimizer import clip_gradients, make_optimizer
from bcnet.training.records import LossRecords
from bcnet.training.schedule import lr_factor
from bcnet.training.strategies.base import Pass, plain_passes
from bcnet.training.watch import Watcher

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
        half: what to autocast to, bf16 or fp16; unset: not at all.
        seed: of the run.
        passes: what a step trains.
        records: where to note the losses of widths.
        checkpoint: file to save to and resume from; unset: neither.
        checkpoint_seconds: longest time between two saves.
        identity: a string that a checkpoint must carry to be continued here.
        label: shown beside the progress bar; empty: no bar.
        watchers: told how it goes, every `FLUSH_STEPS` steps.
        look: measures the model as it is, by name; it must leave everything as it was.
        look_steps: steps between two such looks.
        teacher: a trained network, from whose softmax every pass learns instead of the labels; it stays as it is.
        keeps_end: save the end of the training, too.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: TrainSource,
        recipe: RecipeConfig,
        *,
        device: torch.device,
        half: torch.dtype | None = None,
        seed: int = 0,
        passes: Callable[[int], list[Pass]] = plain_passes,
        records: LossRecords | None = None,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 60.0,
        identity: str = "",
        label: str = "",
        watchers: Sequence[Watcher] = (),
        look: Callable[[nn.Module], dict[str, float]] | None = None,
        look_steps: int = 0,
        teacher: nn.Module | None = None,
        keeps_end: bool = True,
    ) -> None:
        self.keeps_end = keeps_end
        self.watchers, self.look, self.look_steps = watchers, look, look_steps
        self.teacher = None if teacher is None else to_device(copy_network(teacher), device).eval()
        self.model = to_device(model, device).train()
        self.batches, self.recipe, self.device, self.half, self.seed = batches, recipe, device, half, seed
        self.passes, self.records, self.label = passes, records, label
        self.checkpoint, self.checkpoint_seconds, self.identity = checkpoint, checkpoint_seconds, identity
        self.total_steps = max(1, round(recipe.epochs * batches.steps_per_epoch))
        self.optimizer = make_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
        self.warmup_steps = min(round(recipe.warmup_epochs * batches.steps_per_epoch), self.total_steps - 1)
        self.ema = _make_ema(model, recipe.ema_decay)
        self._runner = _compiled(self.model, recipe.compile)
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
                than those it was going to train when the checkpoint was written. Or another process trains into the same file.
        """
        last = self.total_steps if until_step is None else min(until_step, self.total_steps)
        if self.step < last:
            self._refuse_other_steps()
        for parameter in self.model.parameters():  # in every life from its first step on, also of layers that few passes run
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        replica = _replicate(self._runner) if world_size() > 1 else None
        done_before, seconds_before = self.step, self.history.seconds
        started = saved = time.perf_counter()
        seen = ""
        bar = ProgressBar(self.label, self.total_steps, self.step)
        with self._alone(), self._catch_signals(), bar, _own_random_state(self.device), safe_convolutions(self.model):
            for watcher in self.watchers:
                watcher.begin(self.step)
            while self.step < last:
                self._train_step(replica)
                self.step += 1
                self._after_step()
                now = time.perf_counter()
                self.history.seconds = seconds_before + now - started
                rate = (self.step - done_before) * self.batches.batch_size / max(1e-9, now - started)
                if self.step % FLUSH_STEPS == 0 or self.step == last:
                    self._flush()
                    loss = mean(self.history.loss[-FLUSH_STEPS:])
                    bar.update(self.step, f"loss {loss:.3f}, {rate:,.0f} images/s{seen}")
                    self._tell({"loss": loss, "lr": self.rate(self.step - 1), "images_per_second": rate} | memory(self.device))
                else:  # losses are looked at now and then, but people want to know early how long it takes
                    bar.update(self.step, f"{rate:,.0f} images/s" if self.step - done_before < FLUSH_STEPS else "")
                if self.look is not None and (self.step == self.total_steps or self.step % self.look_steps == 0):
                    looked = self.look(self.trained)
                    seen = "".join(f", {name.replace('_', ' ')} {value:.2f}" for name, value in looked.items())
                    self._tell(looked)
                must_stop, must_save = self._agree(now - saved >= self.checkpoint_seconds)
                if must_stop:
                    self.save()
                    where = f"saved at step {self.step} of {self.total_steps}" if self.checkpoint else ""
                    raise Interrupted.by(Stopped(self._stop_signal), where)
                if must_save:
                    self.save()
                    saved = time.perf_counter()
            if self.keeps_end or self.step < self.total_steps:
                self.save()
        if self._stop_signal and world_size() == 1:  # it came after the last step
            raise Stopped(self._stop_signal)

    def _alone(self) -> AbstractContextManager[None]:
        """No other command trains into the same checkpoint meanwhile."""
        return nullcontext() if self.checkpoint is None or process_rank() != 0 else locked(self.checkpoint)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.recipe.lr * lr_factor(self.recipe, step, self.warmup_steps, self.total_steps, self.batches.steps_per_epoch)

    def _tell(self, row: dict[str, float]) -> None:
        for watcher in self.watchers:
            watcher.tell(self.step, row)

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
        rate = self.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        seed_dropout(derive_seed(self.seed, STREAM_STEP, self.step * world_size() + process_rank()), self.device)
        images, labels = self.batches.batch(self.step)
        passes = self.passes(self.step)
        self.optimizer.zero_grad(set_to_none=False)
        parts = list(zip(images.chunk(self.recipe.accumulate), labels.chunk(self.recipe.accumulate), strict=True))
        of_parts = [
            self._accumulate(passes, *part, share=len(part[1]) / len(labels), replica=replica, is_last=part is parts[-1]) for part in parts
        ]
        losses = of_parts[0] if len(parts) == 1 else [torch.stack(column).sum() for column in zip(*of_parts, strict=True)]
        self._update(self.optimizer)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        if self.counts is not None:
            self.counts.add(passes)
        self.history.passes += len(passes)
        self._pending.append((passes, losses))

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        """A step by the gradients, clipped; of fp16 it is left out where one has overflown, and the next losses are scaled by less."""
        self.scaler.unscale_(optimizer)
        clip_gradients(self.model, self.recipe)
        self.scaler.step(optimizer)
        self.scaler.update()

    def _accumulate(
        self, passes: list[Pass], images: Tensor, labels: Tensor, *, share: float, replica: DistributedDataParallel | None, is_last: bool
    ) -> list[Tensor]:
        """Add the gradients of a part of the batch; returns the loss of every pass, times the part's share of the images."""
        losses: list[Tensor] = []
        trained = None if self.teacher is None else self._taught(images)
        teacher = trained
        for number, one in enumerate(passes):
            if one.widths is not None:
                self.model.set_active_subnet(one.widths, one.side)  # type: ignore[operator]
            network = self._runner if replica is None else replica
            with _no_sync(replica, not is_last or number < len(passes) - 1):
                with autocast(self.device, self.half):
                    logits = logits_of(network(images))
                loss = self._loss(logits.float(), labels, teacher if one.distilled else trained)
                if share < 1:
                    loss = loss * share
                self.scaler.scale(loss * one.weight).backward()
            if number == 0 and trained is None:
                teacher = logits.detach().float().softmax(1)
            losses.append(loss.detach())
        return losses

    def _taught(self, images: Tensor) -> Tensor:
        """What the teacher says of the images: probabilities, images x classes."""
        assert self.teacher is not None
        with torch.no_grad(), autocast(self.device, self.half):
            logits = logits_of(self.teacher(images))
        return logits.float().softmax(1)

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
                why = f"lower the learning rate (lr={self.recipe.lr}){self._kept}"
                raise UserError(f"the loss is {part[0]} at step {first + offset}: {why}")
            self._record(passes, part)
            self.history.loss.append(sum(part) / len(part))
        self._pending.clear()

    @property
    def _kept(self) -> str:
        return f"; the last good checkpoint is {self.checkpoint}" if self.checkpoint and self.checkpoint.exists() else ""

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
        """Write the checkpoint, if there is a file for it (rank 0 only).

        Raises:
            UserError: weights or BN statistics are not finite, as after a last step that was too large; nothing is written.
        """
        self._flush()
        why = f"lower the learning rate (lr={self.recipe.lr}){self._kept}"
        refuse_not_finite(self.model, f"the training stands at step {self.step}, where", why)
        if self.checkpoint is None or process_rank() != 0:
            return
        state: dict[str, Any] = {
            "identity": self.identity,
            "step": self.step,
            "total_steps": self.total_steps,
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
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
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
        if state.get("identity") != self.identity:
            raise UserError(f"{self.checkpoint}: belongs to a run with another config; choose another folder")
        try:
            self._check_progress(state)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            if self.counts is not None:
                self.counts.restore([own.cpu().numpy() for own in state["counts"]])
            self.step, self.history = state["step"], History(**state["history"] | {"loss": state["history"]["loss"].tolist()})
            self._restore_more(state)
            if self.records is not None:
                self.records = LossRecords.from_list(self.records.most, state["records"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self.checkpoint}: does not fit this model: {first_line(error)}") from error
        refuse_not_finite(self.model, str(self.checkpoint))
        self._resumed, self._announced = True, state.get("next_passes")
        return True

    def _check_progress(self, state: dict[str, Any]) -> None:
        """Whether what counts the course of a training is of the right kind.

        Raises:
            ValueError: it is not.
        """
        step, history = state["step"], state["history"]
        if type(step) is not int or not 0 <= step <= self.total_steps:
            raise ValueError(f"step {shown(step)} of {self.total_steps}")
        known = vars(self.history) | dict(history)
        if len(known) > len(vars(self.history)) or type(known["passes"]) is not int or not isinstance(known["seconds"], float):
            raise ValueError(f"history {shown(history)}")
        if history["loss"].shape != (step,) or not bool(history["loss"].isfinite().all()):
            raise ValueError(f"losses of another number than {step}, or not finite")

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a stop after the current step; a second Ctrl-C stops at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._stop_signal and number == signal.SIGINT:
                raise Stopped(number)
            self._stop_signal = number
            if process_rank() == 0 and sys.stderr.isatty():  # not by print, which may be what was interrupted
                os.write(2, b"\nbcnet: stopping after this step; Ctrl-C once more stops at once\n")

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs it there decides
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _compiled(model: nn.Module, backend: str | None) -> nn.Module:
    """The model as ``torch.compile`` runs it, with the same parameters; itself without a backend."""
    if backend is None:
        return model
    try:
        compiled: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
    except Exception as error:  # torch's own type for a wrong name
        raise UserError(f"compile={backend!r} is no backend of torch.compile ({first_line(error)}): such as inductor") from error
    return compiled


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
