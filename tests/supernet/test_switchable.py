import pytest
import torch
from torch import nn

from bcnet.models.digits import DigitsResNet
from bcnet.models.factory import build_model
from bcnet.space.trace import Choices, trace
from bcnet.supernet.switchable import SwitchableNetwork

MODELS = {
    "digits": (DigitsResNet, (1, 8, 8)),
    "resnet18d": (lambda: build_model("timm/resnet18d", 10), (3, 64, 64)),
    "mobilenetv3": (lambda: build_model("timm/mobilenetv3_small_050", 10), (3, 64, 64)),
    "channel bench": (lambda: build_model("channel_bench/resnet", 10), (3, 32, 32)),  # with shortcuts that come and go
}


@pytest.fixture(params=MODELS)
def switchable(request):
    make, shape = MODELS[request.param]
    torch.manual_seed(0)
    model = make()
    space = trace(model, shape, Choices(bins=4))
    widths = [space.full, tuple(max(group.smallest, group.bins - 1) for group in space.groups), space.narrowest]
    return SwitchableNetwork(model, space, widths), torch.randn(4, *shape)


def step(network, images):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for widths in network.widths:
        network.set_active_subnet(widths)
        torch.manual_seed(1)
        network(images).square().mean().backward()
    optimizer.step()
    network.eval()


def test_what_is_split_computes_what_the_shared_network_does(switchable):
    network, images = switchable
    step(network, images)
    for widths, alone in zip(network.widths, network.split(), strict=True):
        network.set_active_subnet(widths)
        with torch.no_grad():
            torch.testing.assert_close(alone.eval()(images), network(images))
        assert {type(module).__module__.split(".")[0] for module in alone.modules()} <= {"torch", "timm", "bcnet"}
        assert not any("Slimmable" in type(module).__name__ or "Switchable" in type(module).__name__ for module in alone.modules())


def test_weights_are_shared_and_batch_norms_are_not(switchable):
    network, images = switchable
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    network.set_active_subnet(network.widths[-1])
    network(images).square().mean().backward()
    touched = {name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    norms = {name for name in touched if ".norms." in name}
    assert norms
    assert all(f".norms.{len(network.widths) - 1}." in name for name in norms)
    assert touched - norms  # and what is shared
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(f".norms.{len(network.widths) - 1}." in name for name in changed)  # its running statistics alone


def test_a_width_alone_in_it_is_the_plain_network(switchable):
    """Of one width vector the switchable network is that network: the same step gives the same."""
    network, images = switchable
    space = network.space
    make = next(make for make, shape in MODELS.values() if shape == images.shape[1:] and type(make()) is type(network.net))
    torch.manual_seed(0)
    one = SwitchableNetwork(make(), space, [network.widths[1]])
    (plain,) = one.split()
    step(one, images)
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05)
    torch.manual_seed(1)
    out = plain(images)
    assert isinstance(out, torch.Tensor)
    out.square().mean().backward()
    optimizer.step()
    (after,) = one.split()
    for (name, a), b in zip(after.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    assert isinstance(after, nn.Module)
