import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.models.factory import build_model
from bcnet.models.shortcut import IdentityOr
from bcnet.run import Run
from bcnet.space.channel_lists import match_channels, read_channels
from bcnet.space.cost import Budget, Cost, CostTable
from bcnet.supernet.extract import load_network
from bcnet.supernet.proof import trace, trace_for_channels
from bcnet.supernet.supernet import Supernet
from bcnet.supernet.widen import widen, widened_channels

IMAGE = (3, 8, 8)
QUICK = ("train.epochs=2", "search.evaluations=20", "search.algorithm.population=8", "retrain.epochs=1", "score.calibration_images=64")


def unit(inputs, outputs, kernel=1, groups=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs))


class Net(nn.Module):
    """A grouped convolution and a shortcut that is the identity in the model and a projection in most of its subnets."""

    def __init__(self):
        super().__init__()
        self.stem, self.main = unit(3, 8, 3), nn.Sequential(unit(8, 12), nn.ReLU(), unit(12, 12, 3, groups=3), nn.ReLU(), unit(12, 8))
        self.shortcut, self.last, self.fc = IdentityOr(unit(8, 8)), unit(8, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc(self.last(self.shortcut(x) + self.main(x)).relu().mean((2, 3)))


def costs_of(network, image):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *image))
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def wide_digits():
    return Experiment(load_config("digits/bcnetv2", [*QUICK, "space.widen=1.5"]))


def test_a_widened_model_is_proven_and_costs_what_pytorch_counts_for_every_width():
    model = Net()
    plain = trace_for_channels(model, IMAGE)
    wide = widen(model, plain, 1.5)
    space = trace(wide, IMAGE)  # with the proof
    assert [group.layers for group in space.groups] == [group.layers for group in plain.groups]
    assert {group.name: (own.channels, group.channels) for own, group in zip(plain.groups, space.groups, strict=True)} == {
        "stem.0": (8, 12),
        "main.0.0": (12, 20),  # 18 is no multiple of the 4 channels per group
        "shortcut.body.0": (8, 12),
        "last.0": (10, 15),
    }
    assert wide.main[2][0].groups == 5
    assert isinstance(wide.shortcut, IdentityOr)
    table = CostTable(space, model=plain)
    supernet = Supernet(wide, space)
    rng = np.random.default_rng(0)
    for widths in (space.full, space.narrowest, *(space.sample(rng) for _ in range(5))):
        assert costs_of(supernet.extract(widths), IMAGE) == (table.one(widths, "flops"), table.one(widths, "params"))
    model.shortcut = nn.Identity()  # which it is
    assert costs_of(model, IMAGE) == (table.of_model("flops"), table.of_model("params"))
    assert [table.of_channels(table.model_channels, cost) for cost in ("flops", "params")] == [*costs_of(model, IMAGE)]


def test_divisors_hold_where_they_hold_in_the_model_and_excluded_groups_stay():
    model = Net()
    plain = trace_for_channels(model, IMAGE, exclude=["last"])
    assert [group.channels for group in plain.groups] == [8, 8, 12]
    assert widened_channels(plain, 1.5) == (12, 12, 20)
    assert widened_channels(plain, 1.5, divisor=8) == (16, 16, 20)  # 12 are none of 8
    assert widened_channels(plain, 1.0) == (8, 8, 12)
    assert widen(model, plain, 2).last[0].out_channels == 10
    for factor in (0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="it must lie in 1"):
            widen(model, plain, factor)


def test_initial_weights_of_a_widened_model_have_the_spread_of_their_fan_in():
    torch.manual_seed(0)
    model = nn.Sequential(unit(3, 64, 3), unit(64, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    wide = widen(model, trace_for_channels(model, IMAGE, proof=False), 2)
    assert float((wide[1][0].weight.std() / model[1][0].weight.std()).detach()) == pytest.approx(0.5**0.5, rel=0.05)
    assert float((wide[0][0].weight.std() / model[0][0].weight.std()).detach()) == pytest.approx(1, rel=0.05)


def test_without_widening_nothing_changes():
    experiment = Experiment(load_config("digits/bcnetv2", QUICK))
    assert experiment.costs.model is None
    assert experiment.costs.of_model("flops") == experiment.costs.range("flops")[1]
    plain = build_model("digits/resnet", 10, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(experiment.build_model(5).parameters(), plain.parameters(), strict=True))


def test_fractions_of_a_budget_mean_the_model_as_it_was(wide_digits):
    costs = wide_digits.costs
    flops, params = costs_of(build_model("digits/resnet", 10), (1, 8, 8))
    assert Budget.parse("flops=1.0", costs).limit == flops
    assert Budget.parse("params=0.5", costs).limit == params // 2
    assert Budget.parse(f"flops={2 * flops}", costs).limit == 2 * flops < costs.range("flops")[1]
    with pytest.raises(UserError, match=r"\(0\.144 to 2\.24 of the model\)$"):
        Budget.parse("flops=0.1", costs)


def test_a_fraction_of_what_is_known_for_choices_only_is_refused(wide_digits):
    tables = {(0, 0): np.arange(5.0)[:, None] * np.ones(5)}
    costs = CostTable(wide_digits.space, [Cost("watts", "W", 1.0, tables)], wide_digits.model_space)
    assert Budget.parse("watts=3.5", costs).limit == 3.5
    with pytest.raises(UserError, match=r"budget 'watts=0.5': what the model itself costs is not known"):
        Budget.parse("watts=0.5", costs)


def test_uniform_widths_scale_the_model_up_to_the_widened_size(wide_digits):
    costs = wide_digits.costs
    assert costs.model_channels == (8, 24, 16, 16, 16)
    assert wide_digits.uniform_channels(costs.of_model("flops")) == costs.model_channels
    assert wide_digits.uniform_channels(costs.range("flops")[1]) == (12, 36, 24, 24, 24)
    assert wide_digits.uniform_channels(10 * costs.range("flops")[1]) == (12, 36, 24, 24, 24)
    between = wide_digits.uniform_channels(1.5 * costs.of_model("flops"))
    assert costs.of_model("flops") < costs.of_channels(between, "flops") <= 1.5 * costs.of_model("flops")


def test_published_weights_cannot_be_widened():
    with pytest.raises(UserError, match="trained weights are of the model's own widths"):
        Experiment(load_config("digits/bcnetv2", ["space.widen=1.5", "model.pretrained=true"]))
    with pytest.raises(UserError, match=r"space\.widen: 0\.5 is wrong: input should be greater than or equal to 1$"):
        load_config("digits/bcnetv2", ["space.widen=0.5"])


def test_a_widened_run_trains_searches_at_the_cost_of_the_model_and_gives_wider_networks(tmp_path):
    from bcnet.report.run_page import write_run_page

    run = Run.create(tmp_path / "run", load_config("digits/bcnetv2", [*QUICK, "space.widen=1.5"]))
    run.train()
    model_flops, _ = costs_of(build_model("digits/resnet", 10), (1, 8, 8))
    record = run.search("flops=1.0")
    assert record.settings.budgets[0].limit == model_flops
    assert all(row.costs["flops"] <= model_flops for row in record.evaluated)
    assert max(row.costs["flops"] for row in record.evaluated) > 0.8 * model_flops

    widths = run.space.decode("24344")
    channels = run.space.channels(widths)
    assert channels == (6, 36, 18, 24, 24)  # the model has 8, 24, 16, 16, 16
    run.extract(widths, tmp_path / "net")
    network, loaded = load_network(tmp_path / "net")
    assert costs_of(network, (1, 8, 8)) == (loaded["flops"], loaded["params"])
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own = run.scorer.supernet.get_active_subnet().eval()
    assert torch.allclose(network(images), own(images), atol=1e-5)
    plain = trace_for_channels(build_model("digits/resnet", 10), (1, 8, 8))
    assert match_channels(read_channels(str(tmp_path / "net" / "network.json")), plain).channels == channels

    retrained = run.retrain(widths, [0])
    for kind, entry in (("24344", retrained.found), ("uniform-like-24344", retrained.uniform)):
        network, _ = load_network(run.folder / "retrain" / kind / "seed0")
        assert costs_of(network, (1, 8, 8)) == (entry.flops, entry.params)
    assert retrained.uniform.flops <= retrained.found.flops
    page = write_run_page(run).read_text()
    assert f"({record.best.costs['flops'] / model_flops:.0%} of the model)" in page
    assert json.loads((run.folder / "search.json").read_text())["settings"]["budgets"][0]["text"] == "flops=1.0"
