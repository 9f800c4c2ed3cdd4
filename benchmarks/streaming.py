"""How fast training batches are read from image files, beside a plain timm loader with the same transforms, workers and batch size.

python benchmarks/streaming.py [--folder ROOT] [--size 64] [--workers 2] [--model resnet18]

Both read random-resized crops, flipped at random, by turns, each with fresh workers that are warm before the clock starts. Without a folder
JPEG files of 320x240 are made. With a model of timm that one is trained on the batches, which is when threads and workers get in each
other's way. Prints JSON: images/s of every round, medians, and their ratio.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import spread
from timm.models import create_model
from torch import Tensor, nn

from bcnet.config import DataConfig
from bcnet.data.streaming import StreamingData
from bcnet.machine import environment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = (0.25, 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--size", type=int, default=64, help="pixels of the crops")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40, help="timed batches of a round")
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", help="train this model of timm by SGD meanwhile")
    parser.add_argument("--images", type=int, default=2000, help="JPEG files to make where no folder is given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or _make_pictures(Path(temporary), options.images)
        rates: dict[str, list[float]] = {"bcnet": [], "timm": []}
        for _ in range(options.rounds):
            for name, start in (("bcnet", _bcnet), ("timm", _timm)):
                rates[name].append(_rate(start(folder, options), options))
    medians = {name: median(values) for name, values in rates.items()}
    result = {
        "ratio": round(medians["bcnet"] / medians["timm"], 3),
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "environment": environment(),
    }
    print(json.dumps(result, indent=1))


def _rate(batches: Iterator[Any], options: argparse.Namespace) -> float:
    """Images per second of the timed batches."""
    use = _training(options) if options.model else lambda images, labels: None
    for _ in range(options.warm_up):
        use(*next(batches))
    start = time.perf_counter()
    for _ in range(options.batches):
        use(*next(batches))
    return float(options.batches * options.batch_size / (time.perf_counter() - start))


def _training(options: argparse.Namespace) -> Callable[[Tensor, Tensor], None]:
    """What trains a model by a batch."""
    model: nn.Module = create_model(options.model, num_classes=1000).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = nn.functional.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _bcnet(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    config = DataConfig(
        source="imagefolder",
        root=folder,
        image_size=options.size,
        num_val=0,
        flip=True,
        streaming=True,
        resized_crop=SCALE,
        mean=list(MEAN),
        std=list(STD),
    )
    data = StreamingData(config, 0, torch.device("cpu"), options.workers)
    batches, step = data.train_batches("full_train", options.batch_size, 0), 0
    while True:
        yield batches.batch(step)
        step += 1


def _timm(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    make: Callable[..., Any] = create_loader
    read: Callable[..., Any] = create_dataset
    loader = make(
        read("", str(folder / "train"), is_training=True),
        input_size=(3, options.size, options.size),
        batch_size=options.batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=SCALE,
        color_jitter=None,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=options.workers,
    )
    while True:
        yield from loader


def _make_pictures(root: Path, number: int) -> Path:
    """Smooth random pictures, which compress about as photographs do."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", number), ("test", 2)):
        for place in range(count):
            folder = root / part / f"class{place % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            small.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{place}.jpg", quality=90)
    return root


if __name__ == "__main__":
    main()
