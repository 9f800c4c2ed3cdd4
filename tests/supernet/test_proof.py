"""What slicing and extracting get wrong alike is seen by the whole network with its inactive channels zeroed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.errors import UserError
from bcnet.models.factory import build_model
from bcnet.space.trace import trace
from bcnet.supernet.proof import prove


class Between(nn.Module):
    """Two convolutions with something between them that mixes or reorders channels."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1), between

    def forward(self, x):
        return self.last(self.between(self.first(x))).mean((2, 3))


def shuffle(x):
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


MIXED = {
    "shuffle": shuffle,
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
        prove(model, trace(model, (3, 8, 8)), (3, 8, 8))


class Pyramid(nn.Module):
    """Pooled maps of several sizes, flattened and joined: which channel an input of the linear layer is of depends on the width."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16 * 5, 5)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(torch.cat([F.adaptive_avg_pool2d(x, size).flatten(1) for size in (1, 2)], 1))


def test_channels_tied_to_the_wrong_ones_are_not_called_proven():
    for model in (Pyramid(), build_model("timm/skresnet18", 5)):
        with pytest.raises(UserError, match="inactive channels zeroed"):
            prove(model, trace(model, (3, 32, 32)), (3, 32, 32), num_random=1)


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
