"""Plain training by name: a folder, resumable, a page."""

import json

import pytest
import torch

from bcnet.config import read_overrides
from bcnet.errors import Interrupted, UserError
from bcnet.fit import Fit
from bcnet.results import FitRecord, read_record
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


@pytest.mark.parametrize(
    "more", [["model.name=nothing"], ["retrain.batch_size=100000"], ["retrain.optimizer=adamw", "model.args={cifar_stem: true}"]]
)
def test_what_cannot_be_trained_leaves_nothing(tmp_path, more):
    with pytest.raises(UserError) as caught:
        Fit(tmp_path / "fit", settings(*more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fit").exists()
