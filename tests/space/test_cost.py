import copy
import json

import numpy as np
import pytest
import torch
from figures import MOBILENET, RESNET
from torch import nn

from bcnet.errors import UserError
from bcnet.models.channel_bench import MobileNet, ResNet
from bcnet.models.factory import build_model
from bcnet.space.cost import Budget, CostTable
from bcnet.space.trace import trace
from bcnet.supernet.supernet import Supernet


@pytest.fixture(scope="module")
def tables():
    return {cls: CostTable(trace(cls(), (3, 32, 32))) for cls in (MobileNet, ResNet)}


@pytest.mark.parametrize(("model", "figures"), [(MobileNet, MOBILENET), (ResNet, RESNET)])
def test_costs_equal_the_benchmarks_figures(tables, model, figures):
    table = tables[model]
    for name, (flops, params) in figures.items():
        widths = table.space.decode(name)
        assert table.one(widths, "flops") == flops
        assert table.one(widths, "params") == params


@pytest.mark.parametrize(("model", "file"), [(MobileNet, "Results_MobileNet.json"), (ResNet, "Results_ResNet.costs.json")])
def test_costs_equal_the_benchmarks_files_everywhere(tables, benchmark_folder, model, file):
    truth = json.loads((benchmark_folder / file).read_text())
    table = tables[model]
    widths = [table.space.decode(name) for name in truth]
    assert len(widths) == 16_384
    for cost in ("flops", "params"):
        assert table.of_widths(widths, cost).tolist() == [entry[cost] for entry in truth.values()]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("timm/resnet18", {}),
        ("timm/mobilenetv3_small_050", {}),
        ("timm/densenet121", {"block_config": (2, 2, 2, 2)}),
        ("timm/regnetx_002", {}),
        ("torchvision/alexnet", {}),
    ],
)
def test_costs_equal_thops_on_the_extracted_network(name, args):
    import thop

    model, shape = build_model(name, 10, args=args), (3, 64, 64)
    space = trace(model, shape)
    supernet, costs = Supernet(model, space), CostTable(space)
    rng = np.random.default_rng(0)
    # thop also counts norms, activations and pooling, and does not know timm's subclass of Linear
    counted = (nn.Conv2d, nn.Linear)
    rules = {type(m): lambda module, x, y: None for m in model.modules() if not list(m.children()) and not isinstance(m, counted)}
    rules |= {type(m): thop.vision.basic_hooks.count_linear for m in model.modules() if isinstance(m, nn.Linear)}
    for widths in (space.full, space.narrowest, space.sample(rng)):
        network = supernet.extract(widths).eval()
        flops, _ = thop.profile(copy.deepcopy(network), (torch.zeros(1, *shape),), custom_ops=rules, verbose=False)
        assert costs.one(widths, "flops") == flops
        assert costs.one(widths, "params") == sum(p.numel() for p in network.parameters())


def test_expected_cost_is_the_mean_over_independent_groups(tables):
    table = tables[MobileNet]
    space = table.space
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=7)
    everything = np.array(list(space.enumerate()))
    weight = np.prod(p[np.arange(7), everything - 1], axis=1)
    by_index = [np.concatenate([[0.0], row]) for row in p]
    for cost in ("flops", "params"):
        expected = table.costs[cost].expectation(by_index)
        assert expected == pytest.approx(float(weight @ table.of_widths(everything, cost)), rel=1e-9)


def test_budgets_are_read_and_impossible_ones_refused(tables):
    table = tables[MobileNet]
    full = table.range("flops")[1]
    assert Budget.parse("flops=0.5", table) == Budget("flops", full // 2)
    assert Budget.parse("flops=150M", table).limit == 150_000_000
    assert Budget.parse("params=1.5M", table).limit == 1_500_000
    with pytest.raises(UserError, match=r"cannot be met.*14\.29M to 211\.3M"):
        Budget.parse("flops=1M", table)
    for text in ("flops", "flops=", "memory=3", "flops=many", "flops=-1", "flops=nan", "flops=0"):
        with pytest.raises(UserError):
            Budget.parse(text, table)


@pytest.mark.parametrize("cost", ["flops", "params"])
def test_tables_equal_the_polynomial_and_refuse_what_is_not_of_the_space(tables, cost):
    for table in tables.values():
        widths = np.random.default_rng(0).integers(0, 5, (50, 7))
        channels = np.array(table.space.channel_table())[np.arange(7), widths]
        expected = table.of_channels(channels, cost)
        assert table.of_widths(widths, cost).tolist() == expected.tolist() == [table.one(row, cost) for row in widths.tolist()]
        for wrong in (7 * [5], 6 * [4] + [5]):
            with pytest.raises(IndexError):
                table.of_widths([wrong], cost)
            with pytest.raises(IndexError):
                table.one(wrong, cost)
        with pytest.raises(ValueError, match="8 indices for 7 groups"):
            table.one(8 * [4], cost)
