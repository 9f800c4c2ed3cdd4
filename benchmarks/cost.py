"""Time the cost table against a pass with hooks over a network built for the widths: the usual way.

    python benchmarks/cost.py [FOLDER] [--quick] [--out FILE]

FOLDER holds Results_MobileNet*.json and Results_ResNet*.json of Channel-Bench-Macro: FLOPs and params of all 2 x 16,384 networks
are compared with the benchmark's own; without it nothing is. Prints one JSON record.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import interleave, spread
from torch import nn

from bcnet.machine import environment
from bcnet.models.channel_bench import MOBILENET_CHANNELS, RESNET_CHANNELS, MobileNet, ResNet
from bcnet.space.cost import CostTable
from bcnet.space.trace import trace

CALLS = 1000  # of the table in one measurement
Factory = Callable[..., nn.Module]
MODELS: dict[str, tuple[Factory, Sequence[int]]] = {"MobileNet": (MobileNet, MOBILENET_CHANNELS), "ResNet": (ResNet, RESNET_CHANNELS)}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of Channel-Bench-Macro")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    files = {name: sorted(options.folder.glob(f"Results_{name}*.json")) for name in MODELS} if options.folder else {}
    for name, paths in files.items():
        if not paths:
            parser.error(f"{options.folder}: holds no Results_{name}*.json of Channel-Bench-Macro (github.com/xiusu/Channel-Bench-Macro)")
    if not files:
        print("no FOLDER of Channel-Bench-Macro's Results_*.json given: costs are timed, not compared with its own", file=sys.stderr)
    record: dict[str, Any] = {}
    for name, (factory, full) in MODELS.items():
        table = CostTable(trace(factory(channels=full), (3, 32, 32)))
        record[name] = measure(table, factory, full, 5 if options.quick else 25)
        if files:
            record[name] |= compare(table, files[name][0])
    record["environment"] = environment()
    text = json.dumps(record, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def compare(table: CostTable, path: Path) -> dict[str, Any]:
    """How many networks cost something else than the benchmark says."""
    truth = json.loads(path.read_text())
    widths = [table.space.decode(arch) for arch in truth]
    differences = {
        cost: sum(own != entry[cost] for own, entry in zip(table.of_widths(widths, cost).tolist(), truth.values(), strict=True))
        for cost in ("flops", "params")
    }
    return {"compared_with": path.name, "networks": len(truth), "differences": differences}


def measure(table: CostTable, factory: Factory, full: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds per width vector of both ways, turn by turn, and of the whole space at once."""
    everything = list(table.space.enumerate())
    some = everything[:: len(everything) // rounds]

    def hooked(number: int) -> int:
        return count_with_hooks(factory(channels=[k * c // 4 for k, c in zip(some[number], full, strict=True)]))

    def looked_up(number: int) -> None:
        for _ in range(CALLS):
            table.one(some[number], "flops")

    assert all(hooked(number) == table.one(some[number], "flops") for number in range(3))
    seconds = interleave({"hooks": hooked, "table": looked_up}, rounds, torch.device("cpu"))
    array = np.array(everything)
    wholes = interleave({"": lambda _: table.of_widths(array, "flops")}, 9, torch.device("cpu"))[""]
    whole = spread(wholes)["median"]
    hooks, one = spread(seconds["hooks"]), spread([value / CALLS for value in seconds["table"]])
    return {
        "seconds_hooks": hooks,
        "seconds_table": one,
        "seconds_whole_space": whole,
        "ratio_one_width_vector": hooks["median"] / one["median"],
        "ratio_whole_space_per_width_vector": hooks["median"] / (whole / len(everything)),
    }


def count_with_hooks(network: nn.Module) -> int:
    """FLOPs of one network by a forward pass with hooks: the usual way."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return total


if __name__ == "__main__":
    main()
