"""Compare FLOPs and params of all 2 x 16,384 Channel-Bench-Macro networks with the benchmark's own files.

    python benchmarks/costs.py FOLDER          FOLDER holds Results_MobileNet.json and Results_ResNet*.json

Also times the table against a pass with hooks over a network that is built for it. Prints one JSON record.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from bcnet.models.channel_bench import MOBILENET_CHANNELS, RESNET_CHANNELS, MobileNet, ResNet
from bcnet.runtime import environment
from bcnet.space.cost import CostTable
from bcnet.space.trace import trace


def main() -> None:
    """Run the comparison."""
    folder = Path(sys.argv[1])
    record: dict[str, object] = {}
    for name, factory, full in (("MobileNet", MobileNet, MOBILENET_CHANNELS), ("ResNet", ResNet, RESNET_CHANNELS)):
        path = next(iter(sorted(folder.glob(f"Results_{name}*.json"))))
        truth = json.loads(path.read_text())
        table = CostTable(trace(factory(), (3, 32, 32)))
        widths = [table.space.decode(arch) for arch in truth]
        start = time.perf_counter()
        found = {cost: table.of_widths(widths, cost).tolist() for cost in ("flops", "params")}
        seconds = time.perf_counter() - start
        differences = {cost: sum(a != e[cost] for a, e in zip(found[cost], truth.values(), strict=True)) for cost in found}
        channels = [k * c // 4 for k, c in zip(widths[0], full, strict=True)]
        start = time.perf_counter()
        hooked = count_with_hooks(factory(channels=channels))
        record[path.name] = {
            "networks": len(widths),
            "differences": differences,
            "seconds_for_both_costs_of_all": round(seconds, 4),
            "seconds_to_build_and_hook_one": round(time.perf_counter() - start, 4),
            "hooks_agree": hooked == found["flops"][0],
        }
    print(json.dumps(record | {"environment": environment()}, indent=1))


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
