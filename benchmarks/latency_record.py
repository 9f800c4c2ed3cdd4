"""How well does a table of `bcnet latency` predict whole networks? Fresh random subnets, measured without a look at their layers.

    python benchmarks/latency_record.py MODEL TABLE.json [--networks 50] [--seed 1000] [--seconds 0.5] [--rounds 3] [--bins 4] [--out FILE]

Every network runs in turns with the table's reference network, in several rounds over all networks, so that neither a busy machine nor
its changing clock decides; its time is the median of its ratios, times the median time of the reference. Prints one JSON record.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import spread

from bcnet.latency.fit import check
from bcnet.latency.table import Measured, load_latency, read_latency
from bcnet.latency.timing import TimedNetwork, clock_of, random_images, visit
from bcnet.machine import HALF_TYPES, environment
from bcnet.models.factory import build_model
from bcnet.models.layout import fit_layout, to_device
from bcnet.progress import ProgressBar
from bcnet.space.cost import CostTable
from bcnet.space.sampling import spread_sample
from bcnet.space.widths import Space, Widths
from bcnet.supernet.proof import trace
from bcnet.supernet.supernet import Supernet


def main() -> None:
    """Measure, and hold the table's predictions against it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("--networks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.5, help="for one network in one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bins", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = read_latency(options.table)
    if options.seed == table.meta.seed:
        parser.error(f"--seed {options.seed} is the table's own")
    meta = table.meta
    torch.set_num_threads(meta.threads)
    shape = tuple(meta.input)
    model = build_model(options.model, meta.num_classes)
    space = trace(model, shape, bins=options.bins, proof=False)
    cost = load_latency(options.table, space, Measured(options.model, meta.num_classes, shape))
    fit_layout(model, shape)
    rng = np.random.default_rng(options.seed)
    kinds = {
        "uniform": [space.sample(rng) for _ in range(options.networks)],
        "narrow_to_wide": spread_sample(space, options.networks // 2, rng),
    }
    every = [widths for rows in kinds.values() for widths in rows]
    device = torch.device(meta.device_type)
    timed = Timed(Supernet(model, space, fuse=False), device, shape, meta.batch_size, HALF_TYPES[meta.amp])
    ratios, references = measure(timed, every, space.decode(table.noise.reference_widths), options.rounds, options.seconds)
    measured = [median(row) * median(references) for row in ratios]
    predicted = [float(cost.one(widths)) for widths in every]
    level = table.noise.reference_ms / median(references)
    record: dict[str, Any] = {"model": options.model, "table": options.table.name, "seed": options.seed}
    record |= {"rounds": options.rounds, "seconds": options.seconds, "table_meta": meta.model_dump(mode="json")}
    start = 0
    flops = CostTable(space).of_widths(every, "flops")
    for kind, rows in kinds.items():
        part = slice(start, start + len(rows))
        start += len(rows)
        own, truth = np.array(predicted[part]), np.array(measured[part])
        record[kind] = check(own.tolist(), truth.tolist()).model_dump() | {
            "at_the_tables_clock": check(own.tolist(), (truth * level).tolist()).model_dump(),
            "spearman_of_flops": check(flops[part].tolist(), truth.tolist()).spearman,
            "ceiling": ceiling(ratios[part]),
            "measured_ms": spread(truth.tolist()),
        }
    noise = [float(np.std(np.log(row), ddof=1)) for row in ratios] if options.rounds > 1 else []
    record["noise_of_one_round"] = median(noise) if noise else None
    record["spread_of_the_reference"] = spread(references)
    record["reference_ms"] = {"table": table.noise.reference_ms, "here": median(references)}
    record["networks"] = networks(space, every, predicted, measured)
    record["environment"] = environment(device)
    text = json.dumps(record, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def ceiling(ratios: Sequence[Sequence[float]]) -> float | None:
    """Spearman that a perfect predictor would reach: from how well one half of the rounds ranks as the other (Spearman and Brown)."""
    if len(ratios[0]) < 2:
        return None
    halves = [[median(row[start::2]) for row in ratios] for start in (0, 1)]
    agreement = check(*halves).spearman
    return float((max(0.0, 2 * agreement / (1 + agreement))) ** 0.5) if agreement > -1 else 0.0


class Timed:
    """Makes networks that are ready to be timed."""

    def __init__(self, supernet: Supernet, device: torch.device, shape: Sequence[int], batch_size: int, half: torch.dtype | None) -> None:
        self.supernet, self.device, self.half = supernet, device, half
        self.images, self.clock = random_images(shape, batch_size, device), clock_of(device)

    def __call__(self, widths: Widths) -> TimedNetwork:
        """The network of a width vector."""
        network = to_device(self.supernet.extract(widths), self.device).eval()
        return TimedNetwork(network, self.images, self.clock, half=self.half)


def measure(timed: Timed, every: Sequence[Widths], middle: Widths, rounds: int, seconds: float) -> tuple[list[list[float]], list[float]]:
    """Ratios of every network's time to the reference's, one per round; and the reference's milliseconds."""
    ratios: list[list[float]] = [[] for _ in every]
    references = []
    reference = timed(middle)
    with ProgressBar("networks", rounds * len(every)) as bar:
        for number in range(rounds):
            for place, widths in enumerate(every):
                seen = visit(timed(widths), reference, seconds=seconds)
                ratios[place].append(seen.ratio)
                references.append(seen.reference_ms)
                bar.update(number * len(every) + place + 1)
    return ratios, references


def networks(space: Space, every: Sequence[Widths], predicted: Sequence[float], measured: Sequence[float]) -> dict[str, list[float]]:
    """Width string -> predicted and measured milliseconds."""
    return {space.encode(widths): [own, truth] for widths, own, truth in zip(every, predicted, measured, strict=True)}


if __name__ == "__main__":
    main()
