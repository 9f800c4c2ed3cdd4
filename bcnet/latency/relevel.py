"""A table at today's level: machines are faster or slower as a whole from day to day, and one measurement tells by how much."""

import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from bcnet.errors import UserError
from bcnet.latency.backends import deploy
from bcnet.latency.table import LatencyTable, Measured, load_latency, read_latency
from bcnet.latency.timing import WARM_UP, TimedNetwork, clock_of, cpu_threads, random_images, ready
from bcnet.machine import HALF_TYPES, device_name
from bcnet.space.widths import Space

LEAST_PASSES = 20


def relevel(
    path: Path, model: nn.Module, space: Space, *, of: Measured, device: torch.device, seconds: float
) -> tuple[LatencyTable, float]:
    """Measure the full network again, in the way in which the table was measured, and scale all of its times alike.

    Args:
        path: the table.
        model: the plain model.
        space: its traced space.
        of: its name, input and number of classes, which must be the table's.
        device: where.
        seconds: for the measurement.

    Returns:
        The table at the new level, and the factor.

    Raises:
        UserError: not a table, or one of another model or device.
    """
    load_latency(path, space, of)  # which refuses what does not fit
    table = read_latency(path)
    meta = table.meta
    here = device_name(device)
    if meta.device != here:
        raise UserError(f"{path}: was measured on {meta.device}, and here is {here}: more than the level differs; measure it anew")
    images = random_images(of.input_shape, meta.batch_size, device)
    with cpu_threads(meta.threads if device.type == "cpu" else None):
        network = ready(model, of.input_shape, device)
        timed = TimedNetwork(deploy(network, images, meta.backend), images, clock_of(device), half=HALF_TYPES[meta.amp])
        for _ in range(WARM_UP):
            timed.run_whole()
        passes: list[float] = []
        end = time.perf_counter() + seconds
        while len(passes) < LEAST_PASSES or time.perf_counter() < end:
            passes.append(timed.run_whole())
    factor = median(passes) / table.full_ms
    noise = table.noise.model_copy(update={"reference_ms": factor * table.noise.reference_ms})
    scaled = {name: factor * getattr(table, name) for name in ("overhead_ms", "scale", "full_ms", "narrowest_ms")}
    return table.model_copy(update=scaled | {"noise": noise}), factor
