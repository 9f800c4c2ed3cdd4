"""How long forward passes take, and the layers in them.

Machines drift: the same network may take a third longer a second later, since a neighbour is busy or the clock of the CPU changed.
So networks that are to be compared run turn by turn, and what counts is the ratio to the one that ran just before and just after.
On one CPU thread the time is that which the thread had the CPU, as on a machine that has nothing else to do.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import nn

from bcnet.machine import autocast
from bcnet.models.copying import copy_network
from bcnet.models.layout import fit_layout, to_device

WARM_UP = 3  # passes: the first ones choose kernels and allocate memory
START = "(start)"  # what runs before the first layer


class Clock(Protocol):
    """Takes time stamps, and says later what lies between two."""

    name: str

    def stamp(self) -> Any:
        """Now, on the device."""

    def settle(self) -> None:
        """Wait until all stamps are reached."""

    def ms(self, start: Any, stop: Any) -> float:
        """Milliseconds between two stamps."""


class WallClock:
    """The time that passes."""

    name = "wall time"

    def stamp(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def settle(self) -> None:
        """Nothing to wait for."""

    def ms(self, start: float, stop: float) -> float:
        """Milliseconds between two stamps."""
        return (stop - start) * 1e3


class ThreadClock(WallClock):
    """The time that this thread has the CPU: what other processes take away is not counted."""

    name = "CPU time of the thread"

    def stamp(self) -> float:
        """Seconds."""
        return time.thread_time()


class CudaClock:
    """Events in the stream of a GPU."""

    name = "CUDA events"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> torch.cuda.Event:
        """An event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self.device)

    def ms(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Milliseconds between two events."""
        return float(start.elapsed_time(stop))


def clock_of(device: torch.device) -> Clock:
    """The clock that measures on a device, with the CPU threads that there are now."""
    if device.type == "cuda":
        return CudaClock(device)
    fine = time.get_clock_info("thread_time").resolution < 1e-4  # 16 ms on Windows
    return ThreadClock() if fine and torch.get_num_threads() == 1 else WallClock()


class TimedNetwork:
    """A network whose forward passes are timed, maybe layer by layer.

    Args:
        network: in evaluation mode, on its device; or whatever runs one, if no layers are timed.
        images: ``(N, C, H, W)`` on that device, in the network's order in memory.
        clock: takes the time.
        half: what to autocast to, bf16 or fp16; unset: not at all.
        layers: names of modules that begin a block; those that the network does not have are left out. A block lasts until the next one
            begins or the pass ends, so that blocks add up to the whole.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], Any],
        images: torch.Tensor,
        clock: Clock,
        *,
        half: torch.dtype | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        self.network, self.images, self.clock, self.half = network, images, clock, half
        self._marks: list[tuple[str, Any]] = []
        modules = dict(network.named_modules()) if isinstance(network, nn.Module) and layers else {}
        for name in layers:
            if name in modules:
                modules[name].register_forward_pre_hook(self._mark(name))

    def _mark(self, name: str) -> Callable[..., None]:
        def mark(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._marks.append((name, self.clock.stamp()))

        return mark

    def run(self) -> list[tuple[str, float]]:
        """Make one pass.

        Returns:
            Blocks in the order in which they began, each with its milliseconds; a module that is called twice begins two.
        """
        self._marks.clear()
        with torch.inference_mode(), autocast(self.images.device, self.half):
            self._marks.append((START, self.clock.stamp()))
            self.network(self.images)
            self._marks.append(("", self.clock.stamp()))
        self.clock.settle()
        ends = self._marks[1:]
        return [(name, self.clock.ms(start, stop)) for (name, start), (_, stop) in zip(self._marks[:-1], ends, strict=True)]

    def run_whole(self) -> float:
        """Make one pass; its milliseconds."""
        return sum(ms for _, ms in self.run())


@dataclass(frozen=True)
class Visit:
    """What turns with a reference network gave.

    Attributes:
        ratio: of the network's time to the reference's, median over turns.
        blocks: of every block that share of the ratio; they add up to it.
        reference_ms: median time of the reference.
        turns: how many.
    """

    ratio: float
    blocks: Mapping[str, float]
    reference_ms: float
    turns: int


def visit(subject: TimedNetwork, reference: TimedNetwork, *, seconds: float, repeats: int | None = None) -> Visit:
    """Run a network and a reference turn by turn.

    Args:
        subject: the network to be measured.
        reference: what its times are divided by: the mean of the passes just before and just after.
        seconds: for so long, but for seven turns at least.
        repeats: so many turns instead.
    """
    for _ in range(WARM_UP):
        subject.run()
        before = reference.run_whole()
    rows: list[dict[str, float]] = []
    references: list[float] = []
    end = time.perf_counter() + seconds
    while len(rows) < repeats if repeats else len(rows) < 7 or time.perf_counter() < end:
        blocks = subject.run()
        after = reference.run_whole()
        row: dict[str, float] = {}
        for name, ms in blocks:
            row[name] = row.get(name, 0.0) + ms / ((before + after) / 2)
        rows.append(row)
        references.append(after)
        before = after
    ratio = median(sum(row.values()) for row in rows)
    blocks_ = {name: median(row.get(name, 0.0) for row in rows) for name in rows[0]}
    correction = ratio / sum(blocks_.values())  # medians of parts do not quite add up to the median of the whole
    return Visit(ratio, {name: value * correction for name, value in blocks_.items()}, median(references), len(rows))


def random_images(input_shape: Sequence[int], batch_size: int, device: torch.device) -> torch.Tensor:
    """Random images ``(N, C, H, W)``, in channels_last order where they have that."""
    images = torch.randn(batch_size, *input_shape, generator=torch.Generator().manual_seed(0))
    return images.to(device, memory_format=torch.channels_last if images.ndim == 4 else torch.preserve_format)


def measure_networks(
    modules: Sequence[nn.Module],
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    repeats: int = 50,
    half: torch.dtype | None = None,
) -> list[float]:
    """Median milliseconds of a forward pass of each network; they run turn by turn, so that a busy machine slows all of them alike.

    Args:
        modules: plain networks, left as they are.
        input_shape: ``(C, H, W)`` of one image.
        batch_size: images at once.
        device: where to run.
        threads: CPU threads; unset: as many as now.
        repeats: passes of each.
        half: what to autocast to, bf16 or fp16; unset: not at all.
    """
    place = torch.device(device)
    images = random_images(input_shape, batch_size, place)
    with cpu_threads(threads):
        clock = clock_of(place)
        timed = [TimedNetwork(ready(module, input_shape, place), images, clock, half=half) for module in modules]
        for one in timed:
            for _ in range(WARM_UP):
                one.run()
        turns = [[one.run_whole() for one in timed] for _ in range(repeats)]
    return [median(column) for column in zip(*turns, strict=True)]


def measure_network(module: nn.Module, input_shape: Sequence[int], **options: Any) -> float:
    """Median milliseconds of a forward pass of one network; see `measure_networks`."""
    (ms,) = measure_networks([module], input_shape, **options)
    return ms


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """So many CPU threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ready(module: nn.Module, input_shape: Sequence[int], device: torch.device) -> nn.Module:
    """A copy of a plain network as it is timed: on its device, in the order in memory that it runs in, in evaluation mode."""
    network = copy_network(module).cpu()
    if device.type == "cpu":
        fit_layout(network, tuple(input_shape))
    return to_device(network, device).eval()
