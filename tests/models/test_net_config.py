import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bcnet.dense.costs import count_network
from bcnet.errors import UserError
from bcnet.models.factory import build_model
from bcnet.models.net_config import MOST_CHARACTERS, read_net_config
from bcnet.space.cost import CostTable
from bcnet.supernet.proof import trace

SMALL = "[[8, 8], 'mbconv_k3_t1', [], 0, 1]|[[8, 12], 'mbconv_k5_t3', ['mbconv_k7_t6'], 1, 2]|[[12, 20], 'conv1_1']"
BASIC = "[[8, 8], 'basic_block', [], 0, 1]|[[8, 12], 'basic_block', ['basic_block'], 1, 2]"


def counted(net, image, classes, **args):
    model = build_model("densenas/chain", classes, args={"net_config": net, "in_channels": image[0], **args}).eval()
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.zeros(1, *image, device="meta"))
    return {"flops": counter.get_total_flops() // 2, "params": sum(p.numel() for p in model.parameters())}


def test_published_networks_cost_what_was_published_to_the_last_digit():
    file = Path(os.environ.get("BCNET_DATA", "")) / "published" / "widths.json"
    if not file.is_file():
        pytest.skip("BCNET_DATA does not name a folder with published/widths.json in it")
    for row in json.loads(file.read_text())["densenas"].values():
        expected = {"flops": round(row["macs_m"] * 1e6), "params": round(row["params_m"] * 1e6)}
        assert count_network(read_net_config(row["net_config"]), (3, 224, 224), 1000) == expected
        assert counted(row["net_config"], (3, 224, 224), 1000) == expected


@pytest.mark.parametrize("net", [SMALL, BASIC, SMALL.replace("conv1_1", "conv1_1").replace("12], 'mbconv_k5_t3'", "12], 'basic_block'")])
@pytest.mark.parametrize(("image", "stem_stride"), [((3, 32, 32), 1), ((1, 9, 13), 2)])
def test_costs_are_those_of_torch(net, image, stem_stride):
    expected = counted(net, image, 7, stem_stride=stem_stride)
    assert count_network(read_net_config(net), image, 7, stem_stride) == expected


def test_bcnet_searches_the_widths_of_such_a_network():
    net = SMALL.replace("'mbconv_k7_t6'", "'basic_block'")
    model = build_model("densenas/chain", 7, args={"net_config": net})
    space = trace(model, (3, 12, 12), bins=4)  # proves that it slices right
    costs = CostTable(space)
    assert costs.all_of(space.full) == count_network(read_net_config(net), (3, 12, 12), 7)
    assert len(space.groups) >= 4


def test_the_text_comes_back_as_it_was():
    for text in (SMALL, BASIC):
        assert str(read_net_config(text)) == text
        assert read_net_config(text.replace("|", "|\n ")) == read_net_config(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "block 1: '' is not of the form"),
        ("5", "block 1: '5' is no list"),
        ("__import__('os').getpid()", "is not of the form"),
        ("(" * 5000, "is not of the form"),
        ("[" * MOST_CHARACTERS + "]", "characters are no network"),
        ("|".join(["[[8, 8], 'mbconv_k3_t1', [], 0, 1]"] * 101), "101 blocks"),
        ("[[8, 8], 'conv1_1']", "has 2 parts"),
        (SMALL.replace("mbconv_k5_t3", "mbconv_k9_t3"), "block 2: unknown operation 'mbconv_k9_t3'"),
        (SMALL.replace("[8, 12]", "[9, 12]"), "block 2: reads 9 channels, and the block before it gives 8"),
        (SMALL.replace("[12, 20]", "[13, 20]"), "block 3: reads 13 channels"),
        (SMALL.replace("], 1, 2]", "], 2, 2]"), "says 2 stacked operations and lists 1"),
        (SMALL.replace("], 1, 2]", "], 1, 3]"), "stride 3 is neither"),
        (SMALL.replace("[8, 12]", "[8, -12]"), "is no pair of channel counts"),
        (SMALL.replace("[8, 12]", "[8, 10000000]"), "is no pair of channel counts"),
        (SMALL.replace("[8, 12]", "[8, True]"), "is no pair of channel counts"),
        (SMALL.replace("['mbconv_k7_t6'], 1", f"{['mbconv_k3_t3'] * 101}, 101"), "at most 100 names"),
    ],
)
def test_what_is_no_network_is_refused_in_a_line(text, words):
    with pytest.raises(UserError) as caught:
        read_net_config(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_model_refuses_it_too():
    with pytest.raises(UserError, match="unknown operation"):
        build_model("densenas/chain", 10, args={"net_config": SMALL.replace("k5", "k4")})
