import pytest
import torch
from torch import nn

from bcnet.latency.timing import START, TimedNetwork, clock_of, measure_network, measure_networks, random_images, visit
from bcnet.models.digits import DigitsResNet


class FakeClock:
    """Every stamp comes one millisecond after the last."""

    name = "fake"

    def __init__(self):
        self.now = 0

    def stamp(self):
        self.now += 1
        return self.now

    def settle(self):
        pass

    def ms(self, start, stop):
        return stop - start


class Twice(nn.Module):
    """Calls one layer twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.head(self.conv(self.conv(x)))


def test_blocks_add_up_to_the_pass_and_a_layer_called_twice_is_added_up():
    images = torch.zeros(1, 1, 4, 4)
    timed = TimedNetwork(Twice().eval(), images, FakeClock(), layers=["conv", "head", "absent"])
    assert timed.run() == [(START, 1), ("conv", 1), ("conv", 1), ("head", 1)]
    whole = TimedNetwork(Twice().eval(), images, FakeClock())
    assert whole.run() == [(START, 1)]
    seen = visit(timed, whole, seconds=0, repeats=5)
    assert seen.turns == 5
    assert seen.ratio == 4
    assert seen.blocks == {START: 1, "conv": 2, "head": 1}
    assert seen.reference_ms == 1


def test_blocks_of_a_real_network_add_up_to_the_pass():
    network = DigitsResNet(10).eval()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    images = random_images((1, 8, 8), 1, torch.device("cpu"))
    clock = clock_of(torch.device("cpu"))
    seen = visit(TimedNetwork(network, images, clock, layers=names), TimedNetwork(DigitsResNet(10).eval(), images, clock), seconds=0.1)
    assert set(seen.blocks) == {START, *names}
    assert sum(seen.blocks.values()) == pytest.approx(seen.ratio)
    assert all(value > 0 for value in seen.blocks.values())
    assert seen.turns >= 7


def test_networks_are_measured_turn_by_turn_and_left_as_they_are():
    small, large = nn.Conv2d(1, 2, 3), nn.Sequential(nn.Conv2d(1, 64, 3), nn.Conv2d(64, 256, 3), nn.Conv2d(256, 64, 3))
    threads = torch.get_num_threads()
    times = measure_networks([small, large], (1, 24, 24), batch_size=2, threads=1, repeats=9)
    assert 0 < 3 * times[0] < times[1]
    assert small.training
    assert not large._forward_pre_hooks
    assert torch.get_num_threads() == threads
    assert measure_network(small, (1, 24, 24), repeats=3) > 0
