from itertools import pairwise

import pytest
import torch
from grids import all_choices, random_architecture, tiny
from torch.utils.flop_counter import FlopCounterMode

from bcnet.dense.architecture import Architecture, ExpectedCost
from bcnet.dense.costs import GridCost, count_grid, count_network
from bcnet.dense.supernet import SuperNetwork
from bcnet.errors import UserError
from bcnet.space.cost import Budget

IMAGE = (3, 8, 8)


def probability(architecture, choice):
    """Of a network, step by step."""
    grid = architecture.grid
    edges, heads, stacks = (part.detach() for part in (architecture.edges(), architecture.heads(), architecture.stacks()))
    head_number = {(edge.source, edge.target): number for number, edge in enumerate(grid.heads)}
    value = 1.0
    for pair in zip(choice.path, (*choice.path[1:], grid.end), strict=True):
        value *= edges[architecture.edge_place[pair]].item()
    for step, pair in enumerate(pairwise(choice.path)):
        value *= heads[head_number[pair], choice.heads[step]].item()
        for layer, operation in enumerate(choice.stacks[step]):
            value *= stacks[grid.layers.index((pair[1], layer)), operation].item()
    return value


@pytest.mark.parametrize("grid", [tiny(), tiny(depth=0), tiny(first=None, head=["basic_block"], stack=["basic_block"])])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_chained_cost_is_the_expectation_over_all_networks(grid, temperature):
    architecture = random_architecture(grid)
    architecture.temperature = temperature
    choices = list(all_choices(grid))
    chances = [probability(architecture, choice) for choice in choices]
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    rng = torch.Generator().manual_seed(0)
    latency = GridCost(
        "latency",
        "ms",
        0.25,
        {(e.source, e.target): torch.rand(len(grid.head_names), generator=rng).tolist() for e in grid.heads},
        {layer: torch.rand(len(grid.stack_names), generator=rng).tolist() for layer in grid.layers},
        {e.source: torch.rand(1, generator=rng).item() for e in grid.incoming[grid.end]},
    )
    for cost in count_grid(grid, IMAGE, 5, [latency]).costs.values():
        mean = sum(chance * cost.of(choice) for chance, choice in zip(chances, choices, strict=True))
        assert ExpectedCost(architecture, cost)().item() == pytest.approx(mean, rel=1e-12)


def test_its_gradient_is_that_of_finite_differences():
    architecture = random_architecture(tiny())
    expected = ExpectedCost(architecture, count_grid(tiny(), IMAGE, 5).costs["params"])
    parameters = list(architecture.parameters())

    def value(*tensors):
        return torch.func.functional_call(_Module(expected), dict(zip(["a.beta", "a.head", "a.stack"], tensors, strict=True)), ())

    assert torch.autograd.gradcheck(value, parameters, eps=1e-6, atol=1e-5)


class _Module(torch.nn.Module):
    def __init__(self, expected):
        super().__init__()
        self.a, self.expected = expected.architecture, expected

    def forward(self):
        return self.expected()


def test_costs_of_choices_are_those_of_the_networks_themselves():
    grid = tiny()
    costs, network = count_grid(grid, IMAGE, 5), SuperNetwork(grid, 5)
    for number, choice in enumerate(all_choices(grid)):
        own = costs.all_of(choice)
        assert own == count_network(grid.net_config(choice), IMAGE, 5, stem_stride=1)
        if number % 50 == 0:
            plain = network.extract(choice).eval()
            assert own["params"] == sum(p.numel() for p in plain.parameters())
            with FlopCounterMode(display=False) as counter:
                plain(torch.zeros(1, *IMAGE))
            assert own["flops"] == counter.get_total_flops() // 2


def test_the_reachable_range_is_that_of_all_networks():
    grid = tiny()
    costs = count_grid(grid, IMAGE, 5)
    for name, cost in costs.costs.items():
        values = [cost.of(choice) for choice in all_choices(grid)]
        assert costs.range(name) == (min(values), max(values))


def test_budgets_are_read_as_elsewhere():
    costs = count_grid(tiny(), IMAGE, 5)
    low, high = costs.range("flops")
    assert Budget.parse("flops=0.5", costs).limit == int(high / 2)
    with pytest.raises(UserError, match=rf"cannot be met: flops of this space reach from {low / 1e3:.4g}k to {high / 1e3:.4g}k"):
        Budget.parse(f"flops={low - 1}", costs)
    with pytest.raises(UserError, match="COST one of flops, params"):
        Budget.parse("latency=3ms", costs)


def test_visits_and_shares_are_probabilities():
    grid = tiny()
    architecture = random_architecture(grid)
    visits = architecture.visits()
    for block in grid.used:
        chance = sum(probability(architecture, choice) for choice in all_choices(grid) if block in choice.path)
        assert visits[block] == pytest.approx(chance, abs=1e-9)
    assert sum(architecture.operation_shares().values()) == pytest.approx(1)
    assert Architecture(grid).edges().sum(1).tolist() == pytest.approx([1.0] * len(grid.used))
