import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_timing import FakeClock
from torch import nn

from bcnet.errors import UserError
from bcnet.experiment import load_cost
from bcnet.latency.fit import fit_line, sum_of
from bcnet.latency.session import LatencySession, LatencySettings, measure_latency
from bcnet.latency.table import Measured, read_latency
from bcnet.models.factory import build_model
from bcnet.models.shortcut import IdentityOr
from bcnet.seals import read_sealed
from bcnet.space.cost import Budget, CostTable, parse_budgets
from bcnet.supernet.proof import trace

CPU = torch.device("cpu")
OF = Measured("digits/resnet", 10, (1, 8, 8))
SETTINGS = LatencySettings("digits/resnet", 10, (1, 8, 8), repeats=2, times=1, checks=6)
FEWER = replace(SETTINGS, repeats=1, most=6, checks=4)


@pytest.fixture(scope="module")
def model():
    return build_model("digits/resnet", 10)


@pytest.fixture(scope="module")
def space(model):
    return trace(model, (1, 8, 8), proof=False)


@pytest.fixture(scope="module")
def measured(model, space, tmp_path_factory):
    """A table that was really measured, and its file."""
    out = tmp_path_factory.mktemp("latency") / "table.json"
    return measure_latency(model, space, SETTINGS, device=CPU, out=out), out


def test_a_table_is_what_was_measured_and_reads_back(measured, space):
    table, out = measured
    assert read_latency(out) == table
    assert not out.with_name("table.json.part").exists()
    assert table.covered == 1
    assert table.layers["blocks.0.conv1.0"].reads == "stem.0"
    assert table.layers["blocks.0.conv1.0"].writes == "blocks.0.conv1.0"
    assert len(table.layers["blocks.0.conv1.0"].ms) == 16
    assert all(ms > 0 for ms in table.layers["stem.0"].ms.values())
    assert not any(name.endswith(".1") and "conv" in name for name in table.layers)  # norms belong to their convolutions
    assert 0 < table.narrowest_ms < 1000


def test_the_cost_is_the_sum_of_the_entries(measured, space, model):
    table, out = measured
    cost = load_cost(str(out), space, OF)
    assert (cost.name, cost.unit, cost.of_channels) == ("latency", "ms", None)
    rng = np.random.default_rng(0)
    for widths in (space.full, space.narrowest, *(space.sample(rng) for _ in range(5))):
        channels = dict(zip((group.name for group in space.groups), space.channels(widths), strict=True))
        total = 0.0
        for layer in table.layers.values():
            reads, writes = (str(channels.get(side, side.split()[0])).replace("nothing", "0") for side in (layer.reads, layer.writes))
            total += layer.ms[f"{reads}x{writes}"]
        assert cost.one(widths) == pytest.approx(table.overhead_ms + table.scale * total)
    probabilities = [np.eye(5)[k] for k in space.full]
    assert cost.expectation(probabilities) == pytest.approx(cost.one(space.full))


def test_a_budget_in_milliseconds(measured, space, tmp_path):
    tree = read_sealed(json.loads(measured[1].read_text())) | {"overhead_ms": 0.25, "scale": 1.0}
    for layer in tree["layers"].values():
        layer["ms"] = {key: 0.01 * sum(map(int, key.split("x"))) for key in layer["ms"]}
    (tmp_path / "table.json").write_text(json.dumps(tree))
    costs = CostTable(space, [load_cost(str(tmp_path / "table.json"), space, OF)])
    low, full = costs.range("latency")
    assert full > 2
    assert Budget.parse("latency=1.5ms", costs).limit == 1.5
    assert Budget.parse("latency=1.5 ms", costs).limit == 1.5
    assert Budget.parse("latency=1.5", costs).limit == 1.5
    assert Budget.parse("latency=0.9ms", costs).limit == 0.9
    assert Budget.parse("latency=0.9", costs).limit == pytest.approx(0.9 * full)  # a fraction of the full model
    reach = f"from the narrowest network to the full one, latency goes from {low:.4g} to {full:.4g} ms"
    with pytest.raises(UserError, match=rf"'latency=0.2ms' cannot be met: {reach} \("):
        Budget.parse("latency=0.2ms", costs)
    for text in ("latency=ms", "flops=3ms", "latency=1.5s"):
        with pytest.raises(UserError):
            Budget.parse(text, costs)
    assert len(parse_budgets(["latency=1.5ms", "flops=0.5"], costs)) == 2
    assert costs.written("latency", 1.5) == "1.5 ms"


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (Measured("digits/other", 10, (1, 8, 8)), "model digits/resnet, and here model is digits/other"),
        (Measured("digits/resnet", 10, (1, 16, 16)), "input 1x8x8, and here input is 1x16x16"),
        (Measured("digits/resnet", 9, (1, 8, 8)), "num_classes 10, and here num_classes is 9"),
        (
            Measured("digits/resnet", 10, (1, 8, 8), {"cifar_stem": True}),
            r"args \{\}, and here args is \{'cifar_stem': True\}; measure it with: bcnet latency --args '\{cifar_stem: true\}'",
        ),
    ],
)
def test_a_table_of_another_network_is_refused(measured, space, of, words):
    with pytest.raises(UserError, match=words):
        load_cost(str(measured[1]), space, of)


def test_a_table_of_other_groups_is_refused(measured, model):
    with pytest.raises(UserError, match=r"stem.0 was measured at \[2, 4, 6, 8\] channels, and here has \[1, 2, 3"):
        load_cost(str(measured[1]), trace(model, (1, 8, 8), bins=8, proof=False), OF)
    with pytest.raises(UserError, match=r"5 groups, and here are 4, which differ in 'stem.0'"):
        load_cost(str(measured[1]), trace(model, (1, 8, 8), exclude=["stem.0"], proof=False), OF)
    half = trace(model, (1, 8, 8), bins=2, proof=False)  # its choices are among those that were measured
    assert load_cost(str(measured[1]), half, OF).one(half.full) > 0


def test_a_table_of_other_layers_is_refused(measured, space, tmp_path):
    tree = read_sealed(json.loads(measured[1].read_text()))
    tree["layers"]["blocks.9"] = tree["layers"].pop("stem.0")
    (tmp_path / "odd.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"layer 'blocks\.9', which this model has not"):
        load_cost(str(tmp_path / "odd.json"), space, OF)
    tree = read_sealed(json.loads(measured[1].read_text()))
    tree["layers"]["stem.0"]["writes"] = "blocks.0.conv1.0"
    (tmp_path / "odd.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"stem\.0 reads 1 channels and writes blocks.0.conv1.0, and here 1 channels and stem.0"):
        load_cost(str(tmp_path / "odd.json"), space, OF)


def test_a_damaged_file_or_none_is_one_line(measured, space, tmp_path):
    text = measured[1].read_text()
    broken = {
        "cut": text[: len(text) // 2],
        "other": '{"scores": {}}',
        "negative": text.replace('"full_ms": ', '"full_ms": -'),
        "infinite": text.replace('"scale": ', '"scale": 1e999, "x": '),
        "list": "[]",
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        with pytest.raises(UserError, match=f"{name}.json") as caught:
            load_cost(str(path), space, OF)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        load_cost(str(tmp_path / "absent.json"), space, OF)


def test_another_device_is_said_once(measured, space, tmp_path, capsys):
    tree = read_sealed(json.loads(measured[1].read_text()))
    tree["meta"]["device"] = "Abacus 3000"
    (tmp_path / "table.json").write_text(json.dumps(tree))
    for _ in range(2):
        load_cost(str(tmp_path / "table.json"), space, OF)
    assert capsys.readouterr().err.count("was measured on Abacus 3000") == 1


@pytest.mark.parametrize("lines", [0, 1, 12])
def test_a_measurement_that_was_killed_within_a_line_goes_on(model, space, tmp_path, lines):
    whole, part = tmp_path / "whole.json.part", tmp_path / "cut.json.part"
    expected = LatencySession(model, space, FEWER, CPU, whole, FakeClock()).run()
    written = whole.read_bytes().splitlines(keepends=True)
    assert len(written) > 15
    part.write_bytes(b"".join(written[:lines]) + written[lines][: len(written[lines]) // 2])
    session = LatencySession(model, space, FEWER, CPU, part, FakeClock())
    assert len(session.lines) == max(0, lines - 1)
    assert session.run() == expected
    assert part.read_bytes() == whole.read_bytes()


def test_a_part_of_other_settings_or_damaged_is_refused(model, space, tmp_path):
    part = tmp_path / "table.json.part"
    LatencySession(model, space, FEWER, CPU, part, FakeClock()).run()
    other = replace(FEWER, repeats=3)
    with pytest.raises(UserError, match=r"begun with repeats=1, not 3: give the same settings to go on, or delete it"):
        LatencySession(model, space, other, CPU, part, FakeClock())
    with pytest.raises(UserError, match="begun with other groups"):
        LatencySession(model, trace(model, (1, 8, 8), bins=2, proof=False), FEWER, CPU, part, FakeClock())
    lines = part.read_text().splitlines()
    part.write_text("\n".join([lines[0], lines[2], lines[1], ""]))
    with pytest.raises(UserError, match="other measurements"):
        LatencySession(model, space, FEWER, CPU, part, FakeClock())
    part.write_text("\n".join([lines[0], lines[1][:20], lines[2], ""]))
    with pytest.raises(UserError, match="damaged"):
        LatencySession(model, space, FEWER, CPU, part, FakeClock())
    assert part.exists()


class Shortcuts(nn.Module):
    """A projection only where widths differ; a concatenation; a norm behind it."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.skip = IdentityOr(nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)))
        self.side = nn.Conv2d(8, 12, 1)
        self.norm = nn.BatchNorm2d(20)
        self.last = nn.Conv2d(20, 8, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.conv(x) + self.skip(x)
        x = self.norm(torch.cat([x, self.side(x)], 1)).relu()
        return self.head(self.last(x).mean((2, 3)))


def test_shortcuts_and_concatenations(tmp_path):
    model = Shortcuts()
    space = trace(model, (1, 8, 8))
    out = tmp_path / "table.json"
    settings = LatencySettings("test:Shortcuts", 10, (1, 8, 8), repeats=1, times=1, checks=4)
    table = measure_latency(model, space, settings, device=CPU, out=out)
    session = LatencySession(model, space, settings, CPU, tmp_path / "again.part")
    blocks = {block.name: block for block in session.blocks}
    assert list(blocks) == list(table.layers)
    assert "norm" in blocks  # it reads more than the layer before it wrote
    assert "skip.body.1" not in blocks
    assert isinstance(table.layers["last"].reads, list) and not table.layers["last"].ms
    assert any(layer.ms for layer in table.layers.values())
    cost = load_cost(str(out), space, Measured("test:Shortcuts", 10, (1, 8, 8)))
    skipped = 0
    for widths in space.enumerate():
        channels = space.channels(widths)
        expected = table.overhead_ms + table.scale * sum_of(session.blocks, table.layers, channels)
        assert cost.one(widths) == pytest.approx(expected)
        skipped += blocks["skip.body.0"].is_skipped(channels)
        if skipped > 3 and sum(widths) > 12:
            break
    assert skipped


def test_a_line_is_fitted_through_outliers():
    x = np.linspace(1, 5, 20)
    y = 0.5 + 0.9 * x
    y[3] = 40
    overhead, scale = fit_line(x.tolist(), y.tolist())
    assert overhead == pytest.approx(0.5)
    assert scale == pytest.approx(0.9)


def test_times_that_hardly_depend_on_widths_give_no_wild_line():
    x = np.linspace(1, 1.01, 20)
    y = 1 + np.random.default_rng(0).normal(0, 0.2, 20)
    overhead, scale = fit_line(x.tolist(), y.tolist())
    assert 0.5 <= scale <= 1.5
    assert 0.5 < overhead + scale < 1.5
