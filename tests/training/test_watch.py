"""Watching a training changes none of its numbers, and what is watched survives a kill."""

import csv

import pytest
import torch

from bcnet.config import load_config
from bcnet.progress import notice
from bcnet.run import Run
from bcnet.training.watch import CsvFile

QUICK = ("train.epochs=3", "score.calibration_images=64")


def rows_of(folder):
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("strategy", ["bcnetv2_distilled", "autoslim"])
def test_a_watched_training_is_the_same_to_the_last_bit(tmp_path, strategy):
    own = [*QUICK, f"train.strategy={strategy}", "train.ema_decay=0.9"]
    plain = Run.create(tmp_path / "plain", load_config("digits/base", [*own, "watch_every=0"])).train()
    watched = Run.create(tmp_path / "watched", load_config("digits/base", [*own, "watch_every=0.3"])).train()
    assert plain.history.loss == watched.history.loss
    for one, other in ((plain.model, watched.model), (plain.ema, watched.ema)):
        state = other.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())
    looks = [row for row in rows_of(tmp_path / "watched") if row["narrowest_accuracy"]]
    assert [int(row["step"]) for row in looks] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert all(0 <= float(row[f"{name}_accuracy"]) <= 1 for row in looks for name in ("narrowest", "middle", "widest"))
    assert not any(row["narrowest_accuracy"] for row in rows_of(tmp_path / "plain"))


def test_every_training_writes_how_it_went(tmp_path):
    trainer = Run.create(tmp_path / "run", load_config("digits/base", QUICK)).train()
    every = rows_of(tmp_path / "run")
    assert [int(row["step"]) for row in every if row["narrowest_accuracy"]] == [20, 30]  # two epochs apart, and the end
    rows = [row for row in every if row["loss"]]
    assert [int(row["step"]) for row in rows] == [20, 30]
    assert float(rows[0]["loss"]) == pytest.approx(sum(trainer.history.loss[:20]) / 20, rel=1e-5)
    assert [float(row["lr"]) for row in rows] == pytest.approx([trainer.rate(19), trainer.rate(29)], rel=1e-5)
    assert all(float(row["images_per_second"]) > 0 for row in rows)


def test_a_resumed_training_goes_on_with_its_rows(tmp_path):
    config = load_config("digits/base", [*QUICK, "watch_every=0.5"])
    Run.create(tmp_path / "run", config).trainer.run(until_step=12)
    path = tmp_path / "run" / "progress.csv"
    with path.open("a") as file:
        file.write("15,9,9,9,9,9,9,9\n16,9,9")  # of steps after the last checkpoint, and half a line
    Run.create(tmp_path / "run", config, resume=True).train()
    steps = [int(row["step"]) for row in rows_of(tmp_path / "run")]
    assert steps == [5, 10, 12, 15, 20, 20, 25, 30, 30]
    assert "9,9,9" not in path.read_text()


def test_looks_want_images_to_look_at(bcnet, tmp_path):
    code, _, errors = bcnet("train", "digits/base", "--out", tmp_path / "run", "watch_every=1", "data.num_val=0")
    assert (code, errors.count("\n")) == (2, 1)
    assert "data.num_val is 0" in errors
    assert not (tmp_path / "run").exists()


def test_a_file_of_other_columns_is_begun_anew(tmp_path):
    (tmp_path / "progress.csv").write_text("step,other\n3,4\n")
    file = CsvFile(tmp_path / "progress.csv", ["loss"])
    file.begin(5)
    file.tell(6, {"loss": 0.25})
    assert (tmp_path / "progress.csv").read_text() == "step,loss\n6,0.25\n"


def test_a_narrowest_subnet_that_learns_nothing_is_told_of(tmp_path, capsys, monkeypatch):
    run = Run.create(tmp_path / "run", load_config("digits/base", [*QUICK, "watch_every=1"]))
    notice.cache_clear()
    values = iter([0.1, 0.5, 0.9])
    monkeypatch.setattr("bcnet.experiment.evaluate", lambda *args, **more: {"accuracy": next(values)})
    run.experiment.look(run.trainer.model)
    assert capsys.readouterr().err.count("the narrowest subnet learns nothing") == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_watcher_that_is_not_installed_is_one_line(bcnet, tmp_path, name):
    library = {"tensorboard": "tensorboard", "wandb": "wandb"}[name]
    try:
        __import__(library)
    except ImportError:
        code, _, errors = bcnet("train", "digits/base", "--out", tmp_path / "run", f"watch=[{name}]")
        assert code == 2
        assert f"watch: {name} is not installed" in errors
        assert not (tmp_path / "run").exists()
    else:
        pytest.skip(f"{library} is installed")
