"""A group that is permuted as a whole leaves the function as it was; important channels come first."""

import numpy as np
import pytest
import torch
from handmade import IMAGE, MODELS
from torch import nn

import bcnet
from bcnet.errors import UserError
from bcnet.models.factory import build_model
from bcnet.models.outputs import logits_of
from bcnet.models.shortcut import IdentityOr
from bcnet.supernet.importance import channel_importance
from bcnet.supernet.order import importance_orders, permute_channels, sort_channels
from bcnet.supernet.supernet import Supernet

NAMED = {
    "digits/resnet": (1, 8, 8),
    "channel_bench/mobilenet": (3, 32, 32),
    "cifar/resnet20": (3, 32, 32),
    "cifar/resnet20_padded": (3, 32, 32),
    "timm/mobilenetv3_small_050": (3, 64, 64),
    "timm/resnext26ts": (3, 64, 64),
    "timm/densenetblur121d": (3, 64, 64),
}


def stirred(model):
    """The model with parameters and statistics that are all different."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator) if "mean" not in name else 0.1 * tensor)
    return model.eval()


def random_importance(space, seed):
    rng = np.random.default_rng(seed)
    return [rng.random(group.channels) for group in space.groups]


def outputs(model, shape):
    with torch.no_grad():
        return logits_of(model.double()(torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).double()))


def assert_same_function(model, space, shape, both_ends):
    orders = importance_orders(space, random_importance(space, 5), both_ends=both_ends)
    assert any((order != np.arange(len(order))).any() for order in orders)
    permuted = permute_channels(model, space, orders)
    torch.testing.assert_close(outputs(permuted.eval(), shape), outputs(model, shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMED)
def test_permuted_groups_leave_the_function_as_it_was(name):
    model = stirred(build_model(name, 7))
    space = bcnet.trace(model, NAMED[name], proof=False)
    assert_same_function(model, space, NAMED[name], both_ends=False)


@pytest.mark.parametrize("name", MODELS)
def test_so_it_is_for_networks_as_people_write_them(name):
    """Or the group is found out: sorting compares, and leaves what it cannot permute."""
    torch.manual_seed(0)
    model = stirred(MODELS[name]())
    try:
        space = bcnet.trace(model, IMAGE)
    except UserError as error:
        pytest.skip(str(error))
    sorted_model = sort_channels(model, space, random_importance(space, 2), IMAGE, both_ends=True).eval()
    before = outputs(model, IMAGE)
    assert (outputs(sorted_model, IMAGE) - before).abs().max() <= 2e-4 * before.abs().max()


class Streams(nn.Module):
    """A shortcut that is the identity while both streams are equally wide."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.shortcut, self.fc = IdentityOr(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc((self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu().mean((2, 3)))


def test_streams_that_an_identity_adds_get_one_order():
    model = stirred(Streams())
    space = bcnet.trace(model, IMAGE, proof=False)
    by_name = dict(zip((group.name for group in space.groups), importance_orders(space, random_importance(space, 0)), strict=True))
    assert by_name["stem"].tolist() == by_name["conv2"].tolist() != list(range(8))
    assert_same_function(model, space, IMAGE, both_ends=True)


def test_important_channels_come_first_or_at_both_ends():
    space = bcnet.trace(build_model("digits/resnet", 10), (1, 8, 8), proof=False)
    importance = [np.arange(float(group.channels)) for group in space.groups]
    assert importance_orders(space, importance)[0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert importance_orders(space, importance, both_ends=True)[0].tolist() == [7, 5, 3, 1, 0, 2, 4, 6]


def test_a_dead_channel_is_the_least_important_by_every_criterion():
    model = stirred(build_model("digits/resnet", 10))
    space = bcnet.trace(model, (1, 8, 8), proof=False)
    dead = {1: 5, 4: 11}  # group -> channel
    with torch.no_grad():
        for g, channel in dead.items():
            for layer in space.layers:
                for one in layer.tensors:
                    for dim, segments in enumerate(one.dims):
                        if any(segment.group == g for segment in segments) and one.learned:
                            model.get_parameter(f"{layer.name}.{one.name}").select(dim, channel).zero_()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)) for _ in range(3)]
    for criterion in ("l1", "bn", "taylor"):
        importance = channel_importance(model, space, criterion, batches)
        assert all(values.min() >= 0 and values.max() > 0 for values in importance)
        assert {g: int(importance[g].argmin()) for g in dead} == dead, criterion


def test_taylor_is_what_the_loss_loses_to_first_order():
    """Against the loss itself, with the readers of a channel scaled by a little less than one."""
    model = stirred(build_model("digits/resnet", 10)).double()
    space = bcnet.trace(model, (1, 8, 8), proof=False)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(32, 1, 8, 8, generator=generator).double(), torch.randint(10, (32,), generator=generator)
    importance = channel_importance(model, space, "taylor", [batch])[1]

    def loss():
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(batch[0]), batch[1]))

    step, before = 1e-5, loss()
    readers = [layer.name for layer in space.layers if any(segment.group == 1 for segment in layer.inputs) and layer.kind != "norm"]
    for channel in (0, 9, 23):
        for factor in (1 - step, 1 / (1 - step)):
            with torch.no_grad():
                for name in readers:
                    model.get_parameter(f"{name}.weight")[:, channel] *= factor
            if factor < 1:
                change = (before - loss()) / step
        assert change**2 == pytest.approx(importance[channel], rel=1e-2)


def test_a_wide_supernet_of_a_sorted_model_computes_its_function_at_full_width():
    model = stirred(build_model("cifar/resnet20_padded", 10))
    space = bcnet.trace(model, (3, 32, 32))
    sorted_model = sort_channels(model, space, channel_importance(model, space, "l1"), (3, 32, 32))
    supernet = Supernet(sorted_model, space, wide=True).eval()
    supernet.set_active_subnet(space.full, "left")
    torch.testing.assert_close(outputs(supernet, (3, 32, 32)), outputs(model, (3, 32, 32)), rtol=1e-6, atol=1e-6)
