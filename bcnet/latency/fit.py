"""From measured networks to times of layers, and from their sums to times of networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
import numpy.typing as npt

from bcnet.latency.blocks import Block
from bcnet.latency.table import LatencyCheck, LayerLatency, block_ms
from bcnet.space.widths import Space, Widths

SCALES = 0.5, 1.5  # a sum of blocks is the time of a whole pass, but for the stamps taken in it and what caches do
ANY_SCALE = 0.02, np.inf  # another backend runs the whole pass


@dataclass(frozen=True)
class MeasuredNetwork:
    """A network that was measured.

    Attributes:
        widths: its width vector.
        ms: of a whole pass.
        blocks: milliseconds of every block, if it was measured layer by layer.
    """

    widths: Widths
    ms: float
    blocks: Mapping[str, float]


def fit_layers(space: Space, blocks: Sequence[Block], networks: Sequence[MeasuredNetwork]) -> dict[str, LayerLatency]:
    """The times of every block at every pair of widths, from networks that were measured layer by layer.

    Args:
        space: of the networks.
        blocks: of which times are wanted.
        networks: what was measured.
    """
    channels = [space.channels(network.widths) for network in networks]
    layers = {}
    for block in blocks:
        seen = [(own, network.blocks[block.name]) for own, network in zip(channels, networks, strict=True) if block.name in network.blocks]
        by_key: dict[str, list[float]] = {}
        for own, ms in seen:
            by_key.setdefault(block.key(own), []).append(ms)
        fit = _fit_terms(np.array([block.terms(own) for own, _ in seen]), np.array([ms for _, ms in seen]))
        reads, writes = block.describe(space)
        ms_of_key = {key: median(values) for key, values in sorted(by_key.items(), key=_by_counts)} if block.is_pair else {}
        layers[block.name] = LayerLatency(reads=reads, writes=writes, ms=ms_of_key, fit=fit)
    return layers


def _by_counts(entry: tuple[str, list[float]]) -> tuple[int, ...]:
    return tuple(map(int, entry[0].split("x")))


def _fit_terms(terms: npt.NDArray[np.float64], ms: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Non-negative least squares, relative to the measured times."""
    from scipy.optimize import nnls

    if not len(ms):
        return 0.0, 0.0, 0.0, 0.0
    sizes = np.maximum(terms.max(axis=0), 1e-12)
    weight = 1 / np.maximum(ms, 1e-9 + 1e-3 * ms.max())
    solution, _ = nnls(terms / sizes * weight[:, None], ms * weight)
    const, inputs, outputs, both = (float(value) for value in solution / sizes)
    return const, inputs, outputs, both


def fit_line(sums: Sequence[float], measured: Sequence[float], scales: tuple[float, float] = SCALES) -> tuple[float, float]:
    """Overhead and scale with ``measured = overhead + scale * sum``, as medians over pairs of networks (Theil and Sen).

    Pairs that are hardly different are left out: their slope is noise. So is a slope outside of the given scales, as networks have whose
    times hardly depend on their widths; it is cut off there. A line on which networks would take no time becomes a ratio.
    """
    x, y = np.asarray(sums, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    far = 0.05 * (x.max() - x.min())
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i, j in combinations(range(len(x)), 2) if abs(x[j] - x[i]) > far]
    scale = float(np.clip(np.median(slopes), *scales)) if slopes else 1.0
    overhead = float(np.median(y - scale * x))
    if overhead + scale * x.min() <= 0:
        return 0.0, float(np.median(y / x))
    return overhead, scale


def check(predicted: Sequence[float], measured: Sequence[float]) -> LatencyCheck:
    """Hold predictions against measurements."""
    from scipy.stats import spearmanr

    p, m = np.asarray(predicted), np.asarray(measured)
    errors = np.abs(p - m) / m
    varies = len(p) > 1 and len(set(p)) > 1 and len(set(m)) > 1
    return LatencyCheck(
        networks=len(p),
        spearman=float(spearmanr(p, m).statistic) if varies else 0.0,
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
        predicted_ms=tuple(float(value) for value in p),
        measured_ms=tuple(float(value) for value in m),
    )


def share_covered(space: Space, blocks: Sequence[Block], layers: Mapping[str, LayerLatency]) -> float:
    """Share of the pairs of choices, over all blocks that are looked up, that were measured."""
    known = wanted = 0
    for block in blocks:
        if not block.is_pair:
            continue
        keys = _keys(space, block)
        wanted += len(keys)
        known += len(keys & set(layers[block.name].ms))
    return known / wanted if wanted else 1.0


def _keys(space: Space, block: Block) -> set[str]:
    keys = set()
    a, b = (block.groups[0], block.groups[-1]) if block.groups else (0, 0)
    channels = [group.channels for group in space.groups]
    for first in space.groups[a].choices:
        for second in space.groups[b].choices:
            channels[b] = second
            channels[a] = first if a != b else second
            if not block.is_skipped(channels):
                keys.add(block.key(channels))
    return keys


def sum_of(blocks: Sequence[Block], layers: Mapping[str, LayerLatency], channels: Sequence[int]) -> float:
    """Sum of all blocks at the given channels per group."""
    return sum(block_ms(block, layers[block.name], channels) for block in blocks)
