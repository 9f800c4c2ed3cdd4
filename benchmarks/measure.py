"""What the benchmarks share: interleaved timing, operation counts, memory, and the ceilings of the machine."""

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


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
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], object]) -> int:
    """Operations that PyTorch dispatches, views included; a fused kernel of ours is its allocations only."""
    with _Counter() as counter:
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


def ceilings(device: torch.device, quick: bool) -> dict[str, float]:
    """Best of a few: matrix product in Gmultiply-adds/s, copying in GB/s (read plus write)."""
    size, best = (2048 if device.type == "cpu" else 8192), {}
    for name, dtype in (("matmul_fp32_gmacs", torch.float32), ("matmul_bf16_gmacs", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = interleave({"": lambda _, a=a, b=b: a @ b}, 3 if quick else 8, device)[""]
        best[name] = size**3 / min(seconds) / 1e9
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    seconds = interleave({"": lambda _: target.copy_(source)}, 3 if quick else 8, device)[""]
    best["copy_gb_per_s"] = 2 * source.numel() * 4 / min(seconds) / 1e9
    return best


def child(arguments: list[str], environment: dict[str, str]) -> str:
    """Run this benchmark again in another process; returns what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
