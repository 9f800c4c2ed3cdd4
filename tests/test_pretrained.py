"""From trained weights to a smaller network: sorted, taught by the trained model, retrained from what the supernet has."""

import json

import pytest
import torch

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.models.factory import build_model
from bcnet.report.run_page import write_run_page
from bcnet.results import RetrainRecord, read_record
from bcnet.run import Run
from bcnet.supernet.extract import load_network

QUICK = ("train.epochs=1", "retrain.epochs=0.3", "score.calibration_images=64", "search.evaluations=12", "search.algorithm.population=6")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A digits network trained for a few epochs, as a user has it: a checkpoint with more than the weights in it."""
    experiment = Experiment(load_config("digits/base", ["retrain.epochs=4"]))
    (network,) = experiment.train_width(experiment.space.channels(experiment.space.full), [0])
    path = tmp_path_factory.mktemp("weights") / "digits.pth"
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in network.state_dict().items()}}, path)
    return path


def config_of(weights, *more, strategy="bcnetv2_distilled"):
    return load_config("digits/base", [*QUICK, f"train.strategy={strategy}", f"model.weights={weights}", *more])


def logits(network, experiment):
    images, _ = next(iter(experiment.test))
    with torch.no_grad():
        return network.double().eval()(images.double())


@pytest.mark.parametrize("strategy", ["bcnetv2_distilled", "bcnet_distilled", "autoslim"])
@pytest.mark.parametrize("importance", ["taylor", "l1", "bn", "off"])
def test_the_full_width_begins_as_the_trained_model_on_every_side(weights, strategy, importance):
    experiment = Experiment(config_of(weights, f"space.importance={importance}", strategy=strategy))
    supernet = experiment.make_trainer().model
    expected = logits(experiment.build_model(0, pretrained=True), experiment)
    for side in experiment.strategy.sides:
        supernet.set_active_subnet(experiment.space.full, side)
        torch.testing.assert_close(logits(supernet, experiment), expected, rtol=1e-9, atol=1e-9)


def test_one_sided_strategies_get_the_important_channels_first(weights):
    """And two-sided ones at both ends, unless the supernet has copies of the first at the other end."""
    first_kernels = {}
    for strategy in ("autoslim", "bcnetv2_distilled", "bcnet_distilled"):
        experiment = Experiment(config_of(weights, "space.importance=l1", strategy=strategy))
        first_kernels[strategy] = experiment.start.blocks[0].conv1[0].weight.detach().abs().sum((1, 2, 3))
    assert (first_kernels["autoslim"].diff() <= 0).all()
    assert (first_kernels["bcnetv2_distilled"].diff() <= 0).all()
    valley = first_kernels["bcnet_distilled"]
    middle = len(valley) // 2
    assert (valley[:middle].diff() <= 0).all()
    assert (valley[middle:].diff() >= 0).all()


def test_the_trained_model_teaches_and_stays_as_it_was(weights):
    taught = Experiment(config_of(weights, "train.teacher=pretrained")).make_trainer()
    before = {key: tensor.clone() for key, tensor in taught.teacher.state_dict().items()}
    taught.run(until_step=3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in taught.teacher.state_dict().items())
    images, _ = taught.batches.batch(0)
    with torch.no_grad():
        own = torch.nn.functional.cross_entropy(taught.teacher(images), taught._taught(images))
    untaught = Experiment(config_of(weights)).make_trainer()
    untaught.run(until_step=3)
    assert taught.history.loss != untaught.history.loss
    experiment = Experiment(config_of(weights, "train.teacher=pretrained", "train.lr=1e-9", strategy="autoslim"))
    trainer = experiment.make_trainer()
    trainer.run(until_step=1)
    assert float(own) < trainer.history.loss[0] < 20  # no student is nearer to the teacher than it is to itself


def test_a_taught_run_resumes_bit_for_bit(tmp_path, weights):
    config = config_of(weights, "train.teacher=pretrained", "train.epochs=2")
    whole = Run.create(tmp_path / "whole", config).train()
    Run.create(tmp_path / "parts", config).trainer.run(until_step=7)
    resumed = Run.create(tmp_path / "parts", config, resume=True).train()
    assert whole.history.loss == resumed.history.loss
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_run_is_not_continued_with_other_weights(tmp_path, weights):
    own = tmp_path / "own.pth"
    own.write_bytes(weights.read_bytes())
    Run.create(tmp_path / "run", config_of(own)).trainer.run(until_step=2)
    Run.create(tmp_path / "run", config_of(own), resume=True)
    torch.save(build_model("digits/resnet", 10, seed=5).state_dict(), own)
    with pytest.raises(UserError, match=r"model.weights is another file than when the run was begun"):
        Run.create(tmp_path / "run", config_of(own), resume=True)
    with pytest.raises(UserError, match=r"model.weights is another file"):  # nor scored, nor a teacher of what is retrained
        Run.open(tmp_path / "run").trained  # noqa: B018


def test_a_factory_loads_no_weights_that_nobody_asked_for(tmp_path, monkeypatch):
    (tmp_path / "own_factory.py").write_text(
        "from bcnet.models.digits import DigitsResNet\n"
        "def build(num_classes, pretrained=True):\n"
        "    model = DigitsResNet(num_classes); model.was_pretrained = pretrained; return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [build_model("own_factory:build", 10, pretrained=one).was_pretrained for one in (False, True)] == [False, True]


def test_retraining_inherits_only_when_asked(tmp_path, weights):
    run = Run.create(tmp_path / "run", config_of(weights, "retrain.lr=1e-6", strategy="autoslim"))
    run.train()
    run = Run.open(tmp_path / "run")
    widths = run.space.decode("33333")
    inherited, scratch = run.retrain(widths, [0], inherit=True), run.retrain(widths, [0])
    assert (inherited.start, scratch.start) == ("inherited", "scratch")
    assert inherited.found.channels == scratch.found.channels
    assert inherited.found.acc[0] > scratch.found.acc[0] + 20  # a rate of 1e-6 teaches nothing new
    folder = tmp_path / "run" / "retrain"
    assert read_record(folder / "33333-inherited.json", RetrainRecord, "").start == "inherited"
    assert read_record(folder / "33333.json", RetrainRecord, "").start == "scratch"
    for name, start in (("33333-inherited", "inherited"), ("33333", "scratch"), ("uniform-like-33333-inherited", "inherited")):
        _, description = load_network(folder / name / "seed0")
        assert description["start"] == start
    assert run.trained_alone()["33333"] == scratch.found
    page = write_run_page(run).read_text()
    assert "33333, from the supernet&#x27;s weights" in page or "33333, from the supernet's weights" in page
    assert "33333, from scratch" in page


def test_what_is_inherited_is_the_subnet_itself(tmp_path, weights):
    run = Run.create(tmp_path / "run", config_of(weights, strategy="autoslim"))
    run.train()
    run = Run.open(tmp_path / "run")
    widths = run.space.decode("42314")
    supernet = run.supernet
    before = supernet.active
    network = run.experiment.inherited(supernet, run.space.channels(widths))
    assert supernet.active == before
    extracted, _ = run.extract(widths, tmp_path / "network")
    for key, tensor in extracted.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key]), key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.teacher=pretrained"], "train.teacher=pretrained wants trained weights"),
        (["retrain.teacher=pretrained"], "retrain.teacher=pretrained wants trained weights"),
        (["space.importance=l1"], "space.importance sorts the channels of trained weights"),
        (["model.weights=gone.pth"], "gone.pth: no such file"),
        (["model.weights=gone.pth", "space.widen=2"], "space.widen: trained weights are of the model's own widths"),
        (["model.weights=gone.pth", "model.pretrained=true"], "two starts"),
        (["data.mean=[0.5]"], "mean and std go together"),
        (["data.mean=[0.5, 0.5]", "data.std=[0.5, 0.5]"], "data.mean has 2 values, and the images have 1 channels"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(bcnet, tmp_path, settings, message):
    code, _, errors = bcnet("train", "digits/autoslim", "--out", tmp_path / "run", *settings)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_started_from(bcnet, tmp_path, weights):
    folder = tmp_path / "run"
    assert bcnet("train", "digits/autoslim", "--out", folder, f"model.weights={weights}", "train.teacher=pretrained", *QUICK)[0] == 0
    code, out, _ = bcnet("retrain", folder, "--widths", "22222", "--seeds", "0", "--inherit", "retrain.epochs=0.2")
    assert code == 0
    assert "start: the weights that the supernet has for each width" in out
    assert json.loads((folder / "retrain" / "22222-inherited.json").read_text())["start"] == "inherited"
    assert bcnet("retrain", folder, "--widths", "22222,33333", "--together", "--inherit")[0] == 2


def test_images_are_normalised_as_the_config_says():
    chosen, own = (Experiment(load_config("digits/base", more)).data for more in (["data.mean=[0.25]", "data.std=[0.5]"], []))
    assert (chosen.mean, chosen.std) == ((0.25,), (0.5,))
    a, b = (next(iter(data.eval_batches("test", 8)))[0] for data in (chosen, own))
    torch.testing.assert_close((a * 0.5 + 0.25), b * own.std[0] + own.mean[0], rtol=1e-5, atol=1e-5)


def test_weights_of_another_model_are_refused_before_anything_is_written(bcnet, tmp_path):
    torch.save(build_model("cifar/resnet20", 10).state_dict(), tmp_path / "other.pth")
    code, _, errors = bcnet("train", "digits/autoslim", "--out", tmp_path / "run", f"model.weights={tmp_path / 'other.pth'}")
    assert code == 2
    assert "does not fit digits/resnet: " in errors
    assert "missing: " in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError):
        Experiment(load_config("digits/base", [f"model.weights={tmp_path / 'other.pth'}"])).model  # noqa: B018
