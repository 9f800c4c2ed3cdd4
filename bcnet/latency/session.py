"""The measurement of a table: a plan of networks, each a line of a file that a later process goes on from."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from bcnet.latency.backends import Backend, deploy
from bcnet.latency.blocks import Block, find_blocks
from bcnet.latency.design import cover_pairs
from bcnet.latency.fit import ANY_SCALE, SCALES, MeasuredNetwork, check, fit_layers, fit_line, share_covered, sum_of
from bcnet.latency.part import PartFile
from bcnet.latency.table import FORMAT, LatencyMeta, LatencyNoise, LatencyTable, describe_groups
from bcnet.latency.timing import Clock, TimedNetwork, clock_of, random_images, visit
from bcnet.locks import locked
from bcnet.machine import HALF_TYPES, device_name
from bcnet.models.copying import copy_network
from bcnet.models.layout import fit_layout, to_device
from bcnet.progress import ProgressBar
from bcnet.space.sampling import spread_sample
from bcnet.space.widths import Space, Widths
from bcnet.supernet.supernet import Supernet
from bcnet.version import __version__

PART_FORMAT = "bcnet-latency-part-1"
FULL_EVERY = 6  # networks: then the full one again


@dataclass(frozen=True)
class LatencySettings:
    """What is measured, and how.

    Attributes:
        model: its name.
        num_classes: logits.
        input_shape: ``(C, H, W)`` of one image.
        batch_size: images at once.
        amp: autocast.
        seconds: for one network, the reference that runs in turns with it included.
        repeats: passes of each network instead.
        backend: what runs whole networks; single layers are timed in PyTorch all the same.
        times: how often every pair of widths is measured.
        most: networks measured layer by layer, at most.
        checks: networks measured as a whole to fit overhead and scale, and as many again to check what comes out.
        seed: of the choice of networks.
        args: the model is made with, as of ``model.args``.
    """

    model: str
    num_classes: int
    input_shape: tuple[int, ...]
    batch_size: int = 1
    amp: Literal["off", "bf16", "fp16"] = "off"
    seconds: float = 1.0
    repeats: int | None = None
    times: int = 3
    most: int = 300
    checks: int = 20
    seed: int = 0
    backend: Backend = "eager"
    args: Mapping[str, Any] = field(default_factory=dict)


Kind = Literal["blocks", "fit", "held_out", "full"]


@dataclass(frozen=True)
class Task:
    """A network to measure.

    Attributes:
        kind: layer by layer, or as a whole: to fit, to check, or the full one to see how steady the machine is.
        widths: its width vector.
    """

    kind: Kind
    widths: Widths


class LatencySession:
    """Measures the networks of a plan and makes a table of them.

    Args:
        model: the plain model; left as it is.
        space: its traced space.
        settings: what is measured, and how.
        device: where.
        part: the file to go on from.
        clock: takes the time; unset: the device's own.

    Raises:
        UserError: the file is of other settings, or damaged.
    """

    def __init__(
        self, model: nn.Module, space: Space, settings: LatencySettings, device: torch.device, part: Path, clock: Clock | None = None
    ) -> None:
        self.space, self.settings, self.device = space, settings, device
        self.clock = clock or clock_of(device)
        self.images = random_images(settings.input_shape, settings.batch_size, device)
        model = copy_network(model)
        fit_layout(model, settings.input_shape)
        self.supernet = Supernet(model, space, fuse=False)
        rng = np.random.default_rng(settings.seed)
        middle = tuple((group.smallest + group.bins + 1) // 2 for group in space.groups)
        self.reference = self._timed(middle)
        self.deployed_reference = self.reference if settings.backend == "eager" else self._deployed(middle)
        self.middle = middle
        some = [space.full, space.narrowest, *spread_sample(space, 3, rng)]
        self.blocks = find_blocks([self._network(widths) for widths in some], space, self.images)
        self.tasks = plan(space, self.blocks, settings, rng)
        self.part = PartFile(part, self.header(), {"groups": "other groups"})
        self.part.check_plan([self._task_line(task) for task in self.tasks])

    def run(self) -> LatencyTable:
        """Measure what is missing, and fit."""
        label = f"latency {self.settings.model}"
        with ProgressBar(label, len(self.tasks), len(self.lines)) as bar:
            for number in range(len(self.lines), len(self.tasks)):
                line = self._measure(self.tasks[number])
                self.part.append(line)
                bar.update(number + 1, f"{line['ratio'] * line['reference_ms']:.3g} ms")
        return self.table()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was measured so far."""
        return self.part.lines

    def header(self) -> dict[str, Any]:
        """What ties a file to its settings."""
        settings = asdict(self.settings) | {"input_shape": list(self.settings.input_shape)}
        groups = {"groups": describe_groups(self.space)}
        return {"format": PART_FORMAT} | settings | groups | self._machine()

    def _machine(self) -> dict[str, Any]:
        return {
            "device": device_name(self.device),
            "device_type": self.device.type,
            "threads": torch.get_num_threads(),
            "clock": self.clock.name,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "bcnet": __version__,
        }

    def _network(self, widths: Widths) -> nn.Module:
        return to_device(self.supernet.extract(widths), self.device).eval()

    def _timed(self, widths: Widths, layers: Sequence[str] = ()) -> TimedNetwork:
        return TimedNetwork(self._network(widths), self.images, self.clock, half=HALF_TYPES[self.settings.amp], layers=layers)

    def _deployed(self, widths: Widths) -> TimedNetwork:
        run = deploy(self._network(widths), self.images, self.settings.backend)
        return TimedNetwork(run, self.images, self.clock, half=HALF_TYPES[self.settings.amp])

    def _measure(self, task: Task) -> dict[str, Any]:
        layers = [block.name for block in self.blocks] if task.kind == "blocks" else []
        subject, reference = (
            (self._timed(task.widths, layers), self.reference) if layers else (self._deployed(task.widths), self.deployed_reference)
        )
        seen = visit(subject, reference, seconds=self.settings.seconds, repeats=self.settings.repeats)
        line = self._task_line(task) | {"ratio": seen.ratio, "reference_ms": seen.reference_ms}
        return line | {"turns": seen.turns} | ({"blocks": dict(seen.blocks)} if layers else {})

    def _task_line(self, task: Task) -> dict[str, Any]:
        return {"kind": task.kind, "widths": self.space.encode(task.widths)}

    # The table ------------------------------------------------------------------------------------------------------

    def table(self) -> LatencyTable:
        """The table of what was measured."""
        levels = self._levels()
        measured: dict[str, list[MeasuredNetwork]] = {}
        for line in self.lines:
            level = levels[line["kind"]]
            blocks = {name: ratio * level for name, ratio in line.get("blocks", {}).items()}
            network = MeasuredNetwork(self.space.decode(line["widths"]), line["ratio"] * level, blocks)
            measured.setdefault(line["kind"], []).append(network)
        layers = fit_layers(self.space, self.blocks, measured["blocks"])
        full = [network.ms for network in measured["full"]]
        narrowest = [network.ms for network in measured["fit"] if network.widths == self.space.narrowest]
        scales = SCALES if self.settings.backend == "eager" else ANY_SCALE
        overhead, scale = fit_line(*self._sums(layers, measured["fit"]), scales)
        sums, truth = self._sums(layers, measured["held_out"])
        shares = [line["reference_ms"] / levels[line["kind"]] for line in self.lines]
        low, high = np.quantile(shares, [0.1, 0.9])
        deviations = [abs(ms - median(full)) for ms in full]
        settings = self.settings
        meta = LatencyMeta(
            model=settings.model,
            args=dict(settings.args),
            num_classes=settings.num_classes,
            input=list(settings.input_shape),
            batch_size=settings.batch_size,
            amp=settings.amp,
            seed=settings.seed,
            seconds_per_network=settings.seconds,
            repeats=settings.repeats,
            backend=settings.backend,
            date=datetime.now(timezone.utc).date().isoformat(),
            **self._machine(),
        )
        return LatencyTable(
            format=FORMAT,
            meta=meta,
            groups=dict(describe_groups(self.space)),
            layers=layers,
            overhead_ms=overhead,
            scale=scale,
            networks=len(measured["blocks"]),
            covered=share_covered(self.space, self.blocks, layers),
            full_ms=median(full),
            narrowest_ms=median(narrowest),
            noise=LatencyNoise(
                repeat=1.4826 * median(deviations) / median(full),
                drift=float(high - low),
                reference_ms=levels["full"],
                reference_widths=self.space.encode(self.middle),
            ),
            held_out=check([overhead + scale * own for own in sums], truth),
        )

    def _levels(self) -> dict[str, float]:
        """Median time of the reference network that ran in turns with the networks of every kind."""
        eager = self.settings.backend == "eager"
        by_layer, whole = ([line for line in self.lines if eager or (line["kind"] == "blocks") == own] for own in (True, False))
        levels = {own: median(line["reference_ms"] for line in lines) for own, lines in ((True, by_layer), (False, whole))}
        return {kind: levels[kind == "blocks"] for kind in get_args(Kind)}

    def _sums(self, layers: Mapping[str, Any], networks: Sequence[MeasuredNetwork]) -> tuple[list[float], list[float]]:
        sums = [sum_of(self.blocks, layers, self.space.channels(network.widths)) for network in networks]
        return sums, [network.ms for network in networks]


def plan(space: Space, blocks: Sequence[Block], settings: LatencySettings, rng: np.random.Generator) -> list[Task]:
    """All networks in the order in which they are measured: what is measured as a whole is spread among the others, against drift."""
    pairs = {(block.groups[0], block.groups[-1]) for block in blocks if block.is_pair and block.groups}
    by_layer = [Task("blocks", widths) for widths in cover_pairs(space, pairs, times=settings.times, most=settings.most, rng=rng)]
    fit = [space.full, space.narrowest, *spread_sample(space, settings.checks - 2, rng)]
    held_out = [space.sample(rng) for _ in range(settings.checks)]
    whole = [Task("fit", widths) for widths in fit] + [Task("held_out", widths) for widths in held_out]
    whole = [whole[number] for number in rng.permutation(len(whole))]
    count = len(by_layer) + len(whole)
    full = [Task("full", space.full)] * max(5, count // FULL_EVERY)
    placed = [((number + 0.5) / len(kind), task) for kind in (by_layer, whole, full) for number, task in enumerate(kind)]
    return [task for _, task in sorted(placed, key=lambda pair: pair[0])]


def measure_latency(
    model: nn.Module, space: Space, settings: LatencySettings, *, device: torch.device, out: Path, clock: Clock | None = None
) -> LatencyTable:
    """Measure a model and write its table; a process that was killed goes on where it was.

    Args:
        model: the plain model; left as it is.
        space: its traced space.
        settings: what is measured, and how.
        device: where.
        out: the table's file; what is measured on the way stands beside it, in ``OUT.part``.
        clock: takes the time; unset: the device's own.

    Raises:
        UserError: the file to go on from is of other settings or damaged, nothing can be written, or another process measures it.
    """
    part = out.with_name(out.name + ".part")
    with locked(out):
        table = LatencySession(model, space, settings, device, part, clock).run()
        table.write(out)
        part.unlink(missing_ok=True)
    return table
