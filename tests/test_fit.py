"""Plain training by name: a folder, resumable, a page."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bcnet.config import read_overrides
from bcnet.errors import Interrupted, UserError
from bcnet.experiment import Experiment
from bcnet.fit import Fit
from bcnet.models.factory import build_model
from bcnet.provenance import refuse_others
from bcnet.results import FitRecord, read_record
from bcnet.run import Run
from bcnet.supernet.extract import load_network

QUICK = ("data.pad=1", "retrain.epochs=2", "retrain.batch_size=64", "device=cpu", "amp=off", "threads=1")


def settings(*more):
    return read_overrides([*QUICK, *more])


def test_a_network_is_trained_by_its_name(bcnet, tmp_path):
    code, out, errors = bcnet("fit", "digits/resnet", "--out", tmp_path / "fit", "--seeds", "0,1", *QUICK)
    assert (code, errors) == (0, "")
    assert "test accuracy" in out
    record = read_record(tmp_path / "fit" / "fit.json", FitRecord, "")
    assert (record.seeds, record.start) == ([0, 1], "scratch")
    assert all(30 < accuracy <= 100 for accuracy in record.acc)
    network, description = load_network(tmp_path / "fit" / "seed1")
    assert sum(p.numel() for p in network.parameters()) == record.params == description["params"]
    assert description["test_accuracy"] == record.acc[1]
    page = (tmp_path / "fit" / "index.html").read_text()
    assert "digits/resnet, trained" in page
    assert page.count("<img") == 1
    before = (tmp_path / "fit" / "seed0" / "result.json").stat().st_mtime_ns
    assert bcnet("fit", "digits/resnet", "--out", tmp_path / "fit", "--seeds", "0,1", *QUICK)[0] == 0
    assert (tmp_path / "fit" / "seed0" / "result.json").stat().st_mtime_ns == before


def test_a_stopped_training_goes_on_to_the_same_network(tmp_path, monkeypatch):
    from bcnet.training.trainer import Trainer

    whole = Fit(tmp_path / "whole", settings())
    whole.run([3])
    original = Trainer._train_step

    def stop_at_seven(trainer, replica):
        original(trainer, replica)
        if trainer.step == 6:
            trainer._stop_signal = 15

    monkeypatch.setattr(Trainer, "_train_step", stop_at_seven)
    with pytest.raises(Interrupted):
        Fit(tmp_path / "parts", settings()).run([3])
    monkeypatch.undo()
    Fit(tmp_path / "parts", settings("workers=1")).run([3])
    a, b = (load_network(tmp_path / name / "seed3")[0] for name in ("whole", "parts"))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    rows = [(tmp_path / name / "seed3" / "progress.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert [row.split(",")[0] for row in rows[0]] == ["step", "20", "30"]
    assert rows[0][1].split(",")[2] == rows[1][-2].split(",")[2]


def test_a_training_that_was_killed_in_its_first_moment_goes_on(tmp_path):
    Fit(tmp_path / "fit", settings())
    (tmp_path / "fit" / "environment.json").unlink()  # the config was written, this not yet
    Fit(tmp_path / "fit", settings())
    assert json.loads((tmp_path / "fit" / "environment.json").read_text())["images"]


def test_trained_weights_are_where_a_training_may_begin(tmp_path):
    Fit(tmp_path / "first", settings()).run([0])
    weights = f"model.weights={tmp_path / 'first' / 'seed0' / 'network.safetensors'}"
    record = Fit(tmp_path / "second", settings(weights, "retrain.lr=1e-6", "retrain.epochs=0.1")).run([0])
    assert record.start == "trained"
    first = json.loads((tmp_path / "first" / "fit.json").read_text())["acc"][0]
    assert record.acc[0] == pytest.approx(first, abs=3)


def test_a_folder_of_something_else_is_refused(tmp_path):
    Fit(tmp_path / "fit", settings())
    with pytest.raises(UserError, match=r"was begun with another retrain\.lr"):
        Fit(tmp_path / "fit", settings("retrain.lr=0.3"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(UserError, match="holds no training"):
        Fit(tmp_path / "other", settings())


def images(folder, number):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for one in range(number):
                Image.fromarray(np.full((8, 8), 20 * one, np.uint8)).save(folder / part / name / f"{one}.png")
    return ["data.source=imagefolder", f"data.root={folder}", "retrain.batch_size=4", "space.bins=2"]


def test_more_images_another_space_and_other_weights_are_noticed(tmp_path):
    """By a fit and by a run; a small folder needs no validation images to be fitted."""
    weights = tmp_path / "weights.pth"
    torch.save(build_model("timm/test_resnet", 2, seed=0).state_dict(), weights)
    own = [*images(tmp_path / "data", 4), "model.name=timm/test_resnet", f"model.weights={weights}"]
    Fit(tmp_path / "fit", settings(*own)).run([0])
    config = read_overrides([*QUICK, *own, "data.num_val=2", "train.epochs=1", "train.batch_size=4", "score.calibration_images=4"])
    Run.create(tmp_path / "run", config).train()
    with pytest.raises(UserError, match=r"was begun with another space\.bins"):
        Fit(tmp_path / "fit", settings(*own, "space.bins=3"))
    torch.save(build_model("timm/test_resnet", 2, seed=1).state_dict(), weights)
    with pytest.raises(UserError, match=r"model\.weights is another file"):
        Fit(tmp_path / "fit", settings(*own))
    torch.save(build_model("timm/test_resnet", 2, seed=0).state_dict(), weights)
    there, elsewhere = tmp_path / "data" / "train" / "cat" / "3.png", tmp_path / "data" / "train" / "cat" / "03.png"
    there.rename(elsewhere)  # as many, but in another order: what was held out would be trained on
    for streaming in ("false", "true"):
        with pytest.raises(UserError, match="as many images, but their names or classes are no longer the same"):
            refuse_others(tmp_path / "fit", Experiment(settings(*own, "data.num_val=2", f"data.streaming={streaming}")))
    with pytest.raises(UserError, match="as many images, but"):
        Run.open(tmp_path / "run").supernet  # noqa: B018
    elsewhere.rename(there)
    for streaming in ("false", "true"):
        refuse_others(tmp_path / "fit", Experiment(settings(*own, "data.num_val=2", f"data.streaming={streaming}")))
    images(tmp_path / "data", 5)
    for again in (lambda: Fit(tmp_path / "fit", settings(*own)), lambda: Run.open(tmp_path / "run").trained):
        with pytest.raises(
            UserError, match="was trained with 8 train images and 8 test images, and there are 10 train images and 10 test images now"
        ):
            again()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Own(Tiny):\n    def forward(self, x): return {'logits': super().forward(x)}", "no tensor of logits but dict"),
        ("class Own(Tiny):\n    def forward(self, x): return super().forward(x)[:, :7]", r"gives \(1, 7\).*10 classes"),
        ("class Own(Tiny):\n    def forward(self, x): return super().forward(x[:, :, :0])", "cannot be run on one 1x8x8 image"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused_before_it_is_trained(tmp_path, monkeypatch, source, message):
    module = f"own_network_{abs(hash(source))}"
    head = "from torch import nn\nclass Tiny(nn.Sequential):\n    def __init__(self, num_classes):\n"
    body = "        super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, num_classes))\n"
    (tmp_path / f"{module}.py").write_text(head + body + source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        Fit(tmp_path / "fit", settings(f"model.name={module}:Own"))
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    "more", [["model.name=nothing"], ["retrain.batch_size=100000"], ["retrain.optimizer=adamw", "model.args={cifar_stem: true}"]]
)
def test_what_cannot_be_trained_leaves_nothing(tmp_path, more):
    with pytest.raises(UserError) as caught:
        Fit(tmp_path / "fit", settings(*more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fit").exists()


def test_a_layer_used_twice_is_saved_and_stays_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tied_model.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())\n"
        "    layers = [nn.Conv2d(1, 8, 3), conv, conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]\n"
        "    return nn.Sequential(*layers)\n"
    )
    Fit(tmp_path / "fit", settings("model.name=tied_model:build")).run([0, 1])
    network, description = load_network(tmp_path / "fit" / "seed1", trust=True)
    assert network[1][0].weight is network[2][0].weight
    assert description["params"] == sum(p.numel() for p in network.parameters())


def test_what_was_trained_in_another_precision_or_is_no_plain_training_is_refused(tmp_path, run, bcnet):
    Fit(tmp_path / "fit", settings()).run([0])
    with pytest.raises(UserError, match="begun with another amp"):
        Fit(tmp_path / "fit", settings("amp=bf16"))
    with pytest.raises(UserError, match=r"holds the run of a supernet .* not plain trainings"):
        Fit(run.folder, settings())
    for command in ("search", "score"):
        code, _, errors = bcnet(command, tmp_path / "fit", *(("--widths", "22222") if command == "score" else ()))
        assert code == 2
        words = "holds plain trainings (bcnet fit), not the run of a supernet (bcnet train, search, ...)"
        assert errors == f"bcnet: error: {tmp_path / 'fit'} {words}\n"
    code, _, errors = bcnet("dense", "derive", tmp_path / "fit")
    assert (code, errors.count("\n")) == (2, 1)
    assert "not a search of a grid" in errors
