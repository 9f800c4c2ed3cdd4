"""The data set that a config names."""

import os
from typing import Any

import torch

from bcnet.config import DataConfig
from bcnet.data.folder import find_images, open_image
from bcnet.data.interfaces import DataSet
from bcnet.data.resident import ResidentData
from bcnet.distributed import world_size
from bcnet.errors import UserError, first_line
from bcnet.plugins import import_object
from bcnet.progress import notice

_MOST_WORKERS = 8


def load_data(config: DataConfig, seed: int, device: torch.device, workers: int | None = None) -> DataSet:
    """Load, split and place the images.

    A data source of your own is called as ``source(config, seed, device)`` and returns a `DataSet`.

    Args:
        config: which images, how they are split and augmented.
        seed: of the split.
        device: where batches are wanted.
        workers: processes that decode streamed pictures; unset: one per core.

    Raises:
        UserError: the files are not where the config says, are not images, or are too few; or it is no such source.
    """
    if ":" not in config.source:
        if not is_streamed(config):
            return ResidentData(config, seed, device)
        from bcnet.data.streaming import StreamingData

        return StreamingData(config, seed, device, _default_workers() if workers is None else workers)
    source = import_object(config.source, "data.source")
    try:
        data: Any = source(config, seed, device)
    except Exception as error:
        raise UserError(f"data.source {config.source!r} could not be loaded with (config, seed, device): {first_line(error)}") from error
    parts = ("classes", "input_shape", "mean", "std", "num_images", "train_batches", "eval_batches")
    missing = [name for name in parts if not hasattr(data, name)]
    if missing:
        raise UserError(f"data.source {config.source!r} gives no bcnet.data.interfaces.DataSet: it has no {missing[0]!r}")
    data_set: DataSet = data
    return data_set


def is_streamed(config: DataConfig) -> bool:
    """Whether pictures are decoded while they are used: asked for, wanted by an augmentation, or too large to be decoded at once."""
    if config.source == "huggingface":
        return True
    if config.streaming is not None or config.wants_streaming:
        return bool(config.streaming or config.wants_streaming)
    memory = _memory_gib()
    if config.source != "imagefolder" or config.root is None or memory is None:
        return False
    train, test, _ = find_images(config.root)
    width, height = (config.image_size,) * 2 if config.image_size is not None else open_image(train.paths[0]).size
    needed = 3 * width * height * (len(train.paths) + len(test.paths)) / 2**30
    if needed <= memory:
        return False
    notice(
        f"the images would take {needed:.0f} GiB and the machine has {memory:.0f}: they are decoded while they are used (data.streaming)"
    )
    return True


def _memory_gib() -> float | None:
    """The machine's memory, where it says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, cores // world_size()))
