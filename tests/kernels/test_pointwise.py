"""Strided 1x1 convolutions of a few channels, which some CPUs get wrong, in slimmable and in plain networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.kernels.pointwise import safe_convolutions
from bcnet.space.trace import Choices, trace
from bcnet.supernet.supernet import Supernet


class Shortcut(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 12, 1, 2, bias=False), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.conv(self.stem(x)).relu().mean((2, 3)))


def gradient(net, images):
    net.zero_grad()
    net(images).square().sum().backward()
    return net.conv.weight.grad


@pytest.mark.parametrize("channels", [4, 6, 7, 8])
def test_the_weight_gradient_is_right_where_there_are_few_channels(channels):
    torch.manual_seed(0)
    plain = Shortcut(channels).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    twin = Shortcut(channels).double()
    twin.load_state_dict(plain.state_dict())
    expected = gradient(twin, images.double()).float()
    with safe_convolutions(plain):
        assert torch.allclose(gradient(plain, images), expected, rtol=1e-3, atol=1e-4)
    supernet = Supernet(plain, trace(plain, (3, 16, 16), Choices(bins=1))).to(memory_format=torch.channels_last)
    supernet.net.zero_grad()
    supernet(images).square().sum().backward()
    assert torch.allclose(supernet.net.conv._parameters["weight"].grad, expected, rtol=1e-3, atol=1e-4)


def test_the_way_round_is_gone_afterwards_and_gives_the_same():
    conv = nn.Conv2d(4, 6, 1, 2)
    images = torch.randn(2, 4, 8, 8)
    net = nn.Sequential(conv)
    with safe_convolutions(net):
        inside = net(images)
    assert "_conv_forward" not in vars(conv)
    assert torch.allclose(inside, F.conv2d(images, conv.weight, conv.bias, 2), atol=1e-6)
