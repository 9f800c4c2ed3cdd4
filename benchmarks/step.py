"""Time the supernet's training step against a plain one on the same work, in one process, turn by turn.

    python benchmarks/step.py [--model mobilenet|resnet|resnet20] [--batch 128] [--device cpu] [--quick] [--out FOLDER] [--scaling]

One step is a width vector on the left and on the right: forward, backward, SGD. images/s counts the batch once. The
reference (``reference.py``) runs under the same tuned allocator, and once more in a process of its own with the default one.
Both must compute the same loss. bf16 is measured where the hardware computes in it. Prints a JSON record; with ``--out`` also
writes it, and with ``--scaling`` draws ``scaling.png``: seconds of a step against width, batch and number of groups.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import ceilings, child, count_operations, interleave, peak_memory_mib, precisions, spread
from reference import Reference
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.machine import HALF_TYPES, autocast, environment, resolve_device, tune_malloc
from bcnet.models.channel_bench import MobileNet, ResNet
from bcnet.models.cifar import ResNet20
from bcnet.space.cost import CostTable
from bcnet.space.trace import trace
from bcnet.space.widths import Side, Widths
from bcnet.supernet.supernet import Supernet

MODELS: dict[str, Callable[[], nn.Module]] = {"mobilenet": MobileNet, "resnet": ResNet, "resnet20": ResNet20}
SIDES: tuple[Side, Side] = ("left", "right")


class Bench:
    """A supernet, its reference and a batch of noise."""

    def __init__(self, model: nn.Module, batch: int, device: torch.device) -> None:
        self.device = device
        self.space = trace(model, (3, 32, 32))
        supernet = Supernet(model, self.space, wide=True)
        self.reference = Reference(supernet, model).to(device)
        self.supernet = supernet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain_optimizer = torch.optim.SGD(self.reference.parameters(), 1e-4, momentum=0.9, foreach=False)
        self.optimizer = torch.optim.SGD(self.supernet.parameters(), 1e-4, momentum=0.9, fused=True)
        for parameter in self.supernet.parameters():
            parameter.grad = torch.zeros_like(parameter)  # as the trainer does: a subnet may leave out a shortcut
        rng = np.random.default_rng(0)
        self.widths = [self.space.sample(rng) for _ in range(64)]
        self.batch_of(batch)

    def batch_of(self, size: int) -> None:
        """Use another batch size."""
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(size, 3, 32, 32, generator=generator).to(self.device)
        self.labels = torch.randint(10, (size,), generator=generator).to(self.device)

    def plain(self, number: int) -> list[float]:
        """A step of the reference."""
        return self.reference.step(self.images, self.labels, self.widths[number], self.plain_optimizer)

    def fast(self, number: int, half: torch.dtype | None, widths: Widths | None = None) -> Tensor:
        """A step of the supernet, as the trainer does it."""
        self.supernet.train()
        images = self.images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=False)
        losses = []
        for side in SIDES:
            self.supernet.set_active_subnet(widths or self.widths[number], side)
            with autocast(self.device, half):
                logits = self.supernet(images)
            loss = F.cross_entropy(logits.float(), self.labels)
            loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        return torch.stack(losses)

    def check(self, precisions: dict[str, torch.dtype | None]) -> dict[str, float]:
        """Largest relative difference of the two losses over a few width vectors, for every precision."""
        worst = dict.fromkeys(precisions, 0.0)
        learning = [group for o in (self.optimizer, self.plain_optimizer) for group in o.param_groups]
        for group in learning:
            group["lr"] = 0.0
        for number in range(3):
            expected = torch.tensor(self.plain(number))
            for name, half in precisions.items():
                losses = self.fast(number, half).cpu()
                worst[name] = max(worst[name], float(((losses - expected) / expected).abs().max()))
        for group in learning:
            group["lr"] = 1e-4
        assert all(value < (0.02 if precisions[name] else 1e-4) for name, value in worst.items()), worst
        return worst


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="mobilenet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="three rounds at batch 32, no more than 40 s")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--profile", action="store_true", help="shares of time by operation, and nothing else")
    parser.add_argument("--reference-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.batch, options.rounds = min(options.batch, 32), 3
    device = resolve_device(options.device)
    tuned = tune_malloc()
    torch.manual_seed(0)
    bench = Bench(MODELS[options.model](), options.batch, device)
    rounds = options.rounds
    if options.reference_only:
        print(json.dumps(spread(interleave({"": bench.plain}, rounds, device)[""])))
        return
    kinds = precisions(device)
    best = list(kinds)[-1]
    variants: dict[str, Callable[[int], object]] = {"reference fp32": bench.plain}
    variants |= {f"fast {name}": partial(bench.fast, half=half) for name, half in kinds.items()}
    if options.profile:
        for name in ("reference fp32", f"fast {best}"):
            print(name, *profile(variants[name], 5), sep="\n  ")
        return
    record: dict[str, object] = {"model": options.model, "batch": options.batch, "malloc_tuned": tuned}
    record["loss_differs_by"] = bench.check(kinds)
    seconds = interleave(variants, rounds, device)
    if device.type == "cpu":
        again = ["--model", options.model, "--batch", str(options.batch), "--rounds", str(rounds), "--device", "cpu", "--reference-only"]
        printed = json.loads(child([__file__, *again], os.environ | {"BCNET_MALLOC": "default"}))
        record["reference, default malloc"] = printed | {"images_per_s": options.batch / printed["median"]}
    tops = ceilings(device, options.quick, kinds)
    flops = float(np.mean(CostTable(bench.space).of_widths(bench.widths[:rounds], "flops")))
    for name, call in variants.items():
        row = spread(seconds[name])
        gmacs = 2 * 3 * flops * options.batch / row["median"] / 1e9  # two sides; forward, and twice that backward
        record[name] = row | {
            "images_per_s": options.batch / row["median"],
            "ratio_to_reference": float(np.median(np.divide(seconds["reference fp32"], seconds[name]))),
            "dispatched_operations": count_operations(partial(call, 0)),
            "peak_memory_mib": peak_memory_mib(partial(call, 0), device),
            "share_of_matmul_ceiling": gmacs / tops[f"matmul_{name.split()[-1]}_gmacs"],
        }
    default = record.get("reference, default malloc")
    if isinstance(default, dict):
        record[f"{best}_against_default_malloc"] = default["median"] / spread(seconds[f"fast {best}"])["median"]
    record |= {"ceilings": tops, "environment": environment(device)}
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"step_{options.model}.json").write_text(json.dumps(record, indent=1) + "\n")
        if options.scaling:
            draw_scaling(options.out / f"step_{options.model}_scaling.png", bench, device, best)


def profile(call: Callable[[int], object], steps: int) -> list[str]:
    """Shares of the time of a few steps by operation, without what it calls."""
    from torch.profiler import profile

    call(0)
    with profile() as profiler:
        for number in range(steps):
            call(number)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [f"{event.self_cpu_time_total / total:6.1%}  {event.key}" for event in events[:10]]


def draw_scaling(path: Path, bench: Bench, device: torch.device, precision: str) -> None:
    """Seconds of a step against uniform width, batch, and number of groups that are not at their narrowest."""
    from matplotlib.figure import Figure

    space = bench.space
    size = len(bench.images)
    bins = min(group.bins for group in space.groups)

    def time_of(widths: Widths) -> float:
        return min(interleave({"": lambda _: bench.fast(0, HALF_TYPES.get(precision), widths)}, 4, device)[""])

    by_width = [(k / bins, time_of((k,) * len(space.groups))) for k in range(1, bins + 1)]
    narrow, full = space.narrowest, space.full
    by_groups = [(float(n), time_of((*full[:n], *narrow[n:]))) for n in range(len(space.groups) + 1)]
    by_batch: list[tuple[float, float]] = []
    for batch in (size // 4, size // 2, size):
        bench.batch_of(batch)
        by_batch.append((batch, time_of((bins // 2,) * len(space.groups))))
    curves = {
        "uniform width (share of the channels)": by_width,
        "batch, at half width": by_batch,
        "first groups at full width, the others at a quarter": by_groups,
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (label, points) in zip(axes, curves.items(), strict=True):
        axis.plot(*zip(*points, strict=True), "o-")
        axis.set(xlabel=label, ylabel=f"seconds per step ({precision})", ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
