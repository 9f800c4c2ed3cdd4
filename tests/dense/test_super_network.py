from itertools import pairwise

import pytest
import torch
from grids import TINY, all_choices, random_architecture, tiny

from bcnet.config import load_as
from bcnet.dense.architecture import Architecture
from bcnet.dense.config import DenseConfig, GridConfig
from bcnet.dense.costs import count_grid
from bcnet.dense.grid import Grid
from bcnet.dense.sampling import sample_operations
from bcnet.dense.supernet import Active, SuperNetwork
from bcnet.kernels.depthwise import fast_depthwise

RESNET = {"first": None, "head": ["basic_block"], "stack": ["basic_block"]}


def network_of(grid, *, superkernel=False):
    torch.manual_seed(0)
    network = SuperNetwork(grid, 5, superkernel=superkernel)
    network.train()
    images = torch.randn(16, 3, 8, 8)
    for choice in list(all_choices(grid))[::5]:  # running statistics of everything
        network.active = choice
        network(images)
    return network


@pytest.mark.parametrize("superkernel", [False, True])
@pytest.mark.parametrize("grid", [tiny(), tiny(**RESNET)], ids=["mbconv", "resnet"])
def test_an_extracted_network_gives_what_the_super_network_restricted_to_its_path_gives(grid, superkernel):
    network, images = network_of(grid, superkernel=superkernel), torch.randn(8, 3, 8, 8)
    for choice in list(all_choices(grid))[::7]:
        network.active = choice
        plain = network.extract(choice)
        for mode in (True, False):
            torch.testing.assert_close(plain.train(mode)(images), network.train(mode)(images), rtol=0, atol=0)
        plain.classifier.weight.data.zero_()  # and shares nothing with it
        assert network.classifier.weight.abs().sum() > 0


@pytest.mark.parametrize("grid", [tiny(), tiny(**RESNET)], ids=["mbconv", "resnet"])
def test_the_whole_grid_with_all_probability_on_a_path_gives_what_the_path_gives(grid):
    network, images = network_of(grid).eval(), torch.randn(8, 3, 8, 8)
    numbers = {(edge.source, edge.target): number for number, edge in enumerate(grid.heads)}
    for choice in list(all_choices(grid))[::11]:
        edges = torch.zeros_like(random_architecture(grid).edges(), dtype=torch.float32)
        heads = torch.zeros(len(grid.heads), 1, dtype=torch.int64)
        stacks = torch.zeros(len(grid.layers), 1, dtype=torch.int64)
        for pair in zip(choice.path, (*choice.path[1:], grid.end), strict=True):
            edges[network.edge_place[pair]] = 1.0
        for step, pair in enumerate(pairwise(choice.path)):
            heads[numbers[pair]] = choice.heads[step]
            for layer, operation in enumerate(choice.stacks[step]):
                stacks[grid.layers.index((pair[1], layer))] = operation
        network.active = choice
        alone = network(images)
        network.active = Active(edges, heads, stacks)
        torch.testing.assert_close(network(images), alone)


def test_operations_of_a_superkernel_are_cut_out_of_one_weight_and_train_it():
    grid = Grid(GridConfig(**TINY | {"head": ["mbconv_k3_t1", "mbconv_k5_t3", "mbconv_k3_t6"], "stack": ["mbconv_k3_t3"]}))
    network = SuperNetwork(grid, 5, superkernel=True)
    weights = {name: held.weight for name, held in network.shared[0].items()}
    widest = 6 * grid.config.widths[0]
    assert weights["depthwise"].shape == (widest, 1, 5, 5)  # the largest kernel and the largest expansion, of different operations
    for number, (name, (kernel, hidden)) in enumerate(zip(grid.head_names, [(3, 4), (5, 12), (3, 24)], strict=True)):
        operation, edge = network.heads[0][number], (5 - kernel) // 2
        network.zero_grad()
        operation(torch.randn(4, 4, 8, 8)).square().sum().backward()
        cut = weights["depthwise"][:hidden, :, edge : 5 - edge, edge : 5 - edge]
        assert torch.equal(operation.depthwise[0].weight, cut), name
        reached = torch.zeros_like(weights["depthwise"], dtype=torch.bool)
        reached[:hidden, :, edge : 5 - edge, edge : 5 - edge] = True
        assert torch.equal(weights["depthwise"].grad != 0, reached), name
        assert torch.equal(operation.project[0].weight, weights["project"][:, :hidden]), name
    saved = [name for name in network.state_dict() if "depthwise" in name and name.endswith("weight") and name.startswith("heads.")]
    assert not saved  # nothing is saved twice
    assert network.stacks[0][0].depthwise[0].weight.requires_grad  # the only one of its kind keeps its own
    assert not network.shared[len(network.heads)]


ONE = {"basic": ["grid.depth=1"], "mbconv": ["grid.head=[mbconv_k5_t6]", "grid.stack=[mbconv_k7_t3]"]}


@pytest.mark.parametrize(
    ("name", "image", "one"), [("mbv2", (3, 224, 224), "mbconv"), ("resnet", (3, 193, 224), "basic"), ("cifar", (3, 32, 32), "mbconv")]
)
def test_shipped_grids_are_networks_and_what_they_choose_is_too(name, image, one):
    grid = Grid(load_as(DenseConfig, f"dense/{name}", ONE[one]).grid)  # a part of it: building takes time
    architecture = Architecture(grid)
    chosen = [sample_operations(p, 2, "fair", seed=0, step=3, part=0) for p in (architecture.heads(), architecture.stacks())]
    shares = [p.gather(1, used) for p, used in zip((architecture.heads(), architecture.stacks()), chosen, strict=True)]
    with torch.device("meta"):
        network = SuperNetwork(grid, 7, image[0])
        network.active = Active(architecture.edges(), *chosen, *shares)
        assert network(torch.zeros(2, *image)).shape == (2, 7)
        for choice in count_grid(grid, image, 7).extremes("flops"):
            assert network.extract(choice)(torch.zeros(2, *image)).shape == (2, 7)


def test_two_operations_are_mixed_by_their_shares():
    grid = tiny(depth=0)
    network, images = network_of(grid).eval(), torch.randn(8, 3, 8, 8)
    heads = torch.tensor([[0, 1]] * len(grid.heads))
    none = torch.zeros(0, 2, dtype=torch.int64)
    edges = random_architecture(grid, dtype=torch.float32).edges()
    for place in (0, 1):
        shares = torch.zeros(len(grid.heads), 2)
        shares[:, place] = 1.0
        network.active = Active(edges, heads, none, shares)
        both = network(images)
        network.active = Active(edges, heads[:, place : place + 1], none)
        torch.testing.assert_close(both, network(images))


def test_the_fast_depthwise_kernel_changes_nothing_but_rounding():
    grid = tiny(widths=[16, 16, 32, 32])
    network, images = network_of(grid), torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    network.to(memory_format=torch.channels_last)
    network.active = next(iter(all_choices(grid)))
    gradients = []
    for fast in (False, True):
        network.zero_grad(set_to_none=True)
        if fast:
            with fast_depthwise(network):
                network(images).square().sum().backward()
        else:
            network(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    assert not any("_conv_forward" in vars(module) for module in network.modules())
