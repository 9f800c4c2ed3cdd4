import numpy as np
import pytest
import torch
from torch import nn

from bcnet.kernels.library import library
from bcnet.models.channel_bench import MOBILENET_CHANNELS, RESNET_CHANNELS, MobileNet, ResNet
from bcnet.models.digits import DIGITS_CHANNELS, DigitsResNet
from bcnet.scoring.walk import Walker
from bcnet.space.trace import trace
from bcnet.supernet.supernet import Supernet, narrow

MODELS = {
    "mobilenet": (MobileNet, MOBILENET_CHANNELS, (3, 32, 32)),
    "resnet": (ResNet, RESNET_CHANNELS, (3, 32, 32)),
    "digits": (DigitsResNet, DIGITS_CHANNELS, (1, 8, 8)),
}


def randomize_norms(network):
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module._parameters["weight"], module._buffers["running_mean"], module._buffers["running_var"]):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wide", [False, True])
def test_a_subnet_is_the_network_its_own_factory_builds(name, wide):
    factory, full, shape = MODELS[name]
    space = trace(factory(), shape)
    supernet = Supernet(factory(), space, wide=wide).eval()
    randomize_norms(supernet)
    rng = np.random.default_rng(0)
    images = torch.randn(2, *shape)
    for widths in (space.narrowest, space.full, space.sample(rng)):
        for side in ("left", "right"):
            supernet.set_active_subnet(widths, side)
            alone = factory(channels=[c * k // 4 for c, k in zip(full, widths, strict=True)]).eval()
            alone.load_state_dict(supernet.get_active_subnet().state_dict(), strict=True)
            torch.testing.assert_close(supernet(images), alone(images), rtol=1e-5, atol=1e-5)


def test_left_and_right_take_the_ends_of_every_group():
    space = trace(DigitsResNet(), (1, 8, 8))
    supernet = Supernet(DigitsResNet(), space, wide=True)
    whole = supernet.net.blocks[0].conv1[0]._parameters["weight"]
    assert whole.shape[:2] == (30, 10)
    supernet.set_active_subnet((3, 2, 1, 1, 1), "left")
    assert torch.equal(supernet.net.blocks[0].conv1[0].weight, whole[:12, :6])
    supernet.set_active_subnet((3, 2, 1, 1, 1), "right")
    assert torch.equal(supernet.net.blocks[0].conv1[0].weight, whole[-12:, -6:])


def test_the_widest_left_subnet_is_the_model_itself():
    model = DigitsResNet().eval()
    space = trace(model, (1, 8, 8))
    images = torch.randn(4, 1, 8, 8)
    for wide in (False, True):
        torch.testing.assert_close(Supernet(model, space, wide=wide).eval()(images), model(images))


def test_added_channels_are_drawn_from_the_layers_own_values():
    model = DigitsResNet()
    space = trace(model, (1, 8, 8))
    supernet = Supernet(model, space, wide=True, seed=1)
    for name, parameter in model.named_parameters():
        wide = dict(supernet.net.named_parameters())[name]
        assert set(wide.flatten().tolist()) == set(parameter.flatten().tolist()) or wide.numel() == parameter.numel()
    again = Supernet(model, space, wide=True, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(supernet.parameters(), again.parameters(), strict=True))


def test_only_the_active_channels_get_gradients():
    space = trace(DigitsResNet(), (1, 8, 8))
    supernet = Supernet(DigitsResNet(), space).train()
    supernet.set_active_subnet((2, 2, 2, 2, 2), "right")
    supernet(torch.randn(4, 1, 8, 8)).sum().backward()
    gradient = supernet.net.blocks[0].conv1[0]._parameters["weight"].grad
    assert gradient[:4].abs().sum() == 0
    assert gradient[:, :4].abs().sum() == 0
    assert gradient[4:, 4:].abs().sum() > 0


def test_a_second_derivative_is_refused_where_a_kernel_gave_the_first():
    """Better an error than gradients that lack a part."""
    model = MobileNet(10, (16, 16, 16, 16, 16, 16, 16))
    supernet = Supernet(model, trace(model, (3, 32, 32)))
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    loss = supernet(images).square().sum()
    gradients = torch.autograd.grad(loss, list(supernet.parameters()), create_graph=True)
    penalty = sum(g.square().sum() for g in gradients)
    if library("batch_norm") is None:
        penalty.backward()
    else:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            penalty.backward()


def test_training_mode_leaves_running_statistics_alone():
    space = trace(DigitsResNet(), (1, 8, 8))
    supernet = Supernet(DigitsResNet(), space).train()
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet(torch.randn(4, 1, 8, 8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_an_extracted_network_is_plain_and_shares_nothing():
    space = trace(DigitsResNet(), (1, 8, 8))
    supernet = Supernet(DigitsResNet(), space)
    network = supernet.extract((1, 2, 3, 4, 1), "right")
    assert supernet.active == (space.full, "left")
    assert list(network.state_dict()) == list(DigitsResNet().state_dict())
    assert {type(m) for m in network.modules()} == {type(m) for m in DigitsResNet().modules()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in supernet.parameters() if p.ndim > 1)
    network.train()(torch.randn(4, 1, 8, 8)).sum().backward()


def test_narrow_draws_what_the_initialiser_would_for_that_size():
    model = MobileNet()
    space = trace(model, (3, 32, 32))
    narrowed = narrow(model, space, [32] * 7)
    for name, module in narrowed.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels > 3:
            bound = (module.in_channels * module.kernel_size[0] ** 2) ** -0.5  # of torch's default initialiser
            assert module.weight.abs().max() <= bound * 1.001, name
            assert module.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize("kind", ["norms", "classifier"])
def test_with_switchable_layers_only_the_parameters_of_the_active_widths_are_trained_and_extracted(kind):
    torch.manual_seed(0)
    model = DigitsResNet()
    space = trace(model, (1, 8, 8))
    options = {f"switchable_{kind}": True}
    supernet, plain = Supernet(model, space, wide=True, **options), Supernet(model, space, wide=True)
    images = torch.randn(4, 1, 8, 8)
    widths, others = (2, 3, 1, 2, 4), (3, 2, 2, 4, 3)  # no group is as wide in both
    for one in (widths, others):
        for net in (supernet, plain):
            net.train().set_active_subnet(one, "left")
        torch.testing.assert_close(supernet(images), plain(images))  # all sets begin with the same values
    before = supernet.extract(others, "left").state_dict()
    supernet.set_active_subnet(widths, "right")
    with torch.no_grad():
        for module in supernet.net.modules():
            slices = getattr(module, "slices", None)
            if slices is not None and slices.switched_by is not None:
                module.weight.normal_()
    after = supernet.extract(others, "left").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed = supernet.extract(widths, "right").state_dict()
    own = supernet.extract(widths, "right")
    own.train()
    torch.testing.assert_close(supernet(images), own(images), rtol=1e-4, atol=1e-5)
    untouched = plain.extract(widths, "right").state_dict()
    name = "stem.1.weight" if kind == "norms" else "classifier.weight"
    assert not torch.equal(changed[name], untouched[name])


@pytest.mark.parametrize("kind", ["norms", "classifier"])
@pytest.mark.parametrize("whole_layers", [True, False])
def test_a_walk_reads_the_parameters_of_every_width(kind, whole_layers):
    torch.manual_seed(0)
    model = DigitsResNet()
    space = trace(model, (1, 8, 8))
    supernet = Supernet(model, space, wide=True, **{f"switchable_{kind}": True})
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    Walker(supernet, (1, 8, 8), whole_layers=whole_layers)  # which compares some width vectors with the supernet's own logits
