import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bcnet import build_from_channels
from bcnet.cli import main
from bcnet.errors import UserError
from bcnet.models.digits import DigitsResNet
from bcnet.models.factory import build_model
from bcnet.space.channel_lists import match_channels, read_channels
from bcnet.space.cost import CostTable
from bcnet.supernet.proof import trace_for_channels
from bcnet.supernet.supernet import narrow

IMAGE = (3, 16, 16)


def unit(inputs, outputs, kernel=1, stride=1, groups=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs))


class Inverted(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.expand, self.depthwise, self.project = unit(inputs, hidden), unit(hidden, hidden, 3, groups=hidden), unit(hidden, outputs)
        self.adds = inputs == outputs

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x).relu()).relu())
        return x + y if self.adds else y


class Bottleneck(nn.Module):
    def __init__(self, inputs, hidden, outputs, stride, first):
        super().__init__()
        self.one, self.two, self.three = unit(inputs, hidden), unit(hidden, hidden, 3, stride), unit(hidden, outputs)
        self.shortcut = unit(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()
        self.first = first

    def forward(self, x):
        shortcut = self.shortcut(x) if self.first else None
        y = self.three(self.two(self.one(x).relu()).relu())
        return ((self.shortcut(x) if shortcut is None else shortcut) + y).relu()


def head(channels, classes=5):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def mobile():
    blocks = [Inverted(8, 24, 8), Inverted(8, 24, 12), Inverted(12, 36, 12)]
    return nn.Sequential(unit(3, 8, 3, 2), *blocks, *head(12))


def residual(first=False):
    """Two stages of two blocks each; both blocks of a stage and the first of the next read the same channels."""
    shapes = [(8, 4, 16, 1), (16, 4, 16, 1), (16, 8, 32, 2), (32, 8, 32, 1)]
    return nn.Sequential(unit(3, 8, 3), *(Bottleneck(*shape, first) for shape in shapes), *head(32))


@pytest.fixture(scope="module")
def mobile_space():
    return trace_for_channels(mobile(), IMAGE)


@pytest.fixture(scope="module", params=[False, True], ids=["shortcut last", "shortcut first"])
def residual_space(request):
    return trace_for_channels(residual(request.param), IMAGE)


MOBILE = (6, 30, 20, 10, 40)  # stem and block 1, hidden of block 1, hidden of block 2, output of blocks 2 and 3, hidden of block 3


@pytest.mark.parametrize(
    "counts",
    [
        [6, 30, 30, 6, 20, 20, 10, 40, 40, 10, 5],
        [6, 30, 30, 6, 20, 20, 10, 40, 40, 10],
        [6, 30, 6, 20, 10, 40, 10, 5],
        [6, 30, 6, 20, 10, 40, 10],
    ],
    ids=["all", "no classifier", "no depthwise", "neither"],
)
def test_depthwise_convolutions_and_the_classifier_may_be_listed_or_not(mobile_space, counts):
    assert match_channels(counts, mobile_space).channels == MOBILE


@pytest.mark.parametrize(
    "counts",
    [
        [6, 3, 5, 20, 20, 7, 9, 20, 2, 4, 40, 40, 11, 13, 40, 5],
        [6, 20, 3, 5, 20, 7, 9, 20, 40, 2, 4, 40, 11, 13, 40, 5],
        [6, 20, 3, 5, 20, 7, 9, 20, 40, 2, 4, 40, 11, 13, 40],
        [6, 3, 5, 20, 7, 9, 20, 2, 4, 40, 11, 13, 40, 5],
    ],
    ids=["behind the block", "before the block", "before the block, no classifier", "no shortcuts"],
)
def test_shortcuts_may_stand_behind_their_block_or_before_it_wherever_they_run(residual_space, counts):
    channels = match_channels(counts, residual_space).channels
    by_layer = {layer: count for group, count in zip(residual_space.groups, channels, strict=True) for layer in group.layers}
    blocks = [[by_layer[f"{block}.{part}.0"] for part in ("one", "two", "three")] for block in range(1, 5)]
    assert by_layer["0.0"] == 6
    assert blocks == [[3, 5, 20], [7, 9, 20], [2, 4, 40], [11, 13, 40]]


def test_a_list_of_another_length_is_told_what_lengths_there_are(mobile_space):
    with pytest.raises(UserError, match=r"3 numbers, and a list for this model has 11 \(all layers\), 10 .*, 8 .*, 7 \(.*depthwise.*\)$"):
        match_channels([6, 30, 6], mobile_space)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([6, 30, 8, 20, 10, 40, 10, 5], r"number 3 is 8 for 1\.project\.0, which has 6 by number 1$"),
        ([6, 30, 6, 20, 10, 40, 10, 1000], r"number 8 is 1000 for 6, which has 5 "),
        ([6, 30, 6, 20, 10, 0, 10, 5], "number 6 is 0, not a channel count"),
        ([6, 30, 6, 20, 10, True, 10, 5], "number 6 is True, not a channel count"),
        ([6, 30, 6, 20, 10, 4.5, 10, 5], "number 6 is 4.5, not a channel count"),
        ([6, 30, 6, 20, 10, 10**12, 10, 5], "number 6 is 1000000000000, not a channel count"),
    ],
)
def test_a_number_that_does_not_fit_is_named_with_its_layer(mobile_space, counts, message):
    with pytest.raises(UserError, match=message) as caught:
        match_channels(counts, mobile_space)
    assert "\n" not in str(caught.value)


def test_a_list_that_two_orders_read_differently_is_refused():
    model = nn.Sequential(unit(3, 8, 3), unit(8, 8, 3, groups=8), unit(8, 12), *head(12))
    space = trace_for_channels(model, IMAGE)
    assert match_channels([6, 6, 7], space).channels == (6, 7)
    with pytest.raises(UserError, match=r"ambiguous: group 2\.0 has 5 channels if .* classifier, and 6 if .* depthwise convolutions$"):
        match_channels([6, 6, 5], space)


def test_counts_by_the_name_of_a_group_or_of_any_of_its_layers(mobile_space):
    names = [group.name for group in mobile_space.groups]
    assert match_channels(dict(zip(names, MOBILE, strict=True)), mobile_space).channels == MOBILE
    by_layer = dict(zip(["1.project.0", "1.depthwise.0", "2.expand.0", "3.project.0", "3.expand.0"], MOBILE, strict=True))
    assert match_channels(by_layer, mobile_space).channels == MOBILE
    for wrong, message in (
        (by_layer | {"nothing": 3}, "'nothing' is no group"),
        (by_layer | {"0.0": 7}, "'0.0' has 7 channels, and 6 by another layer"),
        ({"0.0": 7}, "no channels for"),
    ):
        with pytest.raises(UserError, match=message):
            match_channels(wrong, mobile_space)


def test_channels_of_a_grouped_convolution_come_in_whole_groups():
    model = nn.Sequential(unit(3, 16, 3), unit(16, 16, 3, groups=4), unit(16, 12), *head(12))
    space = trace_for_channels(model, IMAGE)
    assert match_channels([20, 20, 7], space).channels == (20, 7)
    for counts in ([18, 18, 7], {"0.0": 18, "2.0": 7}):
        with pytest.raises(UserError, match="multiple of 4, for a grouped convolution"):
            match_channels(counts, space)
    network = build_from_channels(model, IMAGE, [20, 20, 7])
    assert network[1][0].groups == 5
    assert network(torch.zeros(2, *IMAGE)).shape == (2, 5)


class Gated(nn.Module):
    """Half of the first layer's outputs are the gate of the other half."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        values, gate = self.first(x).chunk(2, 1)
        return self.fc(self.last(values * gate.sigmoid()).mean((2, 3)))


def test_outputs_that_hold_a_group_twice_are_listed_as_a_whole():
    space = trace_for_channels(Gated(), IMAGE)
    assert match_channels([20, 6, 5], space).channels == (10, 6)
    with pytest.raises(UserError, match="number 1 is 21 for first"):
        match_channels([21, 6, 5], space)


def costs_of(network, image):
    """Multiply-adds of one image as PyTorch counts them, and parameters."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta").eval()(torch.empty(1, *image, device="meta"))
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("make", [mobile, residual])
def test_the_network_that_is_built_costs_what_is_said_also_where_it_is_wider_than_the_model(make, scale):
    model = make()
    space = trace_for_channels(model, IMAGE)
    channels = tuple(int(scale * group.channels) + number % 2 for number, group in enumerate(space.groups))
    table = CostTable(space)
    network = narrow(model, space, channels)
    assert network.train()(torch.randn(4, *IMAGE)).shape == (4, 5)
    expected = tuple(table.of_channels(channels, cost).item() for cost in ("flops", "params"))
    assert costs_of(network, IMAGE) == expected


def test_initial_weights_are_scaled_with_the_fan_in_where_layers_grow_and_where_they_shrink():
    torch.manual_seed(0)
    model = nn.Sequential(unit(3, 64, 3), unit(64, 64, 3), *head(64))
    for width in (16, 256):
        network = build_from_channels(model, IMAGE, [width, 64, 5], proof=False)
        ratio = float((network[1][0].weight.std() / model[1][0].weight.std()).detach())
        assert ratio == pytest.approx((64 / width) ** 0.5, rel=0.05)
        assert torch.equal(network[1][1].weight, torch.ones(64))
    same = build_from_channels(model, IMAGE, [64, 64, 5], proof=False)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))


def test_files_hold_a_list_an_object_or_many_entries(tmp_path):
    file = tmp_path / "lists.json"
    nets = {"small": {"channels": [3, 5], "params_m": 1.5}, "v2_0.5": [7, 8], "by_name": {"channels": {"a": 3}}}
    file.write_text(json.dumps({"about": "x", "nets": nets}))
    assert read_channels(f"{file}:nets.small") == [3, 5]
    assert read_channels(f"{file}:nets.small.channels") == [3, 5]
    assert read_channels(f"{file}:nets.v2_0.5") == [7, 8]
    assert read_channels(f"{file}:nets.by_name") == {"a": 3}
    for text, message in (
        (f"{file}", "choose an entry, such as .*lists.json:nets.small$"),
        (f"{file}:nets", "choose an entry, such as .*lists.json:nets.small$"),
        (f"{file}:nets.large", "no entry 'nets.large' in it; there are nets.small, nets.v2_0.5"),
        (f"{file}:about", "not a list of channel counts; expected"),
        (f"{tmp_path}/none.json:nets", "none.json: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            read_channels(text)
    file.write_text("[3, 5]")
    assert read_channels(str(file)) == [3, 5]


def test_the_command_prints_the_costs_of_a_list_and_reads_its_own_output(tmp_path, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["cost", "digits/resnet", *arguments])
        out = capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    wide = [30, 10, 20, 10, 10]
    space = trace_for_channels(DigitsResNet(10), (1, 8, 8))
    by_name = {group.name: count for group, count in zip(space.groups, wide, strict=True)}
    (tmp_path / "wide.json").write_text(json.dumps(by_name))
    code, out, _ = call("--channels", str(tmp_path / "wide.json"), "--json")
    row = json.loads(out)
    assert code == 0
    assert row["channels"] == by_name
    (tmp_path / "again.json").write_text(out)
    code, out, _ = call("--channels", str(tmp_path / "again.json"))
    assert f"{row['flops']:,} FLOPs" in out
    assert "2 of 5 groups are wider" in out
    for arguments, message in (
        ((), "--widths W, or --channels FILE"),
        (("--channels", "x.json", "--widths", "44444"), "one of the two"),
        (("--channels", "x.json", "--bins", "8"), "--bins is not for --channels"),
        (("--channels", "x.json"), "x.json: no such file"),
    ):
        code, _, err = call(*arguments)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert message in err


@pytest.fixture(scope="module")
def published():
    file = Path(os.environ.get("BCNET_DATA", "")) / "published" / "widths.json"
    if not file.is_file():
        pytest.skip("BCNET_DATA does not name a folder with published/widths.json in it")
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", ["timm/mobilenetv2_100", "torchvision/mobilenet_v2", "timm/resnet50", "torchvision/resnet50"])
def test_published_lists_cost_what_is_published(published, name):
    """BCNet counts its MobileNetV2 with a classifier that has no bias: 1,000 parameters less."""
    model = build_model(name, 1000)
    space = trace_for_channels(model, (3, 224, 224), proof=False)
    table = CostTable(space)
    family = "mobilenet" if "mobilenet" in name else "resnet"
    seen = 0
    for source in ("autoslim", "bcnet"):
        bias = 1000 if (source, family) == ("bcnet", "mobilenet") else 0
        for key, entry in published[source].items():
            if family in key:
                channels = match_channels(entry["channels"], space, key).channels
                flops, params = (table.of_channels(channels, cost).item() for cost in ("flops", "params"))
                assert flops == round(1e6 * entry["macs_m"]), key
                assert params - bias == round(1e6 * entry["params_m"]), key
                assert costs_of(narrow(model, space, channels), (3, 224, 224)) == (flops, params), key
                seen += 1
    assert seen >= 4
