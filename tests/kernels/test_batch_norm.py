import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.kernels import library as loader
from bcnet.kernels.batch_norm import batch_norm
from bcnet.kernels.library import library
from bcnet.models.channel_bench import MobileNet
from bcnet.space.trace import trace
from bcnet.supernet import layers
from bcnet.supernet.calibrate import calibrate
from bcnet.supernet.graph import operations
from bcnet.supernet.layers import BATCH_NORM
from bcnet.supernet.supernet import Supernet

needs_kernels = pytest.mark.skipif(library("batch_norm") is None, reason="no C++ compiler here")
SHAPES = [(4, 24, 7, 5), (2, 3, 1, 1), (33, 130, 16, 16), (2, 8, 3, 3)]


def by_batch(x, weight, bias, *, relu, running=(None, None), momentum=0.1):
    return batch_norm(x, weight, bias, *running, training=True, momentum=momentum, eps=1e-5, relu=relu)


@torch.no_grad()
def by_given(x, weight, bias, mean, var, *, relu):
    return batch_norm(x, weight, bias, mean, var, training=False, momentum=0.1, eps=1e-5, relu=relu)


def images(shape, dtype, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.7
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[2:])
def test_the_kernel_equals_pytorch(shape, relu, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for fused in (True, False):
            x = images(shape, torch.float32).requires_grad_()
            weight = torch.linspace(-1, 2, shape[1]).requires_grad_()
            bias = torch.linspace(1, -1, shape[1]).requires_grad_()
            if fused:
                mean, var = torch.zeros(shape[1]), torch.zeros(shape[1])
                y = by_batch(x, weight, bias, relu=relu, running=(mean, var), momentum=1.0)
                torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(var, x.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
            else:
                y = F.batch_norm(x, None, None, weight, bias, True, eps=1e-5)
                y = F.relu(y) if relu else y
            y.backward(images(shape, torch.float32, 1))
            results.append((y, x.grad, weight.grad, bias.grad))
        for found, expected in zip(*results, strict=True):
            scale = float(expected.detach().abs().max())
            # a value at the kink of the ReLU may fall on either side of it
            assert float(((found - expected).abs() > 1e-4 * scale).float().mean()) < 1e-3
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_bf16_is_as_near_to_the_truth_as_pytorchs():
    shape = SHAPES[2]
    exact = images(shape, torch.bfloat16).double()
    weight, bias = torch.linspace(0.5, 2, shape[1]), torch.linspace(1, -1, shape[1])
    truth = F.relu(F.batch_norm(exact, None, None, weight.double(), bias.double(), True))
    x = images(shape, torch.bfloat16)
    ours = by_batch(x, weight, bias, relu=True)
    theirs = F.relu(F.batch_norm(x, None, None, weight, bias, True))
    assert ours.dtype == torch.bfloat16
    assert (ours - truth).abs().max() <= 1.01 * (theirs - truth).abs().max()


@needs_kernels
def test_given_statistics_and_nan():
    x = images(SHAPES[0], torch.float32)
    weight, bias, mean, var = (torch.rand(24) + 0.5 for _ in range(4))
    expected = F.relu(F.batch_norm(x, mean, var, weight, bias, False))
    torch.testing.assert_close(by_given(x, weight, bias, mean, var, relu=True), expected)
    torch.testing.assert_close(by_given(x, None, None, mean, var, relu=False), F.batch_norm(x, mean, var))
    x[0, 3] = float("nan")
    y = by_batch(x, weight, bias, relu=True)
    assert y[:, 3].isnan().all()
    assert not y[:, 4].isnan().any()


def supernets():
    torch.manual_seed(0)
    model = MobileNet(10, (8, 24, 24, 24, 16, 32, 24))
    space = trace(model, (3, 16, 16))
    return [Supernet(model, space, wide=True, fuse=fuse).to(memory_format=torch.channels_last) for fuse in (True, False)]


@needs_kernels
def test_a_fused_supernet_trains_and_calibrates_like_an_unfused_one(monkeypatch):
    fused, plain = supernets()
    x, labels = images((8, 3, 16, 16), torch.float32), torch.arange(8)
    widths = (3, 2, 4, 1, 2, 3, 4)
    calls = []
    kernel = layers.batch_norm
    monkeypatch.setattr(layers, "batch_norm", lambda *args, **kw: calls.append(kw["relu"]) or kernel(*args, **kw))
    F.cross_entropy(_on(fused, widths)(x), labels).backward()
    assert sorted(calls) == [False] * 4 + [True] * 10  # every BN, and all ReLUs with it
    with monkeypatch.context() as patched:
        patched.setattr(loader, "library", lambda name: None)
        F.cross_entropy(_on(plain, widths)(x), labels).backward()
        calibrate(plain, [(x, labels), (x.flip(0), labels)])
        expected = plain(x)
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    calibrate(fused, [(x, labels), (x.flip(0), labels)])
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(_norms(fused), _norms(plain), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.running_var, other.running_var, rtol=1e-4, atol=1e-5)


def test_a_traced_supernet_leaves_the_relu_to_bn():
    fused, _ = supernets()
    assert not any("relu" in str(node.target) for node in operations(fused.net).nodes if node.op != "call_module")


def _on(supernet, widths):
    supernet.set_active_subnet(widths, "right")
    return supernet.train()


def _norms(supernet):
    return [module for module in supernet.modules() if isinstance(module, BATCH_NORM)]


def test_an_extracted_network_has_ordinary_layers():
    fused, _ = supernets()
    network = fused.extract((1, 2, 3, 4, 1, 2, 3))
    assert {type(module) for module in network.modules()} <= {
        *(MobileNet, nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear),
        type(network.blocks[0]),
    }
    assert not any(hasattr(module, name) for module in network.modules() for name in ("slices", "before_relu", "norm", "rectified"))


def test_without_kernels_pytorch_does_the_work(monkeypatch, fresh):
    monkeypatch.setenv("BCNET_KERNELS", "off")
    assert by_batch(images(SHAPES[0], torch.float32), None, None, relu=True) is None
    fused, plain = supernets()
    x = images((8, 3, 16, 16), torch.float32)
    assert torch.equal(_on(fused, (4, 4, 4, 4, 4, 4, 4))(x), _on(plain, (4, 4, 4, 4, 4, 4, 4))(x))


@needs_kernels
@pytest.mark.parametrize("distance", [30.0, 300.0, 3000.0])
def test_channels_far_from_zero_keep_their_variance(distance):
    x = images((8, 6, 9, 9), torch.float32) + distance * torch.linspace(0, 1, 6).view(1, 6, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    wanted = F.batch_norm(x.double(), None, None, training=True, eps=1e-5)
    torch.testing.assert_close(by_batch(x, None, None, relu=False).double(), wanted, rtol=0, atol=1e-3)
