"""The machine a run happens on: device, precision, allocator, versions."""

import ctypes
import os
import platform
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bcnet.distributed import world_size
from bcnet.errors import UserError
from bcnet.version import __version__

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators that dropout layers draw from.

    Not ``torch.manual_seed``: in a process that never used CUDA that queues a stack trace per call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; under torchrun ``cuda`` means the GPU of the local rank.

    Raises:
        UserError: no such device here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    except RuntimeError as error:
        raise UserError(f"device={name!r} is not a device: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}: torch sees no CUDA GPU here; use device=cpu or device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name!r}: torch sees {torch.cuda.device_count()} GPU(s) here, numbered from 0")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name!r} is not supported: use auto, cpu, cuda or cuda:N")
    return device


def half_type(amp: str, device: torch.device) -> torch.dtype | None:
    """What to autocast to: what is asked for, or with ``auto`` bf16 on hardware that computes in it natively."""
    if amp != "auto":
        return HALF_TYPES[amp]
    if device.type == "cuda":
        native = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    else:
        native = _cpu_has("avx512_bf16") or _cpu_has("amx_bf16")
    return torch.bfloat16 if native else None


def amp_of(half: torch.dtype | None) -> str:
    """What ``amp`` calls a type: ``bf16``, ``fp16`` or ``off``."""
    return next(name for name, known in HALF_TYPES.items() if known == half)


def _cpu_has(flag: str) -> bool:
    return flag in cpu_info("flags").split()


def cpu_info(field: str) -> str:
    """A field of Linux's description of the first core (``flags``, ``model name``); elsewhere the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), platform.processor())


def device_name(device: torch.device) -> str:
    """What a device is called; of a GPU where there is none, that."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no GPU"
    return cpu_info("model name") or "CPU"


def memory(device: torch.device) -> dict[str, float]:
    """GiB that this process has on a GPU, by name; nothing for a CPU."""
    return {"gpu_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}


def autocast(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[Any]:
    """The autocast context for one forward pass."""
    return torch.autocast(device.type, half) if half else nullcontext()


_allocator = "default"


def tune_malloc() -> bool:
    """Let glibc keep freed activations instead of returning and refaulting them each step (Linux; about twice as fast).

    Set ``BCNET_MALLOC=default`` to leave the allocator alone.

    Returns:
        Whether the allocator was tuned.
    """
    global _allocator
    if not sys.platform.startswith("linux") or os.environ.get("BCNET_MALLOC") == "default":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_threshold, gibibyte = -1, -3, 1 << 30
    if mallopt(m_mmap_threshold, gibibyte) and mallopt(m_trim_threshold, 2 * gibibyte - 1):
        _allocator = "tuned to keep its memory"
        return True
    return False


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions, commit and hardware, to stand beside every number."""
    packages = ("torch", "torchvision", "timm", "numpy", "scipy", "pymoo")
    return {
        "versions": {"python": platform.python_version(), "bcnet": __version__} | {name: _version(name) for name in packages},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "cpu": cpu_info("model name"),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
        "allocator": _allocator,
        "processes": world_size(),
    }


def made_by() -> str:
    """When, with which versions, on what and by which command something was made, in a line for people."""
    commit = _git_commit()
    versions = f"bcnet {__version__}{f' ({commit})' if commit else ''}, PyTorch {_version('torch')}"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    hardware = f"{cpu_info('model name') or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads{gpu}"
    command = f"; bcnet {shlex.join(sys.argv[1:])}" if Path(sys.argv[0]).stem in ("bcnet", "__main__") else ""
    return f"Made on {date.today():%d %B %Y} by {versions} on {hardware}{command}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    if not (folder.parent / ".git").exists():
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
