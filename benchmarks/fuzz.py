"""Damaged and hostile inputs by the thousand, for everything that reads a file or an argument.

    python benchmarks/fuzz.py --inputs 100000 --seed 0 --out record.md

Every input is a good one that was changed: bits, bytes, pieces, numbers, words, entries of its tree; there, what is sealed gets
a new seal. An input may be refused in one line, or accepted; then what was read is compared with a plain model of what is right: the
undamaged contents of whatever carries a checksum, else what another and simpler reader finds in the same file. All else is a failure:
a traceback, more than five seconds, or an acceptance that the model does not confirm.
"""

import argparse
import ast
import contextlib
import csv
import hashlib
import io
import json
import math
import platform
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from bcnet.commands.app import read_named_widths
from bcnet.commands.models import read_choices, read_shape
from bcnet.commands.networks import read_seeds
from bcnet.config import load_as, load_config
from bcnet.data.folder import find_images, open_image
from bcnet.dense.config import DenseConfig
from bcnet.errors import UserError
from bcnet.files import read_json
from bcnet.formatting import parse_number, plural
from bcnet.machine import cpu_info
from bcnet.models.digits import DigitsResNet
from bcnet.models.net_config import read_net_config
from bcnet.models.weights import read_weights
from bcnet.results import (
    BudgetRecord,
    EvaluatedWidths,
    Record,
    RetrainedWidth,
    RetrainRecord,
    SearchRecord,
    SearchSettings,
    read_record,
)
from bcnet.scoring.cache import ScoreCache
from bcnet.seals import check_seal, seal, sealed_line, sealed_record
from bcnet.space.channel_lists import read_channels
from bcnet.supernet.extract import WEIGHTS, load_network, save_network
from bcnet.supernet.proof import trace
from bcnet.supernet.survey import look_at, read_survey
from bcnet.training.checkpoint import load_checkpoint, save_checkpoint
from bcnet.training.watch import CsvFile
from bcnet.truth.build import Journal
from bcnet.truth.ground_truth import load_ground_truth
from bcnet.truth.score_files import load_scores
from bcnet.version import __version__

SECONDS = 5
ODD: list[Any] = [None, True, -1, 0, 0.5, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\x00", "<script>", [], {}, [[]], "1" * 400]
WORDS = [
    b"NaN",
    b"1e999",
    b"-1",
    b"true",
    b"null",
    b"[" * 2000,
    b"9" * 5000,
    b"\x00",
    b"\xff",
    b'"',
    b"\n",
    b": ",
    b"&a [*a]",
    b"!!int ''",
    b"010",
]
Right = Callable[[bytes, Any], bool]


@dataclass
class Reader:
    """Something that reads.

    Attributes:
        name: in the table.
        whole: a good input.
        read: reads an input and gives what it found as it can be compared.
        right: whether an input holds what was read.
        suffix: of the file's name, or all of it.
        tree: of the good input, and how such a tree is written, with whatever checksum it has; half of the inputs are changed there.
        results: how many inputs ended how.
    """

    name: str
    whole: bytes
    read: Callable[[Path], Any]
    right: Right
    suffix: str = ""
    tree: tuple[Any, Callable[[Any], bytes]] | None = None
    results: Counter[str] = field(default_factory=Counter)


# Changing ---------------------------------------------------------------------------------------------------------------


def mutate(whole: bytes, rng: random.Random) -> bytes:
    """A changed copy."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 8, 64, 512))
        kind = rng.randrange(8)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(content):
            content[place] = rng.randrange(256)
        elif kind == 2:
            del content[place : place + size]
        elif kind == 3:
            content[place:place] = rng.randbytes(size)
        elif kind == 4:
            content[place:place] = content[rng.randrange(len(content) + 1) :][:size]
        elif kind == 5:
            del content[place:]
        elif kind == 6:
            content[place:place] = rng.choice(WORDS)
        else:
            _change_token(content, rng)
    return bytes(content)


def _change_token(content: bytearray, rng: random.Random) -> None:
    """Another word in the place of one."""
    tokens = list(re.finditer(rb"[\w.+-]+", bytes(content[:20_000])))
    if tokens:
        one, other = rng.choice(tokens), rng.choice(tokens)
        content[one.start() : one.end()] = rng.choice((other.group(), rng.choice(WORDS), str(rng.randrange(-9, 99)).encode()))


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of a tree with something odd in one place."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        one = stack.pop()
        for key, value in list(one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()):
            places.append((one, key))
            stack.append(value)
    if not places:
        return rng.choice(ODD)
    owner, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[rng.choice(("x", "name", "0", "costs"))] = owner[key]
    else:
        owner[key] = rng.choice(ODD)
    return tree


# What is right ----------------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Equality of trees with tensors, types included."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (bool(one == other) or one != one != other)


def as_before(before: Any) -> Right:
    """What carries a checksum is what it was."""
    return lambda content, found: same(before, found)


def is_record(content: bytes, found: Any) -> bool:
    """What another reader finds, with its own checksum if there is one."""
    tree = json.loads(content.decode("utf-8-sig"))
    stated = tree.pop("sha256", None)
    is_sealed = stated in (None, hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest())
    return bool(is_sealed and _holds(tree, found))


def _holds(tree: Any, found: Any) -> bool:
    """Whether all that was found stands in a tree, or is a default that it leaves out."""
    if isinstance(found, dict):
        return isinstance(tree, dict) and all(key not in tree or _holds(tree[key], value) for key, value in found.items())
    if isinstance(found, list):
        return isinstance(tree, list) and len(tree) == len(found) and all(map(_holds, tree, found))
    if isinstance(found, float):
        return isinstance(tree, int | float) and not isinstance(tree, bool) and float(tree) == found and math.isfinite(found)
    return type(tree) is type(found) and bool(tree == found)


def is_lines(content: bytes, found: Any) -> bool:
    """Every entry stands in a line with its own checksum, or in one without as 0.1 wrote them, and is possible."""
    entries = []
    for line in content.split(b"\n"):
        digest, _, text = (b"", b"", line) if line.startswith(b"{") else line.partition(b" ")
        if text.startswith(b"{") and (not digest or digest == hashlib.sha256(text).hexdigest()[:16].encode()):
            with contextlib.suppress(ValueError):
                entries.append(json.loads(text))
    by_name = {str(entry.get("widths")): entry for entry in entries}
    return all(
        all(0 <= a <= 100 for a in value) and _holds(by_name[name]["acc"], value)
        if isinstance(value, list)
        else _holds(by_name[name], value) and all(math.isfinite(number) for side in value.values() for number in side.values())
        for name, value in found.items()
    )


def is_json(content: bytes, found: Any) -> bool:
    """What another reader finds, and no key twice."""

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in entries}) == len(entries)
        return dict(entries)

    return same(json.loads(content.decode("utf-8-sig"), object_pairs_hook=pairs), found)


def is_truth(content: bytes, found: Any) -> bool:
    """Every network of the file with its numbers, all of them possible."""
    tree = {name: entry for name, entry in json.loads(content.decode("utf-8-sig")).items() if name != "meta"}
    read = {name: ([float(a) for a in entry["acc"]], int(entry["flops"]), int(entry["params"])) for name, entry in tree.items()}
    return read == found and all(0 <= a <= 100 and flops > 0 and params > 0 for acc, flops, params in found.values() for a in acc)


def is_scores(content: bytes, found: Any) -> bool:
    """Every score of the file, finite."""
    tree = json.loads(content.decode("utf-8-sig"))["scores"]
    return {name: float(value) for name, value in tree.items()} == found and all(map(math.isfinite, found.values()))


def is_csv_truth(content: bytes, found: Any) -> bool:
    """Every line of the file with its numbers."""
    rows = [
        {str(key).strip().lower(): (value or "").strip() for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    ]
    acc = [[float(value) for key, value in row.items() if key.startswith("acc")] for row in rows]
    scale = 100 if max(max(own) for own in acc) <= 1 else 1
    read = {row["widths"]: ([scale * a for a in own], int(float(row.get("flops", 0)))) for row, own in zip(rows, acc, strict=True)}
    return len(read) == len(rows) and read == found


def is_widths(content: bytes, found: Any) -> bool:
    """The lines of the file."""
    lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    return set(found) == {"44444" if line == "full" else line for line in lines if line and not line.startswith("#")}


def is_net(content: bytes, found: Any) -> bool:
    """The blocks as Python reads them."""
    parts = [ast.literal_eval(part.strip()) for part in content.decode("utf-8-sig").strip().split("|")]
    return bool([list(map(list, (part[0], part[2]))) if len(part) == 5 else part[0] for part in parts] == found)


def is_config(content: bytes, found: Any) -> bool:
    """Every setting of the file is what it reads as, taken as a plain word, and no setting stands there twice."""
    node = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    return node is None or _is_setting(node, found)


def _is_setting(node: Any, found: Any) -> bool:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        if not isinstance(found, dict) and len(node.value) == 1:  # {name: x} of what has no settings
            return _is_setting(node.value[0][1], found)
        entries = [(key.value, value) for key, value in node.value if key.value not in ("<<", "base")]
        return len(set(keys)) == len(keys) and all(_is_setting(value, found[key]) for key, value in entries)
    if isinstance(node, yaml.SequenceNode):
        return len(node.value) == len(found) and all(_is_setting(one, value) for one, value in zip(node.value, found, strict=True))
    word, quoted = node.value, node.style is not None
    if isinstance(found, bool):
        return word.lower() in (("true", "yes", "on") if found else ("false", "no", "off"))
    if isinstance(found, int):
        return not quoted and re.fullmatch(r"[-+]?(0|[1-9]\d*)", word) is not None and int(word) == found
    if isinstance(found, float):
        return not quoted and ":" not in word and "_" not in word and float(word) == found and math.isfinite(found)
    if found is None:
        return not quoted and word in ("", "~", "null", "Null", "NULL")
    if isinstance(found, dict):
        return bool(found.get("name") == word)
    return bool(str(found) == word or (word in FORMER and str(found) == FORMER[word]))


FORMER = {"neg_kl": "kl", "neg_cross_entropy": "cross_entropy"}


def is_channels(content: bytes, found: Any) -> bool:
    """The list of the file, or its entries by name."""
    tree = json.loads(content.decode("utf-8-sig"))
    return same(tree.get("channels", tree) if isinstance(tree, dict) else tree, found)


def is_override(content: bytes, found: Any) -> bool:
    """What is asked for stands where it was asked for."""
    key, _, value = content.decode().partition("=")
    for part in {"search.init": "search.algorithm.init"}.get(key, key).split("."):
        found = found.get(part) if isinstance(found, dict) else found
    node = yaml.compose(value, Loader=yaml.BaseLoader)
    return node is None or _is_setting(node, found)


def is_annotations(content: bytes, found: Any) -> bool:
    """A line for every image."""
    rows = [line.split("\t") for line in content.decode("utf-8-sig").splitlines()]
    return bool([(row[0], row[1]) for row in rows] == found)


def anything(content: bytes, found: Any) -> bool:
    """No model: only crashes and hangs count."""
    return True


# The readers ------------------------------------------------------------------------------------------------------------


def _network() -> nn.Module:
    torch.manual_seed(0)
    return DigitsResNet(10, channels=(4, 4, 4, 4, 4))


def _state() -> dict[str, Any]:
    weights = {name: tensor.clone() for name, tensor in _network().state_dict().items()}
    history = {"loss": torch.arange(5.0, dtype=torch.float64), "seconds": 1.5, "passes": 10}
    return {"identity": "x", "step": 5, "model": weights, "history": history, "records": [[0.5, [1, 2, 3]]]}


def _records() -> tuple[SearchRecord, RetrainRecord]:
    rows = [EvaluatedWidths(widths=f"{n}1111", score=-0.1 * n, accuracy=0.2 * n, costs={"flops": 100 * n, "params": n}) for n in (1, 2, 3)]
    settings = SearchSettings(algorithm="random", evaluations=3, budgets=[BudgetRecord(text="flops=0.5", cost="flops", limit=250.0)])
    search = SearchRecord(settings=settings, best=rows[0], front=["11111"], generations=[3], evaluated=rows)
    width = RetrainedWidth(channels=[4, 8], acc=[90.5, 91.25], seeds=[0, 1], flops=100, params=10, widths="12")
    return search, RetrainRecord(found=width, uniform=width)


def _plain(kind: type[Record]) -> Callable[[Path], Any]:
    return lambda path: read_record(path, kind, "a record").model_dump(mode="json")


def _truth(path: Path) -> Any:
    truth = load_ground_truth(path)
    rows = zip(truth.names, truth.acc.tolist(), truth.known_flops.tolist(), truth.known_params.tolist(), strict=True)
    return {name: (acc, flops, params) for name, acc, flops, params in rows}


def _csv_truth(path: Path) -> Any:
    return {name: (acc, flops) for name, (acc, flops, _) in _truth(path).items()}


def _config(path: Path) -> Any:
    return load_config(path).model_dump(mode="json")


def _dense_config(path: Path) -> Any:
    return load_as(DenseConfig, path).model_dump(mode="json")


def _override(path: Path) -> Any:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return load_config("digits/base", [text]).model_dump(mode="json")


def _net(path: Path) -> Any:
    net = read_net_config(path.read_bytes().decode("utf-8", "replace"))
    blocks: list[Any] = [[[block.in_channels, block.channels], list(block.stack)] for block in net.blocks]
    return blocks + ([[net.blocks[-1].channels, net.last]] if net.last else [])


def _survey() -> bytes:
    row = {key: str(value) for key, value in asdict(look_at("digits/resnet", (1, 8, 8))).items()}
    text = io.StringIO()
    csv.writer(text).writerows([list(row), list(row.values())])
    return text.getvalue().encode()


def _annotations(path: Path) -> Any:
    for name in ("a.png", "b.png"):
        (path.parent / "val" / "images").mkdir(parents=True, exist_ok=True)
        (path.parent / "val" / "images" / name).write_bytes(b"")
    for name in ("one", "two"):
        (path.parent / "train" / name).mkdir(parents=True, exist_ok=True)
        (path.parent / "train" / name / "0.png").write_bytes(b"")
    path.replace(path.parent / "val" / "val_annotations.txt")
    _, test, classes = find_images(path.parent)
    return [(image.name, classes[label]) for image, label in zip(test.paths, test.labels, strict=True)]


def _argument(path: Path) -> Any:
    text = path.read_bytes().decode("utf-8", "replace")
    read: Sequence[Callable[[str], Any]] = (
        read_seeds,
        lambda one: read_shape(one, ""),
        lambda one: read_choices([one]),
        lambda one: parse_number(one, "budget"),
    )
    for one in read:
        with contextlib.suppress(UserError):
            one(text)
    return text


def _network_files(path: Path) -> Any:
    network, description = load_network(path.parent)
    return network.state_dict(), description["model"]


def _images(path: Path) -> Any:
    if not check_seal(path):
        raise UserError(f"{path}: no seal")
    return torch.from_numpy(np.load(path, allow_pickle=False).copy())


def _sealed_json(tree: Any) -> bytes:
    return json.dumps(sealed_record(tree) if isinstance(tree, dict) else tree).encode()


def _lines(tree: Any) -> bytes:
    return b"".join(map(sealed_line, tree if isinstance(tree, list) else [tree]))


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _saved(what: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def _picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(24, 24, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


CONFIG = """base: digits/base
seed: 3
device: cpu
data: {num_val: 100, pad: 1, flip: true, mean: [0.5], std: [0.2]}
model:
  name: digits/resnet
  args: {channels: [4, 8, 8, 8, 8]}
train:
  epochs: 1.5
  lr: 1e-2
  strategy: {name: autoslim, num_random: 3}
  warmup_epochs: 1
score: {metric: neg_kl, additive: 50}
search: {algorithm: random, evaluations: 30}
retrain: {epochs: 2, clip_norm: 1.0, nesterov: yes}
watch: [tensorboard]
"""
NET = "[[16, 24], 'mbconv_k3_t3', ['mbconv_k3_t3'], 1, 2]|[[24, 32], 'mbconv_k5_t6', [], 0, 1]|[[32, 64], 'conv1_1']"
CSV = b"widths,accuracy_0,accuracy_1,flops\n4-4,90.5,91,100\n4-8,90,90.25,200\n8-8,95,96,400\n"


def make_readers(folder: Path) -> list[Reader]:
    """All of them, with good inputs that are made in a folder."""
    network, state = _network(), _state()
    save_checkpoint(folder / "checkpoint.pt", state)
    description = {"name": "digits/resnet", "num_classes": 10, "args": {"channels": [4, 4, 4, 4, 4]}}
    save_network(folder, network, {"model": description})
    tensors = dict(network.state_dict())
    images = io.BytesIO()
    np.save(images, np.arange(480, dtype=np.uint8).reshape(10, 3, 4, 4))
    seal(images)
    space = trace(DigitsResNet(10), (1, 8, 8))
    sides = {side: {"accuracy": 0.25, "kl": 1.5} for side in ("left", "right")}
    evaluations = [{"widths": name} | sides for name in ("11111", "12341", "44444")]
    journal = [{"build": "b"}, *({"widths": f"1{n}", "acc": [50.0 + n, 51.0]} for n in range(4))]
    truth = {f"1{n}": {"acc": [90.0 + n, 91.0], "mean": 90.5 + n / 2, "flops": 1000 * n, "params": 10 * n} for n in range(1, 9)}
    scores = {"scores": {"11111": 0.5, "12341": 0.75, "44444": 1.0}, "costs": {"11111": [100, 10]}, "meta": {}}
    channels = {"channels": [16, 24, 32], "about": "x"}
    search, retrain = (record.model_dump(mode="json") for record in _records())
    grid = (Path(__file__).parent.parent / "configs" / "dense" / "digits.yaml").read_bytes()
    former = {"format": "bcnet-checkpoint-1"} | state
    readers = [
        Reader("checkpoint", (folder / "checkpoint.pt").read_bytes(), load_checkpoint, as_before({"format": "bcnet-checkpoint-2"} | state)),
        Reader("checkpoint of 0.1", _saved(former), load_checkpoint, as_before(former)),
        Reader("network", (folder / WEIGHTS).read_bytes(), _network_files, as_before((tensors, description)), WEIGHTS),
        Reader("weights, .pth", _saved(tensors), read_weights, as_before(tensors), ".pth"),
        Reader("weights, .safetensors", save_safetensors(tensors), read_weights, anything, ".safetensors"),
        Reader("image cache", images.getvalue(), _images, as_before(torch.arange(480).to(torch.uint8).reshape(10, 3, 4, 4))),
        Reader("score cache", _lines(evaluations), lambda path: ScoreCache(path).evaluations, is_lines, tree=(evaluations, _lines)),
        Reader("journal of a truth", _lines(journal), lambda path: Journal(path, "b", 2).accuracies, is_lines, tree=(journal, _lines)),
        Reader("search.json", _sealed_json(search), _plain(SearchRecord), is_record, tree=(search, _sealed_json)),
        Reader("retrain.json", _sealed_json(retrain), _plain(RetrainRecord), is_record, tree=(retrain, _sealed_json)),
        Reader("score file", _json(scores), lambda path: load_scores(path).scores, is_scores, tree=(scores, _json)),
        Reader("ground truth", _json(truth), _truth, is_truth, tree=(truth, _json)),
        Reader("ground truth, CSV", CSV, _csv_truth, is_csv_truth, ".csv"),
        Reader("channel list", _json(channels), lambda path: read_channels(str(path)), is_channels, tree=(channels, _json)),
        Reader("JSON", _json(truth), lambda path: read_json(path, "JSON"), is_json, tree=(truth, _json)),
        Reader("config", CONFIG.encode(), _config, is_config, ".yaml"),
        Reader("config of a grid", grid, _dense_config, is_config, ".yaml"),
        Reader("override", b"train.epochs=20", _override, is_override),
        Reader("widths", b"11111\n# four\n44444\nfull\n12341\n", lambda path: list(read_named_widths(str(path), space)), is_widths),
        Reader("net_config", NET.encode(), _net, is_net),
        Reader("arguments", b"3x32x32,0,1,2=5M", _argument, anything),
        Reader("progress.csv", b"step,loss\n20,1.5\n40,1.25\n", lambda path: CsvFile(path, ["loss"]).begin(30), anything, ".csv"),
        Reader("survey.csv", _survey(), read_survey, anything, ".csv"),
        Reader("list of images", b"a.png\tone\t0\nb.png\ttwo\t1\n", _annotations, is_annotations, "val_annotations.txt"),
        Reader("PNG", _picture("PNG"), lambda path: open_image(path).size, anything, ".png"),
        Reader("JPEG", _picture("JPEG"), lambda path: open_image(path).size, anything, ".jpg"),
    ]
    return readers


# Running ----------------------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """An input took too long."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def try_input(reader: Reader, content: bytes, folder: Path) -> tuple[str, str]:
    """How an input ended, and what was said."""
    path = folder / (f"input{reader.suffix}" if reader.suffix.startswith(".") or not reader.suffix else reader.suffix)
    path.write_bytes(content)
    signal.alarm(SECONDS)
    try:
        found = reader.read(path)
    except UserError as error:
        return ("refused", "") if len(str(error)) < 2000 else ("traceback", f"a refusal of {len(str(error))} characters")
    except Hang:
        return "hang", ""
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    try:
        is_right = reader.right(content, found)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"[:300]
    return ("accepted", "") if is_right else ("wrong", str(found)[:300])


def fuzz(inputs: int, seed: int, keep: Path | None = None) -> tuple[list[Reader], list[str]]:
    """Try inputs, the same number for every reader; returns the readers with their results, and a line per failure.

    Args:
        inputs: in all.
        seed: of all that is random.
        keep: a folder for the inputs that failed.
    """
    before = signal.signal(signal.SIGALRM, _hang)
    failures = []
    try:
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            readers = make_readers(Path(name))
            for number in range(inputs):
                reader, rng = readers[number % len(readers)], random.Random(f"{seed} {number}")
                if number < len(readers):
                    content = reader.whole  # a good one must be accepted
                elif reader.tree is not None and rng.random() < 0.5:
                    content = reader.tree[1](mutate_tree(reader.tree[0], rng))
                else:
                    content = mutate(reader.whole, rng)
                how, said = try_input(reader, content, Path(name))
                if number < len(readers) and how == "refused":
                    how, said = "wrong", "a good one is refused"
                reader.results[how] += 1
                if how not in ("refused", "accepted"):
                    failures.append(f"{reader.name}, input {number}: {how}: {said}")
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{number}{reader.suffix}").write_bytes(content)
    finally:
        signal.signal(signal.SIGALRM, before)
    return readers, failures


def report(readers: Sequence[Reader], seed: int, seconds: float) -> str:
    """The table."""
    kinds = ("refused", "accepted", "traceback", "hang", "wrong")
    rows = [(reader.name, [sum(reader.results.values()), *(reader.results[kind] for kind in kinds)]) for reader in readers]
    rows.append(("all", [sum(column) for column in zip(*(cells for _, cells in rows), strict=True)]))
    lines = ["| reader | inputs | refused in a line | accepted, right | tracebacks | hangs | wrong acceptances |", "| --- |" + " --- |" * 6]
    lines += [f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |" for name, cells in rows]
    versions = f"bcnet {__version__}, Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"
    threads = plural(torch.get_num_threads(), "thread")
    where = f"seed {seed}, {seconds:,.0f} s; {versions}; {cpu_info('model name')}, {threads}"
    return "\n".join([where, "", *lines]) + "\n"


def main() -> None:
    """Run it from the command line; the exit code says whether anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    readers, failures = fuzz(options.inputs, options.seed, options.keep)
    text = report(readers, options.seed, time.monotonic() - start)
    print(text)
    for failure in failures[:100]:
        print(failure)
    if options.out is not None:
        options.out.write_text(text)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
