import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.models.digits import DigitsResNet
from bcnet.scoring.zero_cost import PROXIES, grad_norm, naswot, synflow, zen, zero_cost_scores, zico


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [(torch.randn(8, 3), torch.arange(8) % 2) for _ in range(2)]


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))


def test_synflow_sums_all_paths_once_per_layer(network, batches):
    first, last = (layer.weight.detach().abs().double() for layer in (network[0], network[2]))
    paths = sum(first[h, i] * last[o, h] for i in range(3) for h in range(4) for o in range(2))
    assert synflow(network, batches) == pytest.approx(math.log(2 * paths))  # each path is weight times gradient in both layers


def test_gradients_are_those_of_finite_differences(network, batches):
    network.double()
    images, labels = batches[0][0].double(), batches[0][1]

    def gradient(weight):
        found = torch.zeros_like(weight)
        for place in range(weight.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                weight.data.view(-1)[place] += step
                ends.append(float(F.cross_entropy(network(images), labels).detach()))
                weight.data.view(-1)[place] -= step
            found.view(-1)[place] = (ends[0] - ends[1]) / 2e-6
        return found

    expected = sum(float(gradient(layer.weight).norm()) for layer in (network[0], network[2]))
    assert grad_norm(network, [(images, labels)]) == pytest.approx(expected, rel=1e-5)


def test_naswot_counts_on_how_many_units_two_images_agree(network, batches):
    images = batches[0][0]
    on = (network[0](images) > 0).tolist()
    kernel = torch.tensor([[sum(a == b for a, b in zip(one, other, strict=True)) for other in on] for one in on], dtype=torch.float64)
    assert naswot(network, batches) == pytest.approx(float(torch.linalg.slogdet(kernel).logabsdet))


def test_zico_is_mean_over_deviation_of_two_batches(network, batches):
    per_batch = []
    for images, labels in batches:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        per_batch.append([network[0].weight.grad.clone(), network[2].weight.grad.clone()])
    expected = 0.0
    for one, other in zip(*per_batch, strict=True):
        mean, deviation = (one.abs() + other.abs()) / 2, (one - other).abs() / 2
        expected += math.log(sum(float(m / d) for m, d in zip(mean.flatten(), deviation.flatten(), strict=True) if d > 0))
    assert zico(network, batches) == pytest.approx(expected, rel=1e-4)


def test_wider_networks_score_higher_and_are_left_as_they_were(batches):
    torch.manual_seed(0)
    images = [(torch.rand(16, 1, 8, 8), torch.arange(16) % 10) for _ in range(2)]
    narrow, wide = DigitsResNet(channels=(2, 6, 4, 4, 4)), DigitsResNet()
    before = [parameter.clone() for parameter in wide.parameters()]
    small, large = zero_cost_scores(narrow, images), zero_cost_scores(wide, images)
    assert set(small) == set(PROXIES)
    for name in ("synflow", "naswot", "zen", "zico"):
        assert large[name] > small[name], name
    assert all(torch.equal(one, other) for one, other in zip(before, wide.parameters(), strict=True))
    assert all(map(math.isfinite, large.values()))
    state = torch.get_rng_state()
    assert zero_cost_scores(wide, images) == large
    assert zero_cost_scores(wide, images, seed=1)["zen"] != large["zen"]
    assert torch.equal(torch.get_rng_state(), state)


def test_zen_of_a_network_without_norms_is_how_far_its_logits_move(network, batches):
    assert math.isfinite(zen(network, batches))


def test_norms_that_silence_a_branch_at_first_and_bounded_activations_hide_nothing():
    torch.manual_seed(0)
    images = [(torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(2)]
    network = DigitsResNet()
    silent = copy.deepcopy(network)
    for block in silent.blocks:
        nn.init.zeros_(block.conv2[1].weight)
    for proxy in (synflow, zen, zico):
        torch.manual_seed(1)
        wanted = proxy(network, images)
        torch.manual_seed(1)
        assert proxy(silent, images) == wanted
    plain, bounded = (nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2)) for act in (nn.ReLU(), nn.ReLU6()))
    for layer in (plain[0], plain[2]):
        nn.init.constant_(layer.weight, 9.0)
    bounded.load_state_dict(plain.state_dict())
    batches = [(torch.randn(4, 3), torch.arange(4) % 2)]
    assert synflow(bounded, batches) == synflow(plain, batches)
