"""What the README shows runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bcnet
from bcnet.config import find_config, load_as
from bcnet.dense.config import DenseConfig

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = {language: re.findall(rf"```{language}\n(.*?)```", README, re.S) for language in ("python", "yaml", "sh")}


def test_the_parts_work_as_shown(capsys):
    first, _ = BLOCKS["python"]
    exec(compile(first, "README.md", "exec"), {})
    assert "groups, widths 1..8 of 8 bins" in capsys.readouterr().out


def test_a_whole_run_works_as_shown(tmp_path, monkeypatch):
    """The config as it stands, but for fewer images and epochs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("rose", "tulip"):
            (tmp_path / "flowers" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "flowers" / split / name / f"{number}.png")
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "models.py").write_text(
        "from bcnet.models.channel_bench import MobileNet\n"
        "def build(num_classes): return MobileNet(num_classes, (8, 16, 16, 16, 8, 16, 16))\n"
    )
    (config,) = BLOCKS["yaml"]
    (tmp_path / "flowers.yaml").write_text(config)
    _, second = BLOCKS["python"]
    small = ["data.num_val=8", "data.image_size=32", "train.epochs=1", "train.batch_size=8", "search.evaluations=10", "device=cpu"]
    original = bcnet.load_config
    monkeypatch.setattr(bcnet, "load_config", lambda name, trust: original(name, [*small, "search.algorithm.population=5"], trust=trust))
    names: dict = {}
    exec(compile(second, "README.md", "exec"), names)
    assert names["record"].best.costs["flops"] <= names["run"].costs.range("flops")[1] / 2
    assert names["description"]["classes"] == ["rose", "tulip"]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:channel_bench|digits)/\w+", "".join(BLOCKS["sh"])))))
def test_configs_that_it_names_exist(name):
    find_config(name)


def test_commands_that_it_names_exist():
    from typer.main import get_command

    from bcnet.cli import app

    known = set(get_command(app).commands)
    named = {line.split()[1] for block in BLOCKS["sh"] for line in block.splitlines() if line.startswith("bcnet ")}
    named |= set(re.findall(r"^\| `bcnet (\w+)", README, re.M))
    assert named <= known
    assert len(named) >= 10


def test_dense_commands_and_configs_that_it_names_exist():
    from typer.main import get_command

    from bcnet.cli import app

    known = set(get_command(app).commands["dense"].commands)
    lines = [line for block in BLOCKS["sh"] for line in block.splitlines() if line.startswith("bcnet dense ")]
    named = {line.split()[2] for line in lines}
    assert named <= known
    assert len(named) >= 6
    for name in {word for line in lines for word in line.split() if word.startswith("dense/")}:
        assert load_as(DenseConfig, name).grid.widths


def test_dense_commands_on_digits_work_as_shown(bcnet, tmp_path, monkeypatch):
    """As they stand, but for fewer epochs."""
    monkeypatch.chdir(tmp_path)
    quick = {
        "train": ["weights.epochs=2", "architecture.start_epoch=1", "weights.batch_size=128", "retrain.epochs=0.5"],
        "refine": ["train.epochs=0.5", "search.evaluations=8", "search.algorithm.population=4", "score.calibration_images=64"],
    }
    lines = [line.partition("#")[0].split() for block in BLOCKS["sh"] for line in block.splitlines() if line.startswith("bcnet dense ")]
    shown = [words[1:] for words in lines if "dense/digits" in words or "runs/dense-digits" in words]
    assert [words[1] for words in shown] == ["space", "train", "derive", "retrain", "refine"]
    for words in shown:
        code, _, err = bcnet(*words, *quick.get(words[1], []))
        assert code == 0, err
    for file in ("net_config.txt", "search.json", "index.html", "network/network.safetensors", "refined/search.json"):
        assert (tmp_path / "runs" / "dense-digits" / file).is_file()
