"""Networks for photographs on small images, and Shake-Shake: costs as published, random only where it should be."""

import pytest
import torch
from torch import nn

from bcnet.errors import UserError
from bcnet.models.factory import build_model
from bcnet.models.shake_shake import ShakeBlock
from bcnet.models.stem import cifar_stem

SMALL = {"cifar_stem": True}


@pytest.mark.parametrize(
    ("name", "args", "millions"),
    [
        ("timm/resnet18", SMALL, 11.22),  # published 11.2
        ("timm/mobilenetv2_100", SMALL, 2.35),  # published 2.36, with 17k biases before batch norms
        ("torchvision/shufflenet_v2_x1_0", SMALL, 1.36),  # published 1.3
        ("torchvision/squeezenet1_0", SMALL, 0.78),  # published 0.78
        ("torchvision/googlenet", SMALL | {"aux_logits": False, "init_weights": False}, 5.695),  # published 6.2, 5x5 as two 3x3
        ("cifar/shake_shake26_2x32d", {}, 2.935),  # published 2.9
        ("cifar/shake_shake26_2x64d", {}, 11.68),  # published 11.7
    ],
)
def test_networks_for_cifar_100_have_the_published_parameters(name, args, millions):
    model = build_model(name, 100, args=args)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "timm/resnet18d", "timm/densenet121", "timm/efficientnet_b0", "timm/regnetx_002", "timm/mobilenetv1_100"]
)
def test_a_small_stem_keeps_the_size_of_the_image(name):
    """At the first layer behind the stem, which is seen by its input."""
    model = build_model(name, 10, args=SMALL).eval()
    whole = build_model(name, 10).eval()
    sizes = []
    for own in (model, whole):
        seen = []
        for module in own.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].shape[-1]))
        with torch.no_grad():
            assert own(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
        sizes.append(seen)
    assert sizes[0][1] == 32
    assert sizes[1][1] < 32


def test_what_stands_before_the_pooling_of_the_model_is_its_stem_whatever_its_layers_are_called():
    """Inception v3, whose five unpadded layers leave nothing of a small image otherwise."""
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            build_model("timm/inception_v3", 10).eval()(images)
        assert build_model("timm/inception_v3", 10, args=SMALL).eval()(images).shape == (1, 10)


def test_what_has_no_such_stem_is_refused():
    with pytest.raises(UserError, match="no stem of convolutions"):
        cifar_stem(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)))
    with pytest.raises(UserError, match=r"could not be built.*stride 1 already"):
        build_model("timm/vgg11_bn", 10, args=SMALL)


def test_shares_of_shaken_branches_are_random_in_training_and_halves_otherwise():
    torch.manual_seed(0)
    block = ShakeBlock(4, 4, 1)
    images = torch.randn(8, 4, 6, 6)
    block.train()
    assert not torch.equal(block(images), block(images))
    block.eval()
    expected = (block.branch1(images) + block.branch2(images)) / 2 + images
    torch.testing.assert_close(block(images), expected)


def test_gradients_of_shaken_branches_add_up_to_the_whole():
    """Whatever the shares are; those forward and backward are different ones."""
    block = ShakeBlock(4, 4, 1).train()
    a, b = (torch.randn(8, 4, 6, 6, requires_grad=True) for _ in range(2))
    from bcnet.models.shake_shake import _Shake

    forward, backward = torch.rand(2, 8, 1, 1, 1)
    mixed = _Shake.apply(a, b, forward, backward)
    torch.testing.assert_close(mixed, forward * a + (1 - forward) * b)
    mixed.backward(torch.ones_like(mixed))
    torch.testing.assert_close(a.grad, backward.expand_as(a))
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a))
    assert block(torch.randn(8, 4, 6, 6)).shape == (8, 4, 6, 6)
