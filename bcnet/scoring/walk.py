"""Score many width vectors in one walk over the network, up to a whole space.

In lexicographic order neighbours share their first groups, so most results of one width vector serve the next (see
`bcnet.scoring.plan`). Sums over channels grow bin by bin. Images pass in batches: one walk per batch, first to collect the
BN statistics of every context, then to evaluate with them; memory is bounded by the batch and the block of widths.

A score does not depend on which other width vectors are asked for.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcnet.data.interfaces import EvalSource
from bcnet.machine import autocast
from bcnet.scoring.evaluate import Evaluation, Totals
from bcnet.scoring.metrics import METRICS, Metric
from bcnet.scoring.plan import NotShareable, Plan, Step, make_plan, out_of_place
from bcnet.space.widths import SIDES, Segment, Side, Widths
from bcnet.supernet.layers import Slices
from bcnet.supernet.supernet import Supernet

LOGITS_AT_ONCE = 256
_Context = tuple[int, ...]


class Walker:
    """Evaluates width vectors of a supernet together.

    Args:
        supernet: trained.
        input_shape: ``(C, H, W)`` of one image.
        half: what to autocast to, bf16 or fp16; unset: not at all.
        whole_layers: see `bcnet.scoring.plan.make_plan`.

    Raises:
        NotShareable: torch.fx cannot trace the network, or what was traced computes something else.
    """

    def __init__(
        self, supernet: Supernet, input_shape: Sequence[int], *, half: torch.dtype | None = None, whole_layers: bool = False
    ) -> None:
        self.supernet, self.space, self.half = supernet, supernet.space, half
        supernet.eval()
        supernet.set_active_subnet(self.space.full, "left")
        self.plan = make_plan(supernet, input_shape, whole_layers=whole_layers)
        self._prove(input_shape)

    @property
    def bytes_per_image(self) -> int:
        """Memory for the results that outlive their step (at fp32)."""
        kept = [entries for step, entries in zip(self.plan.steps, self.plan.entries, strict=True) if step.keep]
        return 4 * (sum(kept) + max(self.plan.entries))

    @property
    def bytes_per_widths(self) -> int:
        """Memory for the BN statistics of one width vector, as if it shared none."""
        norms: list[Any] = [self.plan.modules[str(step.node.target)] for step in self.plan.steps if step.is_norm]
        return max(1, 8 * sum(len(norm._buffers["running_mean"]) for norm in norms if norm._buffers["running_mean"] is not None))

    def evaluate(
        self,
        wanted: Sequence[Widths],
        side: Side,
        calibration: EvalSource | None,
        validation: EvalSource,
        *,
        metrics: Sequence[Metric] = tuple(METRICS.values()),
        tick: Callable[[float], None] = lambda share: None,
        reference: Tensor | None = None,
    ) -> list[Evaluation]:
        """Calibrate and evaluate width vectors on one side.

        Args:
            wanted: in lexicographic order, each once.
            side: ``left`` or ``right``.
            calibration: training images; ``None``: BN normalises every batch of validation images by its own statistics.
            validation: images to evaluate on.
            metrics: what to measure.
            tick: told which share of the work is done, in 0..1.
            reference: `bcnet.scoring.evaluate.log_probabilities` on the validation images, to measure divergences from.
        """
        device = next(self.supernet.parameters()).device
        total = len(calibration or ()) + len(validation)
        statistics = _Statistics()
        done = 0
        for images, _ in calibration or ():
            for _ in self._walk(images, wanted, side, statistics, collect=True):
                pass
            statistics.batches += 1
            done += len(images)
            tick(done / total)
        totals = Totals(len(wanted), metrics, reference, device)
        for images, labels in validation:
            with closing(self._walk(images, wanted, side, None if calibration is None else statistics, collect=False)) as logits:
                for start in range(0, len(wanted), LOGITS_AT_ONCE):
                    totals.add(torch.stack(list(islice(logits, LOGITS_AT_ONCE))), labels, start)
            totals.end_batch(len(images))
            done += len(images)
            tick(done / total)
        return totals.means()

    def multiply_adds(self, wanted: Iterable[Widths]) -> Iterator[tuple[int, int]]:
        """Of convolutions and linear layers for one image, of each width vector: by itself, and in a walk after those before it."""
        table = self.supernet.channel_table
        top = _channels(table, self.space.full)
        before: dict[int, tuple[_Context, int]] = {}
        layers = [(number, step.layer) for number, step in enumerate(self.plan.steps) if step.layer and step.layer.kind != "norm"]
        for widths in wanted:
            active = _channels(table, widths)
            alone = shared = 0
            for number, layer in layers:
                step = self.plan.steps[number]
                if step.body is not None and step.body.is_skipped(active):
                    continue
                full = _entries(layer.outputs, top) if step.group is not None else _entries(layer.outputs, active)
                inputs = layer.channels_per_group or _entries(layer.inputs, active)
                alone += layer.positions * layer.kernel * _entries(layer.outputs, active) * inputs
                context = step.context(widths)
                known, had = before.get(number, ((), 0))
                had = had if known == context and had <= inputs else 0
                if known != context or had != inputs:
                    shared += layer.positions * layer.kernel * full * (inputs - had)
                    before[number] = context, inputs
            yield alone, shared

    # The walk ---------------------------------------------------------------------------------------------------------

    def _walk(
        self, images: Tensor, wanted: Sequence[Widths], side: Side, statistics: "_Statistics | None", *, collect: bool
    ) -> Generator[Tensor, None, None]:
        """Logits of every width vector, or BN statistics only; without statistics, logits by those of the batch."""
        steps = self.plan.before_norms() if collect else list(range(len(self.plan.steps)))
        walk = _Walk(self.plan, self.supernet, images, side, statistics, collect)
        dirty: dict[frozenset[int], list[int]] = {}
        before: Widths | None = None
        with torch.no_grad(), _norms(self.plan, collect or statistics is None, track=statistics is not None):
            for widths in wanted:
                to_do = steps
                if before is not None:
                    changed = frozenset(g for g, (k, old) in enumerate(zip(widths, before, strict=True)) if k != old)
                    if changed not in dirty:
                        dirty[changed] = self.plan.dirty(changed, steps)
                    to_do = dirty[changed]
                with autocast(images.device, self.half):
                    walk.advance(widths, to_do)
                before = widths
                if not collect:
                    yield walk.values[self.plan.result]

    def _prove(self, input_shape: Sequence[int]) -> None:
        """Compare logits of a few width vectors with the supernet's own, at the BN statistics that it has."""
        space, net = self.space, self.supernet
        images = torch.randn(4, *input_shape, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()).device)
        mixed = tuple(group.indices[g % len(group.indices)] for g, group in enumerate(space.groups))
        for side in SIDES:
            wanted = sorted({space.narrowest, mixed, space.full})
            walk = _Walk(self.plan, net, images, side, None, False)
            with torch.no_grad():
                for widths in wanted:
                    walk.advance(widths, range(len(self.plan.steps)))
                    shared = walk.values[self.plan.result].clone()
                    net.set_active_subnet(widths, side)
                    logits = net(images)
                    scale = float(logits.abs().max()) + 1e-12
                    if shared.shape != logits.shape or not float((shared - logits).abs().max()) <= 1e-3 * scale:
                        raise NotShareable(f"{space.encode(widths)} ({side}): what torch.fx traced computes other logits")


class _Statistics:
    """Sums of batch means and variances for every BN layer in every context."""

    def __init__(self) -> None:
        self.batches = 0
        self._sums: dict[int, dict[_Context, list[Tensor]]] = defaultdict(dict)
        self._last: dict[tuple[int, _Context], int] = {}

    def add(self, step: int, context: _Context, vectors: list[Tensor]) -> None:
        """Count the statistics of a batch, once if the walk comes by again."""
        if self._last.get((step, context)) == self.batches:
            return
        self._last[step, context] = self.batches
        known = self._sums[step].setdefault(context, [torch.zeros_like(vector) for vector in vectors])
        for total, vector in zip(known, vectors, strict=True):
            total += vector

    def mean(self, step: int, context: _Context) -> list[Tensor]:
        """The mean over the batches."""
        return [total / self.batches for total in self._sums[step][context]]


class _Walk:
    """The results of all operations for one batch of images and the width vector at hand."""

    def __init__(self, plan: Plan, supernet: Supernet, images: Tensor, side: Side, statistics: _Statistics | None, collect: bool) -> None:
        self.plan, self.images, self.side, self.statistics, self.collect = plan, images, side, statistics, collect
        self.values: dict[int, Any] = {}
        self.table = supernet.channel_table
        self.space = supernet.space
        self.top = _channels(self.table, self.space.full)
        self.numbers = {step.node: number for number, step in enumerate(plan.steps)}
        self.summed: dict[int, tuple[_Context, int]] = {}

    def advance(self, widths: Widths, dirty: Sequence[int]) -> None:
        """Compute the given steps for a width vector."""
        self.widths, self.active = widths, _channels(self.table, widths)
        last_use = {source: number for number in dirty for source in self.plan.steps[number].inputs}
        for number in dirty:
            step = self.plan.steps[number]
            self.values[number] = self._run(number, step)
            for source in step.inputs:
                if last_use[source] == number and not self.plan.steps[source].keep:
                    self.values.pop(source, None)

    def _run(self, number: int, step: Step) -> Any:
        node = step.node
        if step.body is not None and step.body.is_skipped(self.active):
            return self._read_cut(step.body.source) if number == step.body.last else None
        if node.op == "placeholder":
            return self.images
        if step.layer is not None:
            return self._run_layer(number, step, self.plan.modules[step.layer.name])
        arguments: Any = fx.map_arg(node.args, lambda one: self._read(self.numbers[one], step))
        keywords = dict(fx.map_arg(node.kwargs, lambda one: self._read(self.numbers[one], step)))
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.plan.modules[owner], name)
        if node.op == "call_module":
            module = self.plan.modules[str(node.target)]
            if step.is_norm:
                return self._run_norm(number, step, module, *arguments)
            with _not_in_place(module, step):
                return module(*arguments, **keywords)
        if not step.in_place:
            keywords |= {"inplace": False} if "inplace" in keywords else {}
        target: Any = node.target if step.in_place else out_of_place(node.target)
        return target(*arguments, **keywords) if node.op == "call_function" else getattr(arguments[0], target)(*arguments[1:], **keywords)

    def _read(self, source: int, step: Step) -> Any:
        """A result, cut to the active channels unless the step takes them all."""
        return self.values[source] if self.plan.steps[source].group == step.group else self._read_cut(source)

    def _channels(self, value: Tensor, group: int, start: int, stop: int) -> Tensor:
        """Channels ``start..stop``, counted from the side's end, of all that a group can have."""
        begin = start if self.side == "left" else self.top[group] - stop
        return value.narrow(1, begin, stop - start)

    def _run_layer(self, number: int, step: Step, module: Any) -> Tensor:
        layer, slices = step.layer, module.slices
        assert layer is not None
        outputs = self.top if step.group is not None else self.active
        if step.is_norm:
            slices.select(outputs, self.side)
            return self._run_norm(number, step, module, self._read(step.inputs[0], step))
        if layer.channels_per_group:
            slices.select(outputs, self.side)
            result: Tensor = module(self._read(step.inputs[0], step))
            return result
        if step.summed is None:
            slices.select(outputs, self.side, inputs=self.active)
            result = module(self._read_cut(step.inputs[0]))
            return result
        return self._sum(number, step, module, slices, outputs)

    def _read_cut(self, source: int) -> Any:
        """A result, cut to the active channels."""
        value, group = self.values[source], self.plan.steps[source].group
        return value if group is None else self._channels(value, group, 0, self.active[group])

    def _sum(self, number: int, step: Step, module: Any, slices: Slices, outputs: Sequence[int]) -> Tensor:
        """Sum over channels bin by bin, going on from the last width of the same context."""
        group = step.summed
        assert group is not None
        wanted = self.widths[group]
        context = step.context(self.widths)
        known, reached = self.summed.get(number, ((), 0))
        if known != context or reached > wanted:
            reached = 0
        total: Tensor | None = self.values[number] if reached else None
        source = self.values[step.inputs[0]]
        smallest = self.space.groups[group].smallest
        for k in range(max(reached + 1, smallest), wanted + 1):
            start, stop = (self.table[group][k - 1] if k > smallest else 0), self.table[group][k]
            slices.select(outputs, self.side, inputs=self.active)
            slices.select_inputs(start, stop, self.side)
            part = module(self._channels(source, group, start, stop))
            total = part if total is None else total.add_(part)
        self.summed[number] = context, wanted
        assert total is not None
        return total

    def _run_norm(self, number: int, step: Step, module: Any, x: Tensor) -> Tensor:
        has_statistics = self.statistics is not None and module.running_mean is not None
        if has_statistics and not self.collect:
            _write_statistics(module, *self.statistics.mean(number, step.context(self.widths)))  # type: ignore[union-attr]
        with _not_in_place(module, step):
            result: Tensor = module(x)
        if has_statistics and self.collect:
            statistics = [module.running_mean, module.running_var]
            self.statistics.add(number, step.context(self.widths), statistics)  # type: ignore[union-attr]
        return result


def _channels(table: Sequence[Sequence[int]], widths: Sequence[int]) -> list[int]:
    return [row[k] for row, k in zip(table, widths, strict=True)]


def _entries(segments: Sequence[Segment], channels: Sequence[int]) -> int:
    return sum(segment.entries(channels) for segment in segments)


@contextmanager
def _not_in_place(module: nn.Module, step: Step) -> Iterator[None]:
    """Keep an operation from overwriting a result that others read."""
    forbidden = [one for one in module.modules() if getattr(one, "inplace", False)] if not step.in_place and not step.is_norm else []
    for one in forbidden:
        one.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for one in forbidden:
            one.inplace = True  # type: ignore[assignment]


def _write_statistics(norm: Any, mean: Tensor, var: Tensor) -> None:
    """Set the running statistics of a BN layer, slimmable or plain."""
    if hasattr(norm, "slices"):
        norm.write_statistics(mean, var)
    else:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


@contextmanager
def _norms(plan: Plan, collect: bool, *, track: bool = True) -> Iterator[None]:
    """BN layers either go by the statistics of one batch, which they write into their buffers if asked, or use what stands there."""
    norms: list[Any] = [plan.modules[str(step.node.target)] for step in plan.steps if step.is_norm]
    before = [(norm.momentum, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.momentum, norm.track_running_stats = 1.0, track
        norm.train(collect)
        if collect and track and norm.running_mean is not None:
            norm.reset_running_stats()
    try:
        yield
    finally:
        for norm, (momentum, track) in zip(norms, before, strict=True):
            norm.momentum, norm.track_running_stats = momentum, track
            norm.eval()
