"""What the benchmarks share: finished parts, interleaved timing, operation counts, memory, ceilings of the machine, equality of bits."""

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bcnet.files import read_json, write_json
from bcnet.machine import half_type

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def once(path: Path, settings: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What is known from an earlier call with these settings, else what ``make`` gives, written."""
    if path.is_file():
        known = read_json(path, "a part of a record")
        if known["settings"] == json.loads(json.dumps(settings)):
            return known["value"]
    value = make()
    write_json(path, {"settings": settings, "value": value})
    return value


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(variants: dict[str, Callable[[int], object]], rounds: int, device: torch.device, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every call: each round calls every variant once with the round's number, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warm_up, rounds):
        for name, call in variants.items():
            synchronize(device)
            start = time.perf_counter()
            call(number)
            synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {"median": median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter], "n": len(ordered)}


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], object]) -> int:
    """Operations that PyTorch dispatches, views included; a fused kernel of ours is its allocations only."""
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        call()
    return counter.count


def peak_memory_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Memory that a call needs beyond what is held before it; on the CPU from Linux's high-water mark."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def precisions(device: torch.device) -> dict[str, torch.dtype | None]:
    """What to measure, by name, and what to autocast to: bf16 only on hardware that computes in it, for elsewhere it takes minutes."""
    half = half_type("auto", device)
    if half:
        return {"fp32": None, "bf16": half}
    print("this hardware does not compute in bf16, which is left out", file=sys.stderr)
    return {"fp32": None}


def ceilings(device: torch.device, quick: bool, names: Iterable[str]) -> dict[str, float]:
    """Best of a few: matrix product in Gmultiply-adds/s for every precision, copying in GB/s (read plus write)."""
    size = 2048 if device.type == "cpu" else 8192
    best: dict[str, float] = {}

    def fastest(call: Callable[[], object]) -> float:
        return min(interleave({"": lambda _: call()}, 3 if quick else 8, device)[""])

    for name in names:
        a, b = (torch.randn(size, size, device=device).to(_DTYPES[name]) for _ in range(2))
        best[f"matmul_{name}_gmacs"] = size**3 / fastest(partial(torch.matmul, a, b)) / 1e9
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    best["copy_gb_per_s"] = 2 * source.numel() * 4 / fastest(partial(target.copy_, source)) / 1e9
    return best


def child(arguments: list[str], environment: dict[str, str]) -> str:
    """Run this benchmark again in another process; returns what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def same_bits(one: object, other: object) -> bool:
    """Whether two trees of tensors and plain values are the same, to the last bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(*(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_bits(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return type(one) is type(other) and one == other


def compare_checkpoints(one: Path, other: Path) -> dict[str, bool]:
    """Which parts of two checkpoints are the same, to the last bit; parts that neither has are left out."""
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in (one, other)]
    named = [state | {"losses": state["history"]["loss"]} for state in states]
    parts = ("model", "ema", "optimizer", "counts", "records", "losses")
    return {part: same_bits(named[0].get(part), named[1].get(part)) for part in parts if any(part in state for state in named)}
