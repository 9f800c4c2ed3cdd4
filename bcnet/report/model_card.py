"""The card of an extracted network: what it is, what it costs, how to load it without bcnet."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcnet.files import write_text
from bcnet.results import Speed
from bcnet.supernet.export import ONNX, PROGRAM
from bcnet.supernet.extract import CARD, DESCRIPTION, WEIGHTS, trust_argument

_USES = {
    PROGRAM: """## With PyTorch alone

```python
import torch
network = torch.export.load("network.pt2").module()
logits = network(images)
```
""",
    ONNX: """## With ONNX Runtime

```python
import onnxruntime
session = onnxruntime.InferenceSession("network.onnx")
(logits,) = session.run(None, {"images": images.numpy()})
```
""",
    WEIGHTS: """## To train it further

```python
from pathlib import Path
import bcnet
network, description = bcnet.load_network(Path("."){TRUST})
```
""",
}
_FILES = {
    WEIGHTS: "weights, and the description once more",
    DESCRIPTION: "the description: model, channels of every layer, costs, classes",
    PROGRAM: "a `torch.export` program for any number of images",
    ONNX: "ONNX for any number of images",
}


def write_model_card(folder: Path, description: Mapping[str, Any]) -> Path:
    """Write ``README.md`` beside what `save_network` and `export_network` wrote; returns its path."""
    here = [name for name in _FILES if (folder / name).exists()]
    shape = ", ".join(map(str, description["input_shape"]))
    lines = [
        f"# {_plain(description['model']['name'])}, widths {description['widths']}",
        "",
        f"Found by network width search with bcnet: {_plain(description['model']['name'])} with other numbers of channels.",
        "",
        "| | |",
        "| --- | --- |",
        f"| FLOPs (multiply-adds of one image) | {description['flops']:,} |",
        f"| parameters | {description['params']:,} |",
        f"| accuracy on held-out training images, weights of the supernet | {description['val_accuracy']:.2f} % |",
        f"| speed | {Speed.model_validate(description['speed']).sentence} |",
        f"| images | float32 `(N, {shape})`, pixels in 0..1, then `(pixels - mean) / std` per channel |",
        f"| pictures of another size | {_scaled(description)} |",
        f"| mean, std | {_numbers(description['mean'])}; {_numbers(description['std'])} |",
        f"| classes | {len(description['classes'])}: {_plain(_some(description['classes']))} |",
        "",
        "The weights are those of the supernet, with batch norm statistics of this network; `bcnet retrain` trains it alone.",
        "",
        *(_USES[name].replace("{TRUST}", trust_argument(description)) for name in (PROGRAM, ONNX, WEIGHTS) if name in here),
        "## Files",
        "",
        *(f"* `{name}`: {_FILES[name]}" for name in here),
        "",
        "## Channels",
        "",
        "| group | channels |",
        "| --- | --- |",
        *(f"| {_plain(name)} | {count} |" for name, count in description["channels"].items()),
    ]
    write_text(folder / CARD, "\n".join(lines) + "\n")
    return folder / CARD


def _scaled(description: Mapping[str, Any]) -> str:
    _, height, width = description["input_shape"]
    fraction = description.get("crop_fraction", 1)
    share = "" if fraction == 1 else f" of {fraction:g} of its sides"
    return f"scaled to cover {height}x{width}, bicubic, and the centre{share} cropped (`PIL.ImageOps.fit`, bleed {(1 - fraction) / 2:g})"


def _plain(words: str) -> str:
    """Words that stay words in a table of Markdown."""
    return html.escape(words, quote=False).replace("|", "\\|").replace("\n", " ")


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
