"""What slicing and extracting get wrong alike is seen by the whole network with its inactive channels zeroed."""

import subprocess
import sys

import pytest
import torch
from patience import patience
from torch import nn
from torch.nn import functional as F

from bcnet.errors import UserError
from bcnet.supernet.proof import NotProven, prove, trace


class Between(nn.Module):
    """Two convolutions with something between them that mixes or reorders channels."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1), between

    def forward(self, x):
        return self.last(self.between(self.first(x))).mean((2, 3))


def shuffle(x):
    return x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


MIXED = {
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(3, 1),
    "softmax": lambda x: x.softmax(1),
    "minus the mean": lambda x: x - x.mean(1, keepdim=True),
    "group norm without parameters": lambda x: F.group_norm(x, 4),
    "layer norm without parameters": lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
}


@pytest.mark.parametrize("name", MIXED)
def test_channels_that_are_mixed_are_not_called_proven(name):
    model = Between(MIXED[name])
    with pytest.raises(UserError):
        trace(model, (3, 8, 8))


class Constant(nn.Module):
    """Two blocks; one keeps the number of its channels where no tracing sees it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Conv2d(*sizes, 1) for sizes in ((3, 16), (16, 16), (16, 16), (16, 5)))

    def forward(self, x):
        x = self.second(self.first(x)).relu()
        return self.last(self.third(x).view(-1, 16, 64).unflatten(2, (8, 8))).mean((2, 3))


def test_only_the_group_at_which_the_proof_fails_stays_whole():
    space = trace(Constant(), (3, 8, 8))
    assert [group.layers for group in space.groups] == [("first",), ("second",)]
    assert "fewer channels" in dict(space.fixed)["third"]
    unproven = trace(Constant(), (3, 8, 8), proof=False)
    assert [group.layers for group in unproven.groups] == [("first",), ("second",), ("third",)]
    with pytest.raises(NotProven, match="fewer channels"):
        prove(Constant(), unproven, (3, 8, 8))


class Mistaken(Between):
    """Reads channels in another order than it did when it was traced."""

    def __init__(self):
        super().__init__(torch.relu)
        self.mistaken = False

    def forward(self, x):
        x = self.first(x)
        return self.last(x.flip(1) if self.mistaken else x).mean((2, 3))


def test_a_space_that_ties_the_wrong_channels_is_seen_by_zeroed_channels():
    model = Mistaken()
    space = trace(model, (3, 8, 8))
    model.mistaken = True
    with pytest.raises(NotProven, match="inactive channels zeroed"):
        prove(model, space, (3, 8, 8))


class Pyramid(nn.Module):
    """Pooled maps of several sizes, flattened and joined: which channel an input of the linear layer is of depends on the width."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16 * 5, 5)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(torch.cat([F.adaptive_avg_pool2d(x, size).flatten(1) for size in (1, 2)], 1))


def test_channels_that_would_be_tied_to_the_wrong_ones_stay_whole():
    with pytest.raises(UserError, match="reordered"):
        trace(Pyramid(), (3, 32, 32))


def test_channels_that_are_cut_into_parts_shrink_together():
    shuffled = trace(Between(shuffle), (3, 8, 8))
    first, last = shuffled.layers
    assert [(segment.channels, segment.repeat) for segment in first.outputs] == [(8, 1), (8, 1)]
    assert [(segment.channels, segment.repeat) for segment in last.inputs] == [(8, 2)]


class FeedsOn(nn.Module):
    """The output layer also feeds another layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.more = nn.Conv2d(3, 16, 3), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x):
        logits = self.head(self.conv(x).relu().mean((2, 3)))
        return logits + self.more(logits.softmax(1))


def test_whatever_reaches_an_output_keeps_its_size():
    model = FeedsOn()
    space = trace(model, (3, 8, 8))
    assert [group.layers for group in space.groups] == [("conv",)]
    assert dict(space.fixed) == dict.fromkeys(("head", "more"), "the outputs of the model")
    prove(model, space, (3, 8, 8))


def test_a_model_that_gives_no_tensor_is_refused():
    class Pair(Between):
        def forward(self, x):
            return super().forward(x), x

    model = Pair(torch.relu)
    space = trace(Between(torch.relu), (3, 8, 8))
    with pytest.raises(UserError, match="returns tuple"):
        prove(model, space, (3, 8, 8))


@pytest.mark.posix
def test_a_proof_needs_memory_for_few_copies_of_a_network():
    program = """
import resource, sys
from torch import nn
from bcnet.supernet.proof import trace

layers = nn.Linear(64 * 49, 8192), nn.ReLU(), nn.Linear(8192, 4096), nn.ReLU(), nn.Linear(4096, 10)
net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten(), *layers)
size = 4 * sum(parameter.numel() for parameter in net.parameters())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trace(net, (3, 8, 8))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == 'darwin' else 1024) / size)
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=patience(300), check=True).stdout
    assert float(printed) < 6.5  # a supernet of 1.25 times the channels, 1.56 times the weights; its gradients; subnets: 5.5 seen, 7.8 once
