import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.config import DataConfig, RecipeConfig
from bcnet.data.noise import Noise
from bcnet.kernels import depthwise
from bcnet.kernels import library as loader
from bcnet.kernels.depthwise import depthwise_conv2d
from bcnet.kernels.library import library
from bcnet.models.channel_bench import MobileNet
from bcnet.space.trace import trace
from bcnet.supernet.supernet import Supernet
from bcnet.training.train_width import train_width

needs_kernels = pytest.mark.skipif(library("depthwise") is None, reason="no C++ compiler here")
# channels, height, width, kernel, stride, padding: blocks that fill up and that overlap, odd sizes, images smaller than the kernel
CASES = [
    *((16, 8, 8, 3, 1, 1), (24, 7, 9, 3, 2, 1), (50, 6, 5, 5, 1, 2), (33, 9, 8, 5, 2, 2)),
    *((17, 5, 6, 3, 1, 0), (40, 2, 1, 3, 1, 2), (16, 1, 1, 5, 2, 2)),
]


def images(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def strides(monkeypatch):
    """The stride of every backward pass that the kernel did."""
    found = []
    call = loader.call

    def noting(name, *arguments):
        if name == "depthwise":
            found.append(arguments[-1].value)
        call(name, *arguments)

    monkeypatch.setattr(loader, "call", noting)
    return found


def gradients(x, weight, bias, stride, padding, fast):
    tensors = [t.clone().requires_grad_() for t in (x, weight, bias)]
    conv = depthwise_conv2d if fast else F.conv2d
    out = conv(*tensors, (stride, stride), (padding, padding), (1, 1), x.shape[1])
    out.backward(images(*out.shape, dtype=out.dtype, seed=1))
    return [out.detach(), *(t.grad for t in tensors)]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_pytorch(case, threads, strides):
    channels, height, width, kernel, stride, padding = case
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels)
    x = images(5, channels, height, width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = gradients(x, conv.weight.detach(), conv.bias.detach(), stride, padding, True)
        again = gradients(x, conv.weight.detach(), conv.bias.detach(), stride, padding, True)
    finally:
        torch.set_num_threads(before)
    assert strides == [stride, stride]
    exact = gradients(x.double(), conv.weight.detach().double(), conv.bias.detach().double(), stride, padding, False)
    for found, repeated, expected in zip(ours, again, exact, strict=True):
        assert torch.equal(found, repeated)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("case", CASES[:4])
def test_bf16_is_as_near_to_the_truth_as_pytorchs(case):
    channels, height, width, kernel, stride, padding = case
    x, weight = images(20, channels, height, width, dtype=torch.bfloat16), torch.randn(channels, 1, kernel, kernel).bfloat16()
    bias = torch.zeros(channels, dtype=torch.bfloat16)
    exact = gradients(x.double(), weight.double(), bias.double(), stride, padding, False)
    for found, theirs, truth in zip(*(gradients(x, weight, bias, stride, padding, fast) for fast in (True, False)), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - truth).abs().max() <= 1.01 * (theirs - truth).abs().max()


@needs_kernels
def test_it_is_left_to_pytorch_what_the_kernel_does_not_know(strides):
    weight, x = torch.randn(32, 1, 3, 3), images(2, 32, 8, 8)
    plain = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 32}
    changes = {"stride": (3, 3), "padding": (1, 0), "dilation": (2, 2)}
    cases = [
        *((x, weight, plain | {name: value}) for name, value in [*changes.items(), ("stride", (1, 2)), ("padding", "same")]),
        *((x, torch.randn(shape), plain) for shape in ((32, 1, 3, 5), (32, 1, 1, 1), (64, 1, 3, 3))),
        (x.contiguous(), weight, plain),
        (x[:, :8].contiguous(memory_format=torch.channels_last), weight[:8], plain | {"groups": 8}),
        (x[0], weight, plain),
    ]
    for images_, weight_, settings in cases:
        inputs = images_.clone().requires_grad_()
        y = depthwise_conv2d(inputs, weight_, None, **settings)
        assert torch.equal(y, F.conv2d(images_, weight_, None, **settings))
        y.sum().backward()
        assert strides == []
    depthwise_conv2d(x.requires_grad_(), weight, None, **plain).sum().backward()
    assert strides == [1]


class HalfConv2d(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / 2, bias)


def test_a_convolution_with_a_forward_of_its_own_keeps_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), HalfConv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1))
    supernet = Supernet(model, trace(model, (3, 8, 8))).to(memory_format=torch.channels_last)
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(supernet(x), model(x))


@needs_kernels
@pytest.mark.parametrize(("seeds", "settings"), [((0,), {}), ((0, 1), {}), ((0,), {"ema_decay": 0.5})], ids=("one", "two", "averaged"))
def test_a_network_of_one_width_trains_with_it_and_forgets_it(monkeypatch, strides, seeds, settings):
    """Side by side, too: to the weights that PyTorch's own would give, and the network that is handed back is a plain one."""
    args = {"shape": [3, 16, 16], "classes": 10, "images": 64}
    noise = Noise(DataConfig(source="bcnet.data.noise:Noise", args=args), 0, torch.device("cpu"))
    recipe = RecipeConfig(epochs=1, batch_size=16, lr=0.05, **settings)
    results = []
    for way in ("kernel", "PyTorch"):
        if way == "PyTorch":
            monkeypatch.setattr(depthwise, "_takes", lambda *args: False)
        networks = []
        for seed in seeds:
            torch.manual_seed(seed)
            networks.append(MobileNet(10, (16, 40, 40, 40, 16, 48, 24)))
        batches = [noise.train_batches("train", 16, seed) for seed in seeds]
        given = {"seeds": seeds, "input_shape": (3, 16, 16), "device": torch.device("cpu")}
        results.append(train_width(networks, batches, recipe, **given))
    assert strides == 4 * [1, 2, 1, 1]  # of every step, the last layer first
    for one, other in zip(*results, strict=True):
        assert not any("_conv_forward" in vars(module) for module in one.modules())
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_supernet_trains_alike_with_and_without_it(monkeypatch, strides, bf16):
    torch.manual_seed(0)
    model = MobileNet(10, (16, 40, 40, 40, 16, 48, 24))
    supernet = Supernet(model, trace(model, (3, 16, 16)), wide=True).to(memory_format=torch.channels_last).train()
    supernet.set_active_subnet((3, 2, 4, 2, 2, 3, 4), "right")
    results = []
    for way in ("kernel", "PyTorch"):
        if way == "PyTorch":
            monkeypatch.setattr(depthwise, "_takes", lambda *args: False)
        supernet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = supernet(images(8, 3, 16, 16))
        F.cross_entropy(logits.float(), torch.arange(8)).backward()
        results.append([p.grad.clone() for p in supernet.parameters() if p.grad is not None])
    assert strides == ([] if library("depthwise") is None else [1, 2, 1, 1])  # the last layer first
    largest = max(float(grad.norm()) for grad in results[1])
    for one, other in zip(*results, strict=True):
        # some gradients would be zero but for rounding: those of what the next BN undoes
        assert float((one - other).norm()) <= (0.05 if bf16 else 1e-4) * float(other.norm()) + (1e-3 if bf16 else 1e-5) * largest
