import copy

import torch
from torch import nn

from bcnet.models.digits import DigitsResNet
from bcnet.space.trace import trace
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.supernet import Supernet

IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(64, dtype=torch.int64)


def batches(size, images=IMAGES):
    return [(part, LABELS[: len(part)]) for part in images.split(size)]


def first_norm(network):
    return next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_statistics_are_those_of_the_images():
    network = DigitsResNet()
    calibrate(network, batches(64))
    seen = network.stem[0](IMAGES)
    torch.testing.assert_close(first_norm(network).running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(first_norm(network).running_var, seen.var((0, 2, 3)))


def test_splitting_the_first_layers_batch_gives_the_same_mean():
    network = DigitsResNet()
    means = []
    for size in (8, 16, 64):
        calibrate(network, batches(size))
        means.append(first_norm(network).running_mean.clone())
    torch.testing.assert_close(means[0], means[1])
    torch.testing.assert_close(means[0], means[2])


def test_a_subnet_is_calibrated_like_its_extracted_network():
    space = trace(DigitsResNet(), (1, 8, 8))
    supernet = Supernet(DigitsResNet(), space, wide=True)
    for side in ("left", "right"):
        supernet.set_active_subnet((1, 4, 2, 3, 2), side)
        alone = supernet.get_active_subnet()
        calibrate(supernet, batches(32))
        calibrate(alone, batches(32))
        torch.testing.assert_close(supernet(IMAGES), alone(IMAGES))


def test_nothing_but_the_statistics_changes():
    network = DigitsResNet().train()
    before = copy.deepcopy(network.state_dict())
    momentum = first_norm(network).momentum
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    calibrate(network, batches(16))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert first_norm(network).momentum == momentum
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("running" not in name and "tracked" not in name), name


class Concatenation(nn.Module):
    """A BN layer over two groups, whose active channels are two ranges of its parameters."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 12, 3)
        self.norm, self.last = nn.BatchNorm2d(20), nn.Conv2d(20, 5, 1)

    def forward(self, x):
        return self.last(self.norm(torch.cat([self.one(x), self.two(x)], 1))).mean((2, 3))


def test_a_norm_behind_a_concatenation_keeps_its_statistics():
    space = trace(Concatenation(), (1, 8, 8))
    supernet = Supernet(Concatenation(), space, wide=True)
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    for side in ("left", "right"):
        supernet.set_active_subnet((1, 3), side)
        calibrate(supernet, batches(16))
        network = supernet.extract((1, 3), side)
        carried_over = network.norm.running_mean.clone()
        assert carried_over.abs().max() > 0
        calibrate(network, batches(16))
        torch.testing.assert_close(network.norm.running_mean, carried_over)
        torch.testing.assert_close(network(IMAGES), supernet(IMAGES))
    supernet.set_active_subnet((1, 3), "left")
    supernet.net.norm.reset_running_stats()
    inactive = torch.ones(25, dtype=torch.bool)
    for start, stop in supernet.net.norm.slices.outputs:
        inactive[start:stop] = False
    supernet.set_active_subnet((1, 3), "right")
    for start, stop in supernet.net.norm.slices.outputs:
        inactive[start:stop] = False
    assert torch.equal(supernet.net.norm._buffers["running_mean"][inactive], before["net.norm.running_mean"][inactive])
