import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.scoring.evaluate import evaluate
from bcnet.training.stack import NetworkStack, StackedBatches
from bcnet.training.train_width import train_width
from bcnet.training.trainer import Trainer
from bcnet.truth.build import Journal, build_truth
from bcnet.truth.ground_truth import load_ground_truth

QUICK = ["retrain.epochs=0.5"]


@pytest.fixture
def config():
    return load_config("digits/truth", QUICK)


def test_a_stack_trains_each_network_as_if_alone(config, tmp_path):
    run = Experiment(config)
    recipe = config.retrain.model_copy(update={"epochs": 0.2, "ema_decay": 0.5})  # three steps: rounding has no time to grow
    test = run.data.eval_batches("test", 400)
    alone, found = [], []
    for seed in range(3):
        model = run.build_model(seed)
        trainer = Trainer(model, run.data.train_batches("full_train", 64, seed), recipe, device=run.device)
        trainer.run()
        alone.append(trainer)
        found.append(evaluate(trainer.trained, test)["accuracy"])
    stack = NetworkStack([run.build_model(seed) for seed in range(3)], run.data.input_shape)
    batches = StackedBatches([run.data.train_batches("full_train", 64, seed) for seed in range(3)])
    together = Trainer(stack, batches, recipe, device=run.device, passes=stack.passes)
    together.run()
    assert together.total_steps == alone[0].total_steps == 3
    weights = dict(together.trained.named_parameters()) | dict(together.trained.named_buffers())
    for number, trainer in enumerate(alone):
        for name, tensor in [*trainer.trained.named_parameters(), *trainer.trained.named_buffers()]:
            whole = weights[f"body.{name}"]
            part = whole.view(3, *tensor.shape)[number] if tensor.ndim else whole
            torch.testing.assert_close(part, tensor, rtol=1e-3, atol=1e-4)
    parts = together.trained.split()
    assert [evaluate(part, test)["accuracy"] for part in parts] == pytest.approx(found, abs=0.01)
    images = torch.rand(3, 5, *run.data.input_shape)
    whole = together.trained.eval()(images.flatten(0, 1)).unflatten(0, (3, 5))
    torch.testing.assert_close(torch.stack([part(one) for part, one in zip(parts, images, strict=True)]), whole, rtol=1e-4, atol=1e-5)
    parts[0].classifier.weight.data.zero_()  # shares nothing
    torch.testing.assert_close(together.trained(images.flatten(0, 1)).unflatten(0, (3, 5)), whole)


def test_the_file_has_the_benchmarks_form_and_does_not_depend_on_the_workers(config, tmp_path):
    widths = [(1, 2, 3, 4, 1), (4, 4, 4, 4, 4), (2, 2, 2, 2, 2)]
    for workers in (1, 2):
        build_truth(config, tmp_path / f"{workers}.json", widths, 2, workers=workers)
    one, two = ((tmp_path / f"{n}.json").read_text() for n in (1, 2))
    assert one == two
    truth = load_ground_truth(tmp_path / "1.json")
    assert truth.names == ("12341", "44444", "22222")
    assert truth.acc.shape == (3, 2)
    costs = Experiment(config).costs
    assert truth.flops.tolist() == costs.of_widths(widths, "flops").tolist()
    assert truth.meta["config"]["retrain"]["epochs"] == 0.5
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / ".1.json.bcnet.lock").touch()  # of a build that was killed when all but this was done
    with pytest.raises(UserError, match="is there already"):
        build_truth(config, tmp_path / "1.json", widths, 2)
    assert sys.platform == "win32" or {path.name for path in tmp_path.iterdir()} == {"1.json", "2.json"}  # there are no locks on Windows


def test_images_may_come_from_a_folder(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for label, brightness in (("dark", 40), ("light", 200)):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), 3 * (brightness + number,)).save(tmp_path / part / label / f"{number}.png")
    images = ["data.source=imagefolder", f"data.root={tmp_path}", "data.num_val=2", "retrain.batch_size=6"]
    model = ["model.name=channel_bench/mobilenet", "model.args={channels: [4, 8, 8, 8, 4, 8, 8]}"]
    build_truth(load_config("digits/truth", [*QUICK, *images, *model]), tmp_path / "truth.json", [(1,) * 7], 2, workers=2)
    assert load_ground_truth(tmp_path / "truth.json").acc.shape == (1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is tuned")
def test_workers_keep_their_memory(tmp_path):
    """Without it, networks of large activations train at half the speed."""
    code = (
        "from bcnet.config import load_config; from bcnet.machine import environment; from bcnet.truth.build import _Trainer\n"
        "_Trainer(load_config('digits/truth'), 1, 1, None); print(environment()['allocator'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "BCNET_MALLOC"}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert "tuned" in found.stdout


@pytest.mark.posix
def test_a_killed_build_goes_on_and_ends_the_same(tmp_path):
    arguments = ["truth", "build", "digits/truth", *QUICK, "--widths", "random:24", "--seeds", "2", "--workers", "1", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "bcnet", *arguments, str(tmp_path / "whole.json")], check=True, capture_output=True, env=environment
    )
    journal = tmp_path / "killed.json.partial"
    lengths = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = journal.read_bytes().count(b"\n") if journal.exists() else 1
        life = subprocess.Popen(
            [sys.executable, "-m", "bcnet", *arguments, str(tmp_path / "killed.json")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        while life.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > before + 3):
            time.sleep(0.005)
        assert life.poll() is None
        life.send_signal(number)
        life.wait()
        lengths.append(journal.read_bytes().count(b"\n"))
    assert 1 < lengths[0] < lengths[1] < 25
    with journal.open("ab") as file:
        file.write(b'{"widths": "444')  # as a kill inside a write would leave it
    subprocess.run(
        [sys.executable, "-m", "bcnet", *arguments, str(tmp_path / "killed.json")], check=True, capture_output=True, env=environment
    )
    assert (tmp_path / "whole.json").read_bytes() == (tmp_path / "killed.json").read_bytes()


def test_a_journal_of_another_build_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "journal"
    Journal(path, "a", 1).add("11", [50.0])
    assert Journal(path, "a", 1).accuracies == {"11": [50.0]}
    with pytest.raises(UserError, match="another config"):
        Journal(path, "b", 1)
    path.write_text(path.read_text() + "nonsense\n" + json.dumps({"widths": "12", "acc": [1.0]}) + "\n")
    with pytest.raises(UserError, match="line 3: damaged"):
        Journal(path, "a", 1)


def test_layers_that_are_one_and_layers_that_are_frozen_stay_so_with_several_seeds(config):
    recipe, run = config.retrain.model_copy(update={"epochs": 0.3}), Experiment(config)

    def networks(change):
        made = [run.build_model(seed) for seed in range(2)]
        for network in made:
            change(network)
        return made

    def trained(made, count):
        batches = [run.data.train_batches("full_train", 64, seed) for seed in range(count)]
        options = {"seeds": range(count), "input_shape": run.data.input_shape, "device": run.device}
        return train_width(made[:count], batches, recipe, **options)

    def name_twice(network):
        network.last = network.blocks[-1]

    (alone,), (first, _) = trained(networks(name_twice), 1), trained(networks(name_twice), 2)
    torch.testing.assert_close(first.state_dict(), alone.state_dict(), rtol=0, atol=0)

    def freeze(network):
        network.stem.requires_grad_(False)

    for one, before in zip(trained(networks(freeze), 2), networks(freeze), strict=True):
        torch.testing.assert_close(dict(one.stem.named_parameters()), dict(before.stem.named_parameters()), rtol=0, atol=0)
        assert not torch.equal(one.classifier.weight, before.classifier.weight)


def test_averaged_weights_have_statistics_of_their_own(config):
    run = Experiment(config)
    recipe = config.retrain.model_copy(update={"epochs": 6, "ema_decay": 0.99})
    batches = [run.data.train_batches("full_train", 64, 0)]
    (network,) = train_width([run.build_model(0)], batches, recipe, seeds=[0], input_shape=run.data.input_shape, device=run.device)
    assert evaluate(network, run.data.eval_batches("test", 400))["accuracy"] > 0.6  # 0.18 with those of the weights that were averaged
