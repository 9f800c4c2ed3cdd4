import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file

from bcnet.config import load_config
from bcnet.report.run_page import others, write_run_page
from bcnet.results import RetrainRecord, read_record
from bcnet.run import Run
from bcnet.supernet.extract import load_network
from bcnet.training.trainer import Trainer


class Killed(Exception):
    pass


@pytest.fixture
def short(run):
    """The run with a short retraining."""
    return Run.open(run.folder, ["retrain.epochs=1"])


def accuracies(folder):
    return {path.parent.name: load_network(path.parent)[1]["test_accuracy"] for path in sorted(folder.glob("seed*/result.json"))}


def test_small_networks_of_several_seeds_are_trained_side_by_side_as_if_alone(short, monkeypatch):
    alone = [short.retrain((2, 2, 2, 2, 2), [seed]).found.acc[0] for seed in (0, 1)]
    trainings = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: trainings.append(self.label) or run(self))
    record = short.retrain((2, 2, 2, 2, 2), [0, 1, 2], full=True)
    assert trainings == ["retrain found 22222, 3 seeds", "retrain uniform, 3 seeds", "retrain full, 3 seeds"]
    assert record.found.acc[:2] == alone  # what was there is kept
    assert len(record.found.acc) == len(record.uniform.acc) == len(record.full.acc) == 3
    folder = short.folder / "retrain" / "22222"
    assert list(accuracies(folder).values()) == record.found.acc
    for path in folder.glob("seed*/result.json"):
        path.unlink()
    assert short.retrain((2, 2, 2, 2, 2), [0, 1, 2]).found.acc == pytest.approx(record.found.acc, abs=1.5)
    assert not list(short.folder.rglob("checkpoint-*"))


def test_a_killed_training_of_several_seeds_goes_on_to_the_same_numbers(short, monkeypatch):
    found = short.retrain((1, 2, 1, 2, 1), [0, 1, 2])
    undisturbed = {path: load(path.read_bytes()) for path in short.folder.glob("retrain/*/seed*/network.safetensors")}
    for path in short.folder.glob("retrain/*/seed*/*"):
        path.unlink()
    step = Trainer._train_step

    def stopped(self, *arguments):
        if self.step == 4:
            self.save()
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", stopped)
    with pytest.raises(Killed):
        short.retrain((1, 2, 1, 2, 1), [0, 1, 2])
    monkeypatch.setattr(Trainer, "_train_step", step)
    again = Run.open(short.folder, ["retrain.epochs=1"]).retrain((1, 2, 1, 2, 1), [0, 1, 2])
    assert again == found
    assert len(undisturbed) == 6
    for path, tensors in undisturbed.items():
        resumed = load_file(path)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in tensors.items())


def test_random_widths_of_the_same_flops_stand_beside(short):
    widths = (3, 2, 2, 2, 2)
    flops = short.costs.one(widths, "flops")
    record = short.retrain(widths, [0], num_random=3)
    assert len({one.widths for one in record.random}) == 3
    assert all(0.95 * flops <= one.flops <= flops for one in record.random)
    assert short.retrain(widths, [0], num_random=3) == record
    assert read_record(short.folder / "retrain" / "32222.json", RetrainRecord, "") == record
    (line,) = others(record)
    below = sum(one.acc[0] < record.found.acc[0] for one in record.random)
    assert f"above {below} of them" in line
    assert f"mean {np.mean([one.acc[0] for one in record.random]):.2f} %" in line
    assert "3 random widths" in write_run_page(short).read_text()


def test_weights_are_inherited_from_norms_of_single_widths_too(tmp_path):
    quick = ["train.epochs=1", "retrain.epochs=0.2", "train.switchable_norms=true", "train.switchable_classifier=true"]
    run = Run.create(tmp_path / "run", load_config("digits/bcnetv2", quick))
    run.train()
    record = run.retrain((4, 1, 4, 4, 3), [0], inherit=True)
    choices = [group.choices for group in run.space.groups]
    assert any(count not in own for count, own in zip(record.uniform.channels, choices, strict=True))  # which has no norms of its own


def test_only_what_was_trained_by_the_same_recipe_stands_beside_widths_trained_together(short):
    alone = short.retrain((2, 2, 2, 2, 2), [0])
    assert short.trained_alone() == {"22222": alone.found}
    assert Run.open(short.folder, ["retrain.epochs=2"]).trained_alone() == {}
