"""Optimizers, schedules and the rest of a recipe: what they say is what happens, and what is left out changes nothing."""

import pytest
import torch
from torch import nn

from bcnet.config import RecipeConfig, load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.models.digits import DigitsResNet
from bcnet.run import Run
from bcnet.training.optimizer import clip_gradients, make_optimizer
from bcnet.training.schedule import cosine_with_warmup, lr_factor, one_cycle
from bcnet.training.trainer import Trainer

CPU = torch.device("cpu")
QUICK = ("train.epochs=2", "retrain.epochs=0.5", "score.calibration_images=64")


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "rmsprop", "muon", "nadam", "sgdp"])
def test_an_optimizer_of_timm_trains_and_resumes_bit_for_bit(tmp_path, optimizer):
    rate = 0.02 if optimizer == "sgdp" else 0.003
    config = load_config("digits/base", [*QUICK, f"train.optimizer={optimizer}", f"train.lr={rate}", "train.decay_norm_and_bias=false"])
    whole = Run.create(tmp_path / "whole", config).train()
    Run.create(tmp_path / "parts", config).trainer.run(until_step=7)
    resumed = Run.create(tmp_path / "parts", config, resume=True).train()
    assert whole.history.loss == resumed.history.loss
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert sum(whole.history.loss[-5:]) < sum(whole.history.loss[:5])


def test_adamw_is_that_of_torch():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))

    ours, theirs = network(), network()
    recipe = RecipeConfig(optimizer="adamw", lr=0.01, weight_decay=0.1, optimizer_args={"betas": [0.8, 0.9]})
    pair = (ours, make_optimizer(ours, recipe)), (theirs, torch.optim.AdamW(theirs.parameters(), 0.01, (0.8, 0.9), weight_decay=0.1))
    images = torch.randn(8, 1, 8, 8)
    for _ in range(3):
        for model, optimizer in pair:
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def factors(total, warmup=0, epoch=10, **settings):
    recipe = RecipeConfig(**settings)
    return [lr_factor(recipe, step, warmup, total, epoch) for step in range(total)]


def rates_of_torch(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_are_those_of_torch():
    schedulers = torch.optim.lr_scheduler
    cases = {
        "one_cycle": lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=60, cycle_momentum=False),
        "poly": lambda o: schedulers.PolynomialLR(o, 60, 2.0),
        "step": lambda o: schedulers.StepLR(o, 20, 0.3),
        "cosine": lambda o: schedulers.CosineAnnealingLR(o, 60),
        "constant": lambda o: schedulers.ConstantLR(o, 1.0),
    }
    for name, make in cases.items():
        own = factors(60, schedule=name, poly_power=2.0, step_epochs=2.0, step_factor=0.3)
        assert own == pytest.approx(rates_of_torch(make, 60), abs=1e-9), name


def test_the_default_schedule_is_the_cosine_to_the_last_bit():
    assert factors(97, warmup=9) == [cosine_with_warmup(step, 9, 97) for step in range(97)]


def test_a_floor_is_where_a_schedule_ends():
    for schedule in ("cosine", "poly"):
        own = factors(1000, warmup=10, schedule=schedule, lr_floor=0.1)
        assert own[0] == pytest.approx(1 / 11)
        assert own[10] == 1
        assert own[-1] == pytest.approx(0.1, abs=2e-3)


@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_short_trainings_have_rates_too(total):
    assert all(0 < one_cycle(step, total) <= 1 for step in range(total))


def test_clipping_limits_what_it_says():
    for mode in ("norm", "value", "agc"):
        model = nn.Linear(5, 4)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 10.0)
        clip_gradients(model, RecipeConfig(clip_norm=0.5, clip_mode=mode))
        gradients = [parameter.grad for parameter in model.parameters()]
        if mode == "norm":
            assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(0.5, rel=1e-4)
        elif mode == "value":
            assert all((g == 0.5).all() for g in gradients)
        else:
            ratio = model.weight.grad.norm(dim=1) / model.weight.norm(dim=1)
            assert (ratio < 0.5 + 1e-4).all()


class NoNorm(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))

    def forward(self, x):
        return self.net(x)


def trained(model, **settings):
    experiment = Experiment(load_config("digits/base", []))
    batches = experiment.data.train_batches("full_train", 64, 0)
    trainer = Trainer(model, batches, RecipeConfig(epochs=1, lr=0.05, **settings), device=CPU)
    trainer.run(until_step=6)
    return trainer


def test_parts_of_a_batch_add_up_to_it():
    """Without batch norm, whose statistics are of a part alone."""
    whole = trained(NoNorm())
    for parts in (2, 3, 64):
        split = trained(NoNorm(), accumulate=parts)
        assert split.history.loss == pytest.approx(whole.history.loss, rel=1e-4)
        for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert trained(NoNorm(), accumulate=1).history.loss == whole.history.loss


def test_parts_of_a_batch_train_a_supernet(tmp_path):
    config = load_config("digits/base", [*QUICK, "train.accumulate=2", "train.epochs=1"])
    trainer = Run.create(tmp_path / "run", config).train()
    plain = Run.create(tmp_path / "plain", load_config("digits/base", [*QUICK, "train.epochs=1"])).train()
    assert trainer.history.passes == plain.history.passes
    assert trainer.history.loss == pytest.approx(plain.history.loss, rel=0.3)
    assert trainer.history.loss != plain.history.loss


def test_a_compiled_training_is_the_same():
    torch.manual_seed(0)
    start = DigitsResNet().state_dict()
    losses = []
    for backend in (None, "eager"):
        model = DigitsResNet()
        model.load_state_dict(start)
        trainer = trained(model, compile=backend)
        losses.append(trainer.history.loss)
        assert list(trainer.model.state_dict()) == list(start)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_layers_near_the_input_learn_slower_where_timm_knows_the_order():
    import timm

    model = timm.create_model("resnet10t", num_classes=3)
    optimizer = make_optimizer(model, RecipeConfig(optimizer="adamw", layer_decay=0.5, lr=0.1))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales[id(model.fc.weight)] == 1
    assert scales[id(model.conv1[0].weight)] < 0.2
    experiment = Experiment(load_config("digits/base", []))
    batches = experiment.data.train_batches("full_train", 64, 0)
    trainer = Trainer(NoNorm(), batches, RecipeConfig(optimizer="sgd", layer_decay=0.5, lr=0.1, schedule="constant"), device=CPU)
    trainer.run(until_step=1)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {
        0.1 * group["lr_scale"] for group in trainer.optimizer.param_groups
    }


def test_nesterov_is_what_the_setting_says_whoever_makes_the_optimizer():
    for more in ({}, {"optimizer_args": {"dampening": 0.0}}):
        for nesterov in (False, True):
            made = make_optimizer(nn.Linear(2, 2), RecipeConfig(nesterov=nesterov, **more))
            assert [group["nesterov"] for group in made.param_groups] == [nesterov] * len(made.param_groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.optimizer=nothing"], "optimizer 'nothing' cannot be made by timm"),
        (["train.optimizer=adamw", "train.optimizer_args={betaz: 3}"], "optimizer 'adamw' cannot be made by timm"),
        (["train.schedule=sawtooth"], "train.schedule: 'sawtooth' is wrong"),
        (["train.compile=inductor"], "not compiled"),
        (["train.optimizer=momentum", "train.nesterov=true"], "train: nesterov does nothing with optimizer=momentum"),
    ],
)
def test_mistakes_are_one_line(bcnet, tmp_path, settings, message):
    code, _, errors = bcnet("train", "digits/base", "--out", tmp_path / "run", *settings)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_backend_that_does_not_exist_is_one_line():
    with pytest.raises(UserError, match="compile='nothing' is no backend"):
        trained(NoNorm(), compile="nothing")


def test_finished_retrainings_keep_their_identity():
    """Fields that came later do not count while they are at their defaults, so nothing is trained again."""
    import json

    recipe = RecipeConfig()
    unset = {name for name in recipe.newer if getattr(recipe, name) == RecipeConfig.model_fields[name].default}
    before = json.loads(recipe.model_dump_json(exclude=unset))
    assert list(before) == [
        *("epochs", "batch_size", "lr", "warmup_epochs", "momentum", "nesterov", "weight_decay"),
        *("decay_norm_and_bias", "clip_norm", "label_smoothing", "ema_decay"),
    ]
