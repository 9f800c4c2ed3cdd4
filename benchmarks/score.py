"""Time the scoring of many width vectors against scoring each by itself, on the same images, in one process.

    python benchmarks/score.py [--model mobilenet|resnet|resnet20] [--run RUN] [--widths 256|all] [--images 512] [--quick]
                               [--scaling] [--out FOLDER]

Both sides of every candidate are calibrated on ``--images`` images and evaluated on as many. Three ways: the plain reference
(``reference.py``, float32), the supernet one by one, and the walk that shares what candidates have in common. The scores
must agree. bf16 is measured where the hardware computes in it. With ``--run`` (a trained run of the same model) images and
weights are real, and the rank agreement of bf16 with float32 is measured over the same candidates; otherwise both are noise.
Candidates are a block of the space in lexicographic order (``all``: the whole space) and a generation of 40 random ones; each
is held against its own reference.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import interleave, peak_memory_mib, precisions, spread
from reference import Batches, Reference
from scipy import stats
from step import MODELS
from torch import nn

from bcnet.data.interfaces import EvalSource
from bcnet.data.resident import EvalBatches, Normalize
from bcnet.data.sources import ImageSet
from bcnet.machine import environment, resolve_device, tune_malloc
from bcnet.run import Run
from bcnet.scoring.metrics import METRICS
from bcnet.scoring.scorer import Scorer
from bcnet.space.trace import trace
from bcnet.space.widths import Space, Widths
from bcnet.supernet.supernet import Supernet

NO_MEMORY = 1e-9  # GiB for what candidates share: too little for anything, so that each is scored alone


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="mobilenet")
    parser.add_argument("--run", type=Path, help="a trained run")
    parser.add_argument("--widths", default="256")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="16 candidates on 32 images, no more than 40 s")
    parser.add_argument("--scaling", action="store_true", help="only draw seconds per candidate against width, neighbours and images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.widths, options.images, options.batch = "16", 32, 32
    return options


Load = Callable[[int], tuple[EvalSource, EvalSource]]  # so many images for calibration, and so many for validation


class Bench:
    """A supernet, its reference, and the images for both."""

    def __init__(self, model: nn.Module, supernet: Supernet, load: Load, images: int, device: torch.device) -> None:
        self.supernet, self.space, self.load, self.device = supernet, supernet.space, load, device
        self.precisions = precisions(device)
        self.best = list(self.precisions)[-1]
        self.calibration, self.validation = load(images)
        self.plain = Reference(supernet, model).to(device)
        self.batches: list[Batches] = [[(x.contiguous(), y) for x, y in source] for source in (self.calibration, self.validation)]

    @classmethod
    def of_noise(cls, name: str, images: int, batch: int, device: torch.device) -> "Bench":
        """Random weights and random images."""
        torch.manual_seed(0)
        model = MODELS[name]()
        supernet = Supernet(model, trace(model, (3, 32, 32)), wide=True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        normalize = Normalize((0.5,) * 3, (0.29,) * 3, device)
        sets = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            pixels = torch.randint(256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
            sets.append(ImageSet(pixels, torch.randint(10, (images,), generator=generator)))

        def load(count: int) -> tuple[EvalSource, EvalSource]:
            return EvalBatches(sets[0], normalize, batch, count), EvalBatches(sets[1], normalize, batch, count)

        return cls(model, supernet, load, images, device)

    @classmethod
    def of_run(cls, folder: Path, images: int, batch: int, device: str) -> "Bench":
        """The weights and the images of a trained run."""
        run = Run.open(folder, [f"device={device}"])
        supernet, data = run.trained.trained, run.experiment.data
        assert isinstance(supernet, Supernet)

        def load(count: int) -> tuple[EvalSource, EvalSource]:
            return data.eval_batches("train", batch, count), data.eval_batches("val", batch, count)

        return cls(run.experiment.model, supernet, load, images, run.experiment.device)

    def reference(self, widths: Widths) -> list[float]:
        """Cross-entropy of both sides by the reference."""
        return self.plain.score(widths, *self.batches)

    def scorer(self, precision: str, memory_gib: float = 16.0, whole_layers: bool = False, images: int | None = None) -> Scorer:
        """A scorer that knows nothing yet."""
        calibration, validation = (self.calibration, self.validation) if images is None else self.load(images)
        return Scorer(
            self.supernet,
            calibration,
            validation,
            metric=METRICS["cross_entropy"],
            half=self.precisions[precision],
            memory_gib=memory_gib,
            whole_layers=whole_layers,
        )


def main() -> None:
    """Run the benchmark."""
    options = parse()
    device = resolve_device(options.device)
    tune_malloc()
    if options.run:
        bench = Bench.of_run(options.run, options.images, options.batch, options.device)
    else:
        bench = Bench.of_noise(options.model, options.images, options.batch, device)
    if options.scaling:
        draw_scaling((options.out or Path()) / f"score_{options.model}_scaling.png", bench)
        return
    block = list(bench.space.enumerate()) if options.widths == "all" else block_of(bench.space, int(options.widths))
    rng = np.random.default_rng(0)
    generation = sorted({bench.space.sample(rng) for _ in range(10 if options.quick else 40)})
    images = [len(bench.calibration), len(bench.validation)]
    record: dict[str, Any] = {"model": options.model, "run": bool(options.run), "images": images}
    for label, wanted, whole_layers in (("block", block, True), ("generation", generation, False)):
        few = [wanted[number] for number in rng.choice(len(wanted), 2 if options.quick else 5, replace=False)]
        record[label] = measure(bench, wanted, few, whole_layers, is_trained=bool(options.run))
    record["environment"] = environment(device)
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"score_{options.model}.json").write_text(json.dumps(record, indent=1) + "\n")


def block_of(space: Space, count: int) -> list[Widths]:
    """So many width vectors in lexicographic order, from the middle of the space on."""
    middle = space.size // 2
    return [_at(space, number) for number in range(middle, min(space.size, middle + count))]


def _at(space: Space, number: int) -> Widths:
    widths = []
    for group in reversed(space.groups):
        number, digit = divmod(number, len(group.indices))
        widths.append(group.indices[digit])
    return tuple(reversed(widths))


def measure(bench: Bench, wanted: list[Widths], few: list[Widths], whole_layers: bool, *, is_trained: bool) -> dict[str, Any]:
    """Seconds per candidate of every way; a few of the candidates are scored one by one, turn by turn."""
    lonely = {precision: bench.scorer(precision, NO_MEMORY) for precision in bench.precisions}

    def alone(precision: str, number: int) -> None:
        lonely[precision].evaluations.clear()
        lonely[precision].score(few[number])

    ways: dict[str, Callable[[int], object]] = {"reference fp32": lambda number: bench.reference(few[number])}
    ways |= {f"alone {precision}": partial(alone, precision) for precision in bench.precisions}
    seconds = interleave(ways, len(few), bench.device)
    rows: dict[str, Any] = {"candidates": len(wanted)}
    for name in ways:
        ratio = float(np.median(np.divide(seconds["reference fp32"], seconds[name])))
        rows[name] = spread(seconds[name]) | {"ratio_to_reference": ratio}
    expected = {widths: -float(np.mean(bench.reference(widths))) for widths in few}
    scores: dict[str, dict[Widths, float]] = {}
    for precision in bench.precisions if len(wanted) < bench.space.size else (bench.best,):
        scorer = bench.scorer(precision, whole_layers=whole_layers)
        assert scorer.walker is not None  # made before the clock starts, as is the reference, which all candidates share
        scorer.reference  # noqa: B018
        start = time.perf_counter()
        scores[precision] = scorer.score_many(wanted)
        each = (time.perf_counter() - start) / len(wanted)
        differs = max(abs(scores[precision][widths] / expected[widths] - 1) for widths in few)
        assert differs < (0.02 if bench.precisions[precision] else 1e-4), (precision, differs)
        rows[f"walk {precision}"] = {
            "seconds_per_candidate": each,
            "ratio_to_reference": float(np.mean(seconds["reference fp32"])) / each,
            "largest_difference": differs,
        }
    assert scorer.walker is not None
    one_by_one, together = np.sum(list(scorer.walker.multiply_adds(wanted)), axis=0)
    rows["multiply_adds_saved"] = one_by_one / together
    some = wanted[:40]
    rows["peak_memory_mib"] = peak_memory_mib(lambda: bench.scorer(bench.best, whole_layers=whole_layers).score_many(some), bench.device)
    if is_trained and len(scores) > 1:
        columns = [[by_widths[widths] for widths in wanted] for by_widths in scores.values()]
        rows["kendall_tau_of_bf16_with_fp32"] = float(stats.kendalltau(*columns).statistic)
    return rows


def draw_scaling(path: Path, bench: Bench) -> None:
    """Seconds per candidate: alone against uniform width and images, in a walk against the number of neighbours."""
    from matplotlib.figure import Figure

    groups, block = bench.space.groups, block_of(bench.space, 1024)
    bins = min(group.bins for group in groups)

    def seconds(wanted: Sequence[Widths], images: int, memory_gib: float = 16.0) -> float:
        scorer = bench.scorer(bench.best, memory_gib, whole_layers=True, images=images)
        scorer.walker, scorer.reference  # noqa: B018  made before the clock starts
        start = time.perf_counter()
        scorer.score_many(wanted)
        return (time.perf_counter() - start) / len(wanted)

    most = len(bench.validation)
    half = (max(1, bins // 2),) * len(groups)
    widths = [(k / bins, seconds([(k,) * len(groups)], most, NO_MEMORY)) for k in range(1, bins + 1)]
    images = [(float(number), seconds([half], number, NO_MEMORY)) for number in (most // 4, most // 2, most)]
    neighbours = [(float(number), seconds(block[:number], most)) for number in (1, 4, 16, 64, 256, 1024)]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (("uniform width (share of the channels), alone", widths), ("images, alone at half width", images))
    for axis, (label, points) in zip(axes, (*panels, ("neighbours scored in one walk", neighbours)), strict=True):
        axis.plot(*zip(*points, strict=True), "o-")
        axis.set(xlabel=label, ylabel=f"seconds per candidate ({bench.best})")
        axis.grid(alpha=0.3)
    axes[2].set(xscale="log", yscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
