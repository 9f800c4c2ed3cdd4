import json

import pytest
import torch

from bcnet.errors import UserError
from bcnet.latency.relevel import relevel
from bcnet.latency.session import LatencySettings, measure_latency
from bcnet.latency.table import Measured, load_latency
from bcnet.models.digits import DigitsResNet
from bcnet.seals import read_sealed
from bcnet.space.trace import trace

OF = Measured("digits/resnet", 10, (1, 8, 8))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("latency") / "table.json", DigitsResNet()
    settings = LatencySettings("digits/resnet", 10, (1, 8, 8), repeats=3, times=1, checks=4, most=6)
    measure_latency(model, trace(model, (1, 8, 8)), settings, device=torch.device("cpu"), out=path)
    return path


def test_a_table_of_a_machine_that_was_slower_comes_back_at_the_level_of_now(table, bcnet, tmp_path):
    tree = read_sealed(json.loads(table.read_text()))
    slow = tmp_path / "slow.json"
    times = ("overhead_ms", "scale", "full_ms", "narrowest_ms")
    slow.write_text(json.dumps(tree | {name: 1000 * tree[name] for name in times}))
    out = tmp_path / "now.json"
    code, printed, err = bcnet("latency", "digits/resnet", "--relevel", slow, "--out", out, "--device", "cpu", "--seconds-per-network", 0.2)
    assert code == 0, err
    model = DigitsResNet()
    space = trace(model, (1, 8, 8))
    before, after = load_latency(slow, space), load_latency(out, space)
    factor = after.one(space.full) / before.one(space.full)
    assert 2e-4 < factor < 5e-3  # a busy machine may take five times as long
    assert after.one(space.narrowest) / before.one(space.narrowest) == pytest.approx(factor)
    assert f"{factor:.3f} times as long as when {slow} was measured" in printed


def test_another_device_or_model_is_refused(table, tmp_path):
    model = DigitsResNet()
    space = trace(model, (1, 8, 8))
    other = tmp_path / "other.json"
    tree = read_sealed(json.loads(table.read_text()))
    other.write_text(json.dumps(tree | {"meta": tree["meta"] | {"device": "a telephone"}}))
    with pytest.raises(UserError, match="was measured on a telephone"):
        relevel(other, model, space, of=OF, device=torch.device("cpu"), seconds=0.1)
    with pytest.raises(UserError, match="was measured with num_classes 10, and here num_classes is 11"):
        relevel(table, model, space, of=Measured("digits/resnet", 11, (1, 8, 8)), device=torch.device("cpu"), seconds=0.1)


def test_what_a_table_says_of_itself_is_not_asked_again(bcnet, tmp_path):
    for option in (("--threads", 4), ("--batch-size", 64), ("--backend", "compiled"), ("--repeats", 3), ("--networks", 5)):
        code, _, err = bcnet("latency", "digits/resnet", "--relevel", tmp_path / "table.json", "--out", tmp_path / "now.json", *option)
        assert (code, err.strip()) == (2, f"bcnet: error: {option[0]} is as the table of --relevel has it")
