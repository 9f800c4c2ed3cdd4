"""Time the scoring of many width vectors against scoring each by itself, on the same images, in one process.

    python benchmarks/score.py [--model mobilenet|resnet] [--run RUN] [--widths 256|all] [--images 512] [--quick] [--scaling] [--out FOLDER]

Both sides of every candidate are calibrated on ``--images`` images and evaluated on as many. Three ways: the plain reference
(``reference.py``, float32), the supernet one by one, and the walk that shares what candidates have in common. The scores
must agree. With ``--run`` (a trained run of the same model) images and weights are real, and the rank agreement of bf16 with
float32 is measured over the same candidates; otherwise both are noise. Candidates are a block of the space in
lexicographic order (``all``: the whole space) and a generation of 40 random ones; each is held against its own reference.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import interleave, peak_memory_mib, spread
from reference import Reference
from scipy import stats
from step import MODELS
from torch import Tensor

from bcnet.data.batches import EvalBatches
from bcnet.data.sources import ImageSet
from bcnet.run import Run
from bcnet.runtime import environment, resolve_device, tune_malloc
from bcnet.search.scorer import Scorer
from bcnet.space.trace import trace
from bcnet.space.widths import Widths
from bcnet.supernet.supernet import Supernet

Batches = list[tuple[Tensor, Tensor]]


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


def parts(options: argparse.Namespace, device: torch.device) -> tuple[Any, Supernet, EvalBatches, EvalBatches]:
    """The plain model, the supernet, calibration and validation images."""
    if options.run:
        run = Run.open(options.run, [f"device={options.device}"])
        supernet = run.trained.trained
        calibration = EvalBatches(run.data.train, run.normalize, options.batch, options.images)
        return run.model, supernet, calibration, EvalBatches(run.data.val, run.normalize, options.batch, options.images)  # type: ignore[return-value]
    torch.manual_seed(0)
    model = MODELS[options.model]()
    supernet = Supernet(model, trace(model, (3, 32, 32)), wide=True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def noise(seed: int) -> EvalBatches:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (options.images, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(10, (options.images,), generator=generator)
        scale = lambda x: (x.to(device).contiguous(memory_format=torch.channels_last).float() - 127.5) / 74  # noqa: E731
        scale.device = device  # type: ignore[attr-defined]
        return EvalBatches(ImageSet(images, labels), scale, options.batch)  # type: ignore[arg-type]

    return model, supernet, noise(1), noise(2)


def main() -> None:
    """Run the benchmark."""
    options = parse()
    device = resolve_device(options.device)
    tune_malloc()
    model, supernet, calibration, validation = parts(options, device)
    if options.scaling:
        draw_scaling((options.out or Path()) / f"score_{options.model}_scaling.png", supernet, calibration, validation)
        return
    space = supernet.space
    everything = list(space.enumerate())
    block = everything if options.widths == "all" else everything[len(everything) // 2 :][: int(options.widths)]
    rng = np.random.default_rng(0)
    generation = sorted({space.sample(rng) for _ in range(10 if options.quick else 40)})
    reference = Reference(supernet, model).to(device)
    batches = [[(x.contiguous(), y) for x, y in images] for images in (calibration, validation)]

    def scorer(bf16: bool, memory_gib: float = 16.0, whole_layers: bool = False) -> Scorer:
        options = {"bf16": bf16, "memory_gib": memory_gib, "whole_layers": whole_layers}
        return Scorer(supernet, calibration, validation, metric="neg_cross_entropy", **options)  # type: ignore[arg-type]

    lonely = {bf16: scorer(bf16, 1e-9) for bf16 in (False, True)}

    def alone(bf16: bool, widths: Widths) -> None:
        lonely[bf16].evaluations.clear()
        lonely[bf16].score(widths)

    record: dict[str, Any] = {"model": options.model, "run": bool(options.run), "images": [len(calibration), len(validation)]}
    sets = {"block": (block, True), "generation": (generation, False)}
    for label, (wanted, whole_layers) in sets.items():
        few = [wanted[n] for n in rng.choice(len(wanted), 2 if options.quick else 5, replace=False)]
        ways = {
            "reference fp32": lambda n, few=few: reference.score(few[n], *batches),
            "alone fp32": lambda n, few=few: alone(False, few[n]),
            "alone bf16": lambda n, few=few: alone(True, few[n]),
        }
        seconds = interleave(ways, len(few), device)  # type: ignore[arg-type]
        rows: dict[str, Any] = {"candidates": len(wanted)}
        for name in ways:
            ratio = float(np.median(np.divide(seconds["reference fp32"], seconds[name])))
            rows[name] = spread(seconds[name]) | {"ratio_to_reference": ratio}
        expected = {widths: -float(np.mean(reference.score(widths, *batches))) for widths in few}
        found = {}
        for bf16 in (False, True) if len(wanted) < len(everything) else (True,):
            fresh = scorer(bf16, whole_layers=whole_layers)
            assert fresh.walker is not None
            start = time.perf_counter()
            found[bf16] = fresh.score_many(wanted)
            each = (time.perf_counter() - start) / len(wanted)
            differs = max(abs(found[bf16][w] / expected[w] - 1) for w in few)
            assert differs < (0.02 if bf16 else 1e-4), (label, bf16, differs)
            rows[f"walk {'bf16' if bf16 else 'fp32'}"] = {
                "seconds_per_candidate": each,
                "ratio_to_reference": float(np.mean(seconds["reference fp32"])) / each,
                "largest_difference": differs,
            }
        one_by_one, together = fresh.walker.multiply_adds(wanted)
        rows["multiply_adds_saved"] = one_by_one / together
        rows["peak_memory_mib"] = peak_memory_mib(
            lambda wanted=wanted, w=whole_layers: scorer(True, whole_layers=w).score_many(wanted[:40]), device
        )
        if options.run and len(found) > 1:
            pairs = [(found[False][w], found[True][w]) for w in wanted]
            rows["kendall_tau_of_bf16_with_fp32"] = float(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
        record[label] = rows
    record["environment"] = environment(device)
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"score_{options.model}.json").write_text(json.dumps(record, indent=1) + "\n")


def draw_scaling(path: Path, supernet: Supernet, calibration: EvalBatches, validation: EvalBatches) -> None:
    """Seconds per candidate in bf16: alone against uniform width and images, in a walk against the number of neighbours."""
    from matplotlib.figure import Figure

    space = supernet.space
    everything = list(space.enumerate())

    def seconds(wanted: list[Widths], images: int, memory_gib: float = 16.0) -> float:
        parts = [EvalBatches(b.images, b.normalize, b.batch_size, images) for b in (calibration, validation)]
        scorer = Scorer(supernet, *parts, bf16=True, memory_gib=memory_gib, whole_layers=True)
        scorer.walker  # noqa: B018  made before the clock starts
        start = time.perf_counter()
        scorer.score_many(wanted)
        return (time.perf_counter() - start) / len(wanted)

    most = len(validation)
    half = (max(1, space.bins // 2),) * len(space.groups)
    widths = [(k / space.bins, seconds([(k,) * len(space.groups)], most, 1e-9)) for k in range(1, space.bins + 1)]
    images = [(n, seconds([half], n, 1e-9)) for n in (most // 4, most // 2, most)]
    middle = len(everything) // 2
    neighbours = [(n, seconds(everything[middle : middle + n], most)) for n in (1, 4, 16, 64, 256, 1024)]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (("uniform width (share of the channels), alone", widths), ("images, alone at half width", images))
    for axis, (label, points) in zip(axes, (*panels, ("neighbours scored in one walk", neighbours)), strict=True):
        axis.plot(*zip(*points, strict=True), "o-")
        axis.set(xlabel=label, ylabel="seconds per candidate (bf16)")
        axis.grid(alpha=0.3)
    axes[2].set(xscale="log", yscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
