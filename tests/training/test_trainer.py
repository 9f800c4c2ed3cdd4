import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from patience import patience
from torch import nn

from bcnet.config import RecipeConfig, load_config
from bcnet.errors import Interrupted, UserError
from bcnet.files import write_atomic
from bcnet.models.cifar import ResNet20
from bcnet.run import Run
from bcnet.space.trace import Choices, trace
from bcnet.supernet.supernet import Supernet
from bcnet.training.checkpoint import load_checkpoint, save_checkpoint
from bcnet.training.schedule import cosine_with_warmup
from bcnet.training.strategies.distilled import BCNetV2Distilled
from bcnet.training.trainer import Trainer

STRATEGIES = ("uniform", "autoslim", "bcnet", "bcnetv2", "bcnetv2_distilled")


def state_of(trainer):
    return {
        "model": {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()},
        "momentum": [trainer.optimizer.state[p]["momentum_buffer"].clone() for p in trainer.model.parameters()],
        "ema": [] if trainer.ema is None else [p.clone() for p in trainer.ema.parameters()],
        "records": trainer.records.to_list(),
        "loss": trainer.history.loss,
        "counts": [own.tolist() for own in trainer.counts.counts],
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_seed_same_run_also_when_stopped_and_resumed(tmp_path, strategy):
    config = load_config(f"digits/{strategy}", ["train.epochs=3", "train.ema_decay=0.9", "train.warmup_epochs=0.5", "train.clip_norm=1"])
    whole = Run.create(tmp_path / "whole", config).train()
    stopped = Run.create(tmp_path / "parts", config)
    for until in (1, 7, 23):  # 30 steps in all
        stopped.trainer.resume()
        stopped.trainer.run(until_step=until)
        stopped = Run.create(tmp_path / "parts", config, resume=True)
    assert_same(state_of(whole), state_of(stopped.train()))
    assert stopped.trained.step == whole.total_steps == 30


def test_a_training_in_fp16_scales_its_losses_and_resumes_bit_for_bit(tmp_path):
    config = load_config("digits/bcnetv2", ["train.epochs=2", "amp=fp16", "train.clip_norm=1", "device=cpu"])
    whole = Run.create(tmp_path / "whole", config).train()
    stopped = Run.create(tmp_path / "parts", config)
    stopped.trainer.scaler.load_state_dict(stopped.trainer.scaler.state_dict() | {"scale": 2.0**40})  # overflows at first
    before = [p.detach().clone() for p in stopped.trainer.model.parameters()]
    stopped.trainer.run(until_step=1)
    assert stopped.trainer.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, old) for p, old in zip(stopped.trainer.model.parameters(), before, strict=True))  # that step is left out
    stopped = Run.create(tmp_path / "parts", config, resume=True)
    stopped.trainer.resume()
    assert stopped.trainer.scaler.get_scale() == 2.0**39
    other = Run.create(tmp_path / "other", config)
    other.trainer.run(until_step=7)
    assert_same(state_of(whole), state_of(Run.create(tmp_path / "other", config, resume=True).train()))
    float32 = Run.create(tmp_path / "float32", config.model_copy(update={"amp": "off"})).train()
    assert float32.history.loss != whole.history.loss
    assert max(abs(one - other) for one, other in zip(float32.history.loss[:5], whole.history.loss[:5], strict=True)) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_run_on_the_gpu_resumes_bit_for_bit(tmp_path):
    config = load_config("digits/bcnetv2", ["train.epochs=3", "device=cuda", "amp=bf16"])
    whole = Run.create(tmp_path / "whole", config).train()
    stopped = Run.create(tmp_path / "parts", config)
    stopped.trainer.run(until_step=11)
    assert_same(state_of(whole), state_of(Run.create(tmp_path / "parts", config, resume=True).train()))


def test_a_run_begun_with_other_steps_is_not_continued(tmp_path, quick_config):
    run = Run.create(tmp_path / "run", quick_config)
    run.trainer.run(until_step=3)
    state = load_checkpoint(run.trainer.checkpoint)
    of_0_1 = {key: value for key, value in state.items() if key != "next_passes"}
    of_0_1["history"] = state["history"] | {"passes": state["history"]["passes"] + 6}  # as if a step had made two passes more
    for changed in (state | {"next_passes": "[Pass(widths=(1, 2, 3, 4, 1), side='left')]"}, of_0_1):
        save_checkpoint(run.trainer.checkpoint, changed)
        before = run.trainer.checkpoint.read_bytes()
        with pytest.raises(UserError, match="step 3 would train other subnets than when it was saved"):
            Run.create(tmp_path / "run", quick_config, resume=True).train()
        assert run.trainer.checkpoint.read_bytes() == before


def test_another_seed_is_another_run(tmp_path, quick_config):
    one = Run.create(tmp_path / "one", quick_config).train()
    other = Run.create(tmp_path / "other", quick_config.model_copy(update={"seed": 1})).train()
    assert one.history.loss != other.history.loss


def test_the_loss_falls(tmp_path):
    trainer = Run.create(tmp_path / "run", load_config("digits/bcnetv2", ["train.epochs=20"])).train()
    assert sum(trainer.history.loss[-20:]) < 0.6 * sum(trainer.history.loss[:20])


def command(folder, *more):
    return [sys.executable, "-m", "bcnet", "train", "digits/bcnetv2", "--out", str(folder), "train.epochs=15", *more]


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    killed = 0
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    for attempt in range(4):
        process = subprocess.Popen(
            command(tmp_path / "killed", "--resume", "checkpoint_seconds=0.05"),
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(0.05 * attempt)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.communicate()
    assert killed >= 2
    (tmp_path / "killed" / ".checkpoint.pt.half.bcnet.tmp").write_bytes(b"what a kill inside a write leaves")
    subprocess.run(command(tmp_path / "killed", "--resume", "checkpoint_seconds=0.05"), check=True, env=environment, capture_output=True)
    whole, resumed = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    for part in ("model", "optimizer", "counts", "records"):
        torch.testing.assert_close(whole[part], resumed[part], rtol=0, atol=0)
    assert torch.equal(whole["history"]["loss"], resumed["history"]["loss"])
    assert sys.platform == "win32" or not list((tmp_path / "killed").glob("*.tmp"))  # where nobody knows which are in use


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path, quick_config, number):
    run = Run.create(tmp_path / "run", quick_config)
    original = run.trainer._train_step

    def step_then_signal(replica):
        original(replica)
        if run.trainer.step == 4:
            signal.raise_signal(number)

    run.trainer._train_step = step_then_signal
    with pytest.raises(Interrupted, match="saved at step 5 of 30") as caught:
        run.trainer.run()
    assert caught.value.signal == number
    assert load_checkpoint(run.checkpoint)["step"] == 5


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, quick_config):
    run = Run.create(tmp_path / "run", quick_config)
    run.trainer.run(until_step=10)
    good = run.checkpoint.read_bytes()
    with torch.no_grad():
        next(run.trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan at step 10.*last good checkpoint"):
        run.trainer.run()
    assert run.checkpoint.read_bytes() == good


def test_truncated_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3})
    assert load_checkpoint(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)
    torch.save({"step": 3}, path)
    with pytest.raises(UserError, match="not a checkpoint of this version of bcnet"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (Path("evil-was-here").touch, ())


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "bcnet-checkpoint-1", "model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not Path("evil-was-here").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def full_disk(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write_atomic(path, full_disk)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [cosine_with_warmup(step, 5, 100) for step in range(101)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert all(a > b for a, b in pairwise(factors[5:]))
    assert factors[100] == pytest.approx(0)


def test_weight_decay_can_spare_norms_and_biases():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    batches = type("Batches", (), {"steps_per_epoch": 10})()
    for everywhere, expected in ((True, {5e-4}), (False, {5e-4, 0.0})):
        recipe = RecipeConfig(decay_norm_and_bias=everywhere)
        groups = Trainer(model, batches, recipe, device=torch.device("cpu")).optimizer.param_groups
        assert {group["weight_decay"] for group in groups} == expected
        assert sum(len(group["params"]) for group in groups) == 4


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux lists them")
def test_no_process_outlives_a_torchrun_that_was_killed(tmp_path, is_running, start_two):
    script = Path(__file__).parents[2] / "tools" / "train_supernet.py"
    with start_two(script, "digits/bcnetv2", "--out", tmp_path / "run", "train.epochs=2000", "checkpoint_seconds=0.2") as launcher:
        try:
            wait_for(lambda: (tmp_path / "run" / "checkpoint.pt").exists(), 200)
            ranks = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
            assert len(ranks) == 2
        finally:
            launcher.kill()
        wait_for(lambda: not any(map(is_running, ranks)), 30)


def wait_for(is_so, seconds):
    """Wait until something is so; fail when it takes too long."""
    deadline = time.monotonic() + patience(seconds)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_stay_equal_on_different_images(tmp_path, two_processes):
    """Gradients are averaged over the processes: their weights are the same bits after every step."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from torch import distributed\n"
        "from bcnet.config import load_config\n"
        "from bcnet.experiment import Experiment\n"
        "from bcnet.processes import leave\n"
        "from bcnet.run import Run\n"
        "distributed.init_process_group('gloo')\n"
        "trainer = Run(Path(sys.argv[1]), Experiment(load_config('digits/bcnetv2_distilled'))).trainer\n"
        "trainer.run(until_step=5)\n"
        "mine = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])\n"
        "all_of_them = [torch.empty_like(mine) for _ in range(2)]\n"
        "distributed.all_gather(all_of_them, mine)\n"
        "images = trainer.batches.batch(0)[0].flatten()\n"
        "seen = [torch.empty_like(images) for _ in range(2)]\n"
        "distributed.all_gather(seen, images)\n"
        "distributed.barrier()\n"
        "assert torch.equal(*all_of_them)\n"
        "assert not torch.equal(*seen)\n"
        "distributed.destroy_process_group()\n"
        "leave(0)\n"
    )
    result = two_processes(script, tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.posix
def test_two_machines_of_one_process_train_what_one_machine_of_two_does(tmp_path, two_processes):
    script, quick = Path(__file__).parents[2] / "tools" / "train_supernet.py", ("digits/bcnetv2", "train.epochs=2", "--out")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meet = ("--rdzv-backend", "c10d", "--rdzv-id", "7", "--rdzv-endpoint", f"localhost:{free.getsockname()[1]}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meet, str(script), *quick]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BCNET_KERNELS": "off"}
    machines = [subprocess.Popen([*launch, str(tmp_path / "two")], env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        ends = [one.communicate(timeout=patience(240)) for one in machines]
    finally:
        for one in machines:
            one.terminate()
    assert [one.returncode for one in machines] == [0, 0], ends
    result = two_processes(script, *quick, tmp_path / "one")
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert_same(one["model"], two["model"])
    assert_same(one["optimizer"]["state"], two["optimizer"]["state"])


def test_processes_whose_clocks_differ_save_together(tmp_path, two_processes):
    """One process thinks that it is time to save after every step, the other never: they must not meet in different collectives."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from torch import distributed\n"
        "from bcnet.config import load_config\n"
        "from bcnet.experiment import Experiment\n"
        "from bcnet.processes import leave\n"
        "from bcnet.run import Run\n"
        "distributed.init_process_group('gloo')\n"
        "seconds = 1e9 if distributed.get_rank() == 0 else 1e-9\n"
        "config = load_config('digits/bcnetv2_distilled', [f'checkpoint_seconds={seconds}', 'train.epochs=7'])\n"
        "run = Run(Path(sys.argv[1]), Experiment(config))\n"
        "saved = []\n"
        "original = run.trainer.save\n"
        "run.trainer.save = lambda: (saved.append(run.trainer.step), original())\n"
        "run.trainer.run()\n"
        "assert saved == [20, 40, 60, 70], saved\n"
        "distributed.destroy_process_group()\n"
        "leave(0)\n"
    )
    result = two_processes(script, tmp_path / "run")
    assert result.returncode == 0, result.stderr[-3000:]
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 70


def test_two_processes_train_the_same_weights(tmp_path, two_processes):
    """torchrun on two CPU processes: a pair still trains every bin twice."""
    script = Path(__file__).parents[2] / "tools" / "train_supernet.py"
    arguments = ["digits/bcnetv2", "--out", str(tmp_path / "run"), "train.epochs=4", "train.ema_decay=0.9"]
    result = two_processes(script, *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("trained 40 steps") == 1
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 40
    assert all((own == 40).all() for own in state["counts"])
    alone = Run.create(tmp_path / "alone", load_config("digits/bcnetv2", ["train.epochs=4", "train.ema_decay=0.9"])).train()
    # the same images and widths; only BN statistics are per process, so the course is close and not equal
    difference = torch.tensor(alone.history.loss) - state["history"]["loss"]
    assert difference.abs().mean() < 0.15


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layers_that_are_first_used_late_train_and_resume_bit_for_bit(tmp_path, optimizer):
    """A shortcut that the first steps leave out: with fused SGD this ended in a TypeError, and resumed trainings differed."""
    config = load_config("cifar/resnet20", ["train.lr=0.001", f"train.optimizer={optimizer}"])
    model = ResNet20(10)
    space = trace(model, (3, 32, 32), Choices(config.space.bins, config.space.min_bins, lists=config.space.groups))

    class Noise:
        steps_per_epoch, batch_size = 100, 2

        def batch(self, step):
            return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step)), torch.tensor([step % 10, 3])

    def make(checkpoint):
        strategy = BCNetV2Distilled(space, 2, BCNetV2Distilled.Settings())
        supernet = Supernet(model, space, wide=True, seed=2)
        options = {"device": torch.device("cpu"), "seed": 2, "passes": strategy.passes, "identity": "x"}
        return Trainer(supernet, Noise(), config.train, checkpoint=checkpoint, **options)

    whole = make(None)
    whole.run(4)
    for until in (1, 2):
        make(tmp_path / f"{until}.pt").run(until)
        resumed = make(tmp_path / f"{until}.pt")
        resumed.resume()
        resumed.run(4)
        torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_another_precision_is_no_way_to_go_on(tmp_path):
    config = load_config("digits/uniform", ["train.epochs=1", "amp=off"])
    Run.create(tmp_path / "run", config).trainer.run(until_step=2)
    with pytest.raises(UserError, match="was trained with another amp"):
        Run.create(tmp_path / "run", config.model_copy(update={"amp": "bf16"}), resume=True)
