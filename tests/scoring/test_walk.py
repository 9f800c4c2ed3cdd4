import numpy as np
import pytest
import torch
from torch import nn

from bcnet.models.channel_bench import MobileNet, ResNet
from bcnet.models.cifar import ResNet20
from bcnet.models.digits import DigitsResNet
from bcnet.models.factory import build_model
from bcnet.models.shortcut import IdentityOr
from bcnet.scoring import scorer
from bcnet.scoring.evaluate import evaluate
from bcnet.scoring.plan import NotShareable
from bcnet.scoring.scorer import Scorer
from bcnet.scoring.walk import Walker
from bcnet.space.trace import Choices, trace
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.supernet import Supernet


class Plus(nn.Module):
    """Concatenation, addition in place, a bias, an activation in place, a functional pool.

    With ``overwrite`` an activation in place changes what is read again later.
    """

    def __init__(self, overwrite=False):
        super().__init__()
        self.overwrite = overwrite
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 12, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(20)
        self.four = nn.Conv2d(20, 8, 3, 2, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x):
        x = self.norm1(self.one(x))
        y = self.two(x)
        y += x
        z = self.three(self.relu(y) if self.overwrite else torch.relu(y))
        both = self.norm2(torch.cat([self.relu(z), nn.functional.hardswish(y)], 1))
        return self.head(nn.functional.max_pool2d(self.four(both), 1).flatten(1))


class Shortcuts(nn.Module):
    """What a shortcut hands on, as it is or projected, is read more than once; a body with a pool; one that is called twice."""

    def __init__(self, twice=False):
        super().__init__()
        self.twice = twice
        self.first, self.inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        body = nn.AvgPool2d(3, 1, 1), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.shortcut = IdentityOr(nn.Sequential(*body))
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x)
        y = self.shortcut(x)
        z = self.inner(x)
        z += y
        z = self.relu(z) * torch.sigmoid(y)
        return self.last((z + self.shortcut(x) if self.twice else z).mean((2, 3)))


MODELS = {
    "resnet20": (lambda: ResNet20(5), (3, 16, 16)),
    "shortcuts": (Shortcuts, (3, 8, 8)),
    "digits": (lambda: DigitsResNet(), (1, 8, 8)),
    "mobilenet": (lambda: MobileNet(10, (8, 12, 12, 12, 8, 16, 12)), (3, 16, 16)),
    "resnet": (lambda: ResNet(10, (8, 8, 8, 8, 12, 12, 12)), (3, 16, 16)),
    "concatenation": (Plus, (3, 8, 8)),
    "squeeze-excite": (lambda: build_model("timm/mobilenetv3_small_050", 5), (3, 32, 32)),
    "grouped": (lambda: build_model("timm/regnety_002", 5), (3, 32, 32)),
    "dense": (lambda: build_model("timm/densenet121", 5, args={"block_config": [2, 2], "growth_rate": 8}), (3, 32, 32)),
}


class Batches(list):
    """Two batches of images for calibration or evaluation."""

    def __init__(self, shape, seed):
        generator = torch.Generator().manual_seed(seed)
        super().__init__((torch.randn(n, *shape, generator=generator), torch.randint(5, (n,), generator=generator)) for n in (12, 9))

    def __len__(self):
        return 21


def alone(supernet, widths, side, calibration, validation, reference):
    """By a plain network that was taken out first, so that it shares no code with what slices."""
    network = supernet.extract(widths, side)
    calibrate(network, calibration)
    return evaluate(network, validation, reference=reference)


def test_layers_that_stay_whole_are_calibrated_too():
    """Of timm's, whose BN has an activation in it: torch.fx would look into one that is not slimmable and calibrate nothing."""
    make, shape = MODELS["squeeze-excite"]
    torch.manual_seed(0)
    model = make()
    space = trace(model, shape, Choices(exclude=("conv_stem", "blocks.1.*", "blocks.3.0.conv_pw")))
    supernet = Supernet(model, space)
    calibration, validation = Batches(shape, 1), Batches(shape, 2)
    for widths in (space.narrowest, space.full):
        (found,) = Walker(supernet, shape).evaluate([widths], "left", calibration, validation)
        expected = alone(supernet, widths, "left", calibration, validation, None)
        assert found["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("whole_layers", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_walk_gives_what_evaluating_each_alone_gives(name, whole_layers):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    space = trace(model, shape)
    supernet = Supernet(model, space, wide=True)
    walker = Walker(supernet, shape, whole_layers=whole_layers)
    calibration, validation = Batches(shape, 1), Batches(shape, 2)
    rng = np.random.default_rng(0)
    some = [space.narrowest, space.full, *(space.sample(rng) for _ in range(4))]
    nearby = [(*w[:-1], k) for w in some[2:3] for k in range(1, 5)]
    wanted = sorted({*some, *nearby})
    for side in ("left", "right"):
        reference = torch.randn(21, supernet(validation[0][0]).shape[1], generator=torch.Generator().manual_seed(3)).log_softmax(1)
        together = walker.evaluate(wanted, side, calibration, validation, reference=reference)
        for widths, found in zip(wanted, together, strict=True):
            expected = alone(supernet, widths, side, calibration, validation, reference)
            assert found["kl"] == pytest.approx(expected["kl"], rel=1e-5)
            assert found["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-5)
            assert found["accuracy"] == pytest.approx(expected["accuracy"])


@pytest.mark.parametrize("whole_layers", [True, False])
def test_a_score_does_not_depend_on_the_company(run, whole_layers):
    walker = Walker(run.scorer.supernet, run.experiment.data.input_shape, whole_layers=whole_layers)
    everything = list(run.space.enumerate())
    whole = walker.evaluate(everything, "right", run.experiment.calibration, run.experiment.validation)
    for part in (everything[700:701], everything[5:900:37], everything[-3:]):
        found = walker.evaluate(part, "right", run.experiment.calibration, run.experiment.validation)
        assert found == [whole[everything.index(widths)] for widths in part]


@pytest.mark.parametrize("name", ["resnet20", "squeeze-excite", "digits"])
def test_a_walk_by_the_statistics_of_the_batch_gives_what_plain_networks_in_training_mode_give(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None)
    space = trace(model, shape)
    supernet = Supernet(model, space, wide=True)
    walker, validation = Walker(supernet, shape), Batches(shape, 2)
    wanted = sorted({space.narrowest, space.full, *(space.sample(np.random.default_rng(0)) for _ in range(3))})
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    together = walker.evaluate(wanted, "right", None, validation)
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())
    for widths, found in zip(wanted, together, strict=True):
        plain = supernet.extract(widths, "right").train()
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(plain(images), labels, reduction="sum") for images, labels in validation]
        assert found["cross_entropy"] == pytest.approx(float(sum(losses)) / len(validation), rel=1e-5)


def test_how_much_a_walk_saves():
    """Deterministic; the benchmark in benchmarks/score.py measures the time."""
    cases = ((MobileNet(), True, 17.43), (MobileNet(), False, 6.89), (ResNet(), True, 7.57), (ResNet(), False, 3.69))
    for model, whole_layers, saved in cases:
        space = trace(model, (3, 32, 32))
        walker = Walker(Supernet(model, space), (3, 32, 32), whole_layers=whole_layers)
        one_by_one, together = np.sum(list(walker.multiply_adds(space.enumerate())), axis=0)
        assert one_by_one / together == pytest.approx(saved, abs=0.01)
        ((alone, first),) = walker.multiply_adds([space.full])
        assert alone == first


class Undecided(nn.Module):
    """Looks at the images before it decides what to do."""

    def __init__(self):
        super().__init__()
        self.net = Plus()

    def forward(self, x):
        return self.net(x) if x.sum() < 1e9 else self.net(-x)


CANNOT = (Undecided, "control flow"), (lambda: Plus(overwrite=True), "other logits"), (lambda: Shortcuts(twice=True), "more than once")


@pytest.mark.parametrize(("make", "words"), CANNOT)
def test_a_network_that_cannot_be_followed_is_refused(make, words):
    model = make()
    with pytest.raises(NotShareable, match=words):
        Walker(Supernet(model, trace(model, (3, 8, 8))), (3, 8, 8))


def test_without_a_walk_each_is_scored_alone(run, monkeypatch):
    wanted = [(1, 2, 3, 4, 1), (2, 2, 2, 2, 2)]
    together = run.scorer.score_many(wanted)

    def refuse(*args, **kwargs):
        raise NotShareable("for this test")

    for change in ("cannot", "no memory"):
        with monkeypatch.context() as patched:
            if change == "cannot":
                patched.setattr(scorer, "Walker", refuse)
            memory = 4.0 if change == "cannot" else 1e-9
            lonely = Scorer(
                run.scorer.supernet, run.experiment.calibration, run.experiment.validation, metric=run.scorer.metric, memory_gib=memory
            )
            assert lonely.score_many(wanted) == pytest.approx(together, rel=1e-5)
            assert lonely.walker is None
