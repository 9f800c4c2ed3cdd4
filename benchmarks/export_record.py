"""Does what is written compute what the network computes? The most used CNNs of timm, narrowed at random, in every format.

    python benchmarks/export_record.py OUT.json [--models NAME ...] [--input 3x128x128]

Each model is traced, a random width vector is taken from its supernet, written as safetensors and loaded again, exported as a
``torch.export`` program and as ONNX, and every copy is run on images that the export never saw. Goes on where it was.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bcnet.errors import UserError
from bcnet.files import read_json, write_json
from bcnet.machine import environment
from bcnet.models.factory import build_model
from bcnet.supernet.export import export_network
from bcnet.supernet.extract import load_network, save_network
from bcnet.supernet.proof import trace
from bcnet.supernet.supernet import Supernet

MODELS = (
    *("resnet18", "resnet34", "resnet50", "resnet50d", "resnext50_32x4d", "seresnet50", "wide_resnet50_2", "densenet121"),
    *("mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100", "efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_b0"),
    *("convnext_tiny", "regnety_008", "regnetx_008", "mnasnet_100", "ghostnet_100", "rexnet_100"),
)


def main() -> None:
    """Look at every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--input", default="3x128x128")
    options = parser.parse_args()
    shape = tuple(map(int, options.input.split("x")))
    found: dict[str, Any] = read_json(options.out, "a record of exports")["models"] if options.out.exists() else {}
    for name in options.models:
        if name not in found:
            found[name] = look_at(f"timm/{name}", shape)
            print(name, found[name], flush=True)
            write_json(options.out, {"input": options.input, "models": found, "environment": environment()})


def look_at(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Largest difference of logits, relative to the largest logit, for every format."""
    model = build_model(name, 1000)
    space = trace(model, shape, divisor=8)
    widths = space.sample(np.random.default_rng(0))
    network = Supernet(model, space).extract(widths).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(5))
    row: dict[str, Any] = {"widths": space.encode(widths)}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder, expected = Path(temporary), network(images)
        save_network(folder, network, {"model": {"name": name, "num_classes": 1000, "args": {}}})
        row["safetensors"] = _difference(load_network(folder)[0](images), expected)
        for form in ("torch", "onnx"):
            begun = time.monotonic()
            try:
                path = export_network(folder, network, shape, form)
            except UserError as error:
                row[form] = str(error)
                continue
            row[f"{form}_seconds"] = round(time.monotonic() - begun, 1)
            row[form] = _difference(_run(path, form, images), expected)
    return row


def _run(path: Path, form: str, images: torch.Tensor) -> torch.Tensor:
    if form == "torch":
        return torch.export.load(str(path)).module()(images)  # type: ignore[no-any-return]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


if __name__ == "__main__":
    main()
