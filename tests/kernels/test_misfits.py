"""Tensors that a kernel would read wrongly are left to PyTorch, and what autograd hands back is put in order first."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bcnet.kernels import library
from bcnet.models.channel_bench import MobileNet
from bcnet.space.trace import trace
from bcnet.space.widths import Layer, Segment
from bcnet.supernet.layers import make_slimmable
from bcnet.supernet.supernet import Supernet

CHANNELS = 24
ENTRIES = torch.linspace(0.5, 1.5, 2 * CHANNELS)
VECTORS = ("weight", "bias", "running_mean", "running_var")
MISFITS = {
    "bf16": lambda: ENTRIES[:CHANNELS].bfloat16(),
    "float64": lambda: ENTRIES[:CHANNELS].double(),
    "strided": lambda: ENTRIES.clone()[::2],
    "meta": lambda: ENTRIES[:CHANNELS].to("meta"),
}


def images(channels=CHANNELS, dtype=torch.float32, seed=0):
    x = torch.randn(4, channels, 7, 5, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def slimmable(module, channels_per_group=0):
    module = module.to(memory_format=torch.channels_last)
    segments = (Segment(None, CHANNELS),)
    make_slimmable(module, Layer("layer", "", segments, segments, channels_per_group), ())
    return module


def norm_with(**vectors):
    norm = nn.BatchNorm2d(CHANNELS)
    norm.load_state_dict({**norm.state_dict(), **dict.fromkeys(VECTORS, ENTRIES[:CHANNELS])})
    for name, vector in vectors.items():
        if name in norm._parameters:
            norm._parameters[name] = nn.Parameter(vector)
        else:
            norm._buffers[name] = vector
    return slimmable(norm)


def outcome(forward, module, x, training):
    """Output, running statistics and gradients, or what is raised."""
    module.train(training)
    with torch.set_grad_enabled(training):
        try:
            y = forward(module, x)
            if training:
                y.backward(images(x.shape[1], y.dtype, 1))
        except Exception as error:
            return type(error)
    buffers = [buffer.clone() for buffer in module._buffers.values() if buffer is not None]
    return [y.detach(), *buffers, *(p.grad for p in module._parameters.values() if p is not None)]


def assert_same(found, expected):
    if isinstance(expected, type):
        assert found is expected
    elif any(tensor is not None and tensor.is_meta for tensor in expected):
        assert [tensor.is_meta for tensor in found] == [tensor.is_meta for tensor in expected]
    else:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", [*((name,) for name in VECTORS), VECTORS[:2], VECTORS])
@pytest.mark.parametrize("misfit", MISFITS)
def test_bn_does_with_any_vectors_what_pytorch_does(misfit, names, dtype, training):
    ways = (lambda norm, x: norm(x), nn.BatchNorm2d.forward)
    results = [outcome(way, norm_with(**{name: MISFITS[misfit]() for name in names}), images(dtype=dtype), training) for way in ways]
    assert_same(*results)


@pytest.mark.parametrize("training", [True, False])
def test_bn_refuses_more_channels_than_it_has(training):
    assert outcome(lambda norm, x: norm(x), norm_with(), images(CHANNELS + 8), training) is RuntimeError


def test_bn_refuses_a_single_value_per_channel():
    with pytest.raises(ValueError, match="more than 1 value"):
        norm_with().train()(torch.randn(1, CHANNELS, 1, 1))


def conv_gradients(forward, conv, x):
    conv.zero_grad()
    x = x.clone().requires_grad_()
    try:
        y = forward(conv, x)
        y.backward(images(y.shape[1], y.dtype, 1)[..., : y.shape[2], : y.shape[3]])
    except Exception as error:
        return type(error)
    return [y.detach(), x.grad, conv._parameters["weight"].grad, conv._parameters["bias"].grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["weight", "bias", "both"])
@pytest.mark.parametrize("change", ["bf16", "float64", "meta", "transposed", "none"])
def test_a_depthwise_convolution_does_with_any_weight_what_pytorch_does(change, part, dtype):
    results = []
    for forward in (lambda conv, x: conv(x), lambda conv, x: nn.Conv2d._conv_forward(conv, x, conv.weight, conv.bias)):
        torch.manual_seed(0)
        conv = slimmable(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS).to(dtype), 1)
        for name in ("weight", "bias") if part == "both" else (part,):
            tensor = conv._parameters[name].detach()
            changed = {"bf16": tensor.bfloat16(), "float64": tensor.double(), "meta": tensor.to("meta"), "none": tensor}
            conv._parameters[name] = nn.Parameter(changed.get(change, tensor.mT if name == "weight" else tensor))
        results.append(conv_gradients(forward, conv, images(dtype=dtype)))
    found, expected = results
    if isinstance(expected, type) or dtype == torch.float32:
        assert_same(found, expected)
    else:
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            assert one.is_meta or float((one - other).norm()) <= 0.02 * float(other.norm())


@pytest.mark.parametrize("layer", ["norm", "conv"])
def test_tensors_that_a_hook_brings_back_in_another_order_are_put_in_order(layer):
    torch.manual_seed(0)
    module = norm_with() if layer == "norm" else slimmable(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), 1)
    expected = conv_gradients(lambda module, x: module(x), module, images())
    with saved_tensors_hooks(torch.Tensor.contiguous, lambda saved: saved):
        found = conv_gradients(lambda module, x: module(x), module, images())
    assert_same(found, expected)


def test_the_default_dtype_is_not_that_of_the_kernels():
    grad = images(seed=1)
    results = []
    for default in (torch.float32, torch.float64):
        norm, x = norm_with(), images().requires_grad_()
        torch.set_default_dtype(default)
        try:
            y = norm(x)
            y.backward(grad)
        finally:
            torch.set_default_dtype(torch.float32)
        results.append([y.detach(), x.grad, norm._parameters["weight"].grad, norm._buffers["running_var"]])
    assert_same(*results)


@pytest.mark.parametrize("training", [True, False])
def test_a_supernet_in_bf16_computes_what_pytorch_does(monkeypatch, training):
    torch.manual_seed(0)
    model = MobileNet(10, (16, 40, 40, 40, 16, 48, 24))
    supernet = Supernet(model, trace(model, (3, 16, 16)), wide=True).to(torch.bfloat16, memory_format=torch.channels_last)
    supernet.set_active_subnet((3, 2, 4, 2, 2, 3, 4), "right")
    x = torch.randn(8, 3, 16, 16).to(torch.bfloat16, memory_format=torch.channels_last)
    results = []
    for way in ("kernels", "PyTorch"):
        if way == "PyTorch":
            monkeypatch.setattr(library, "library", lambda name: None)
        supernet.zero_grad()
        with torch.set_grad_enabled(training):
            logits = supernet.train(training)(x)
        results.append([logits.detach()])
        if training:
            F.cross_entropy(logits.float(), torch.arange(8)).backward()
            results[-1] += [p.grad for p in supernet.parameters() if p.grad is not None]
    largest = max(float(tensor.norm()) for tensor in results[1])
    for one, other in zip(*results, strict=True):
        assert float((one - other).float().norm()) <= 0.05 * float(other.float().norm()) + 1e-3 * largest
