import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet.models.channel_bench import MobileNet
from bcnet.space.trace import trace
from bcnet.supernet import layers
from bcnet.supernet.depthwise import can_speed_up, depthwise_conv2d
from bcnet.supernet.kernels import library
from bcnet.supernet.supernet import Supernet

needs_kernels = pytest.mark.skipif(library("depthwise") is None, reason="no C++ compiler here")
# channels, height, width, kernel, stride, padding: blocks that fill up and that overlap, odd sizes, images smaller than the kernel
CASES = [
    *((16, 8, 8, 3, 1, 1), (24, 7, 9, 3, 2, 1), (50, 6, 5, 5, 1, 2), (33, 9, 8, 5, 2, 2)),
    *((17, 5, 6, 3, 1, 0), (40, 2, 1, 3, 1, 2), (16, 1, 1, 5, 2, 2)),
]


def images(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def gradients(x, weight, bias, stride, padding, fast):
    tensors = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = depthwise_conv2d(*tensors, stride, padding) if fast else F.conv2d(*tensors, stride, padding, groups=x.shape[1])
    out.backward(images(*out.shape, dtype=out.dtype, seed=1))
    return [out.detach(), *(t.grad for t in tensors)]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_pytorch(case, threads):
    channels, height, width, kernel, stride, padding = case
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels)
    x = images(5, channels, height, width)
    assert can_speed_up(conv, x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = gradients(x, conv.weight.detach(), conv.bias.detach(), stride, padding, True)
        again = gradients(x, conv.weight.detach(), conv.bias.detach(), stride, padding, True)
    finally:
        torch.set_num_threads(before)
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
def test_it_is_left_to_pytorch_what_the_kernel_does_not_know():
    x = images(2, 32, 8, 8)
    for conv in (
        nn.Conv2d(32, 32, 3, 3, 1, groups=32),
        nn.Conv2d(32, 32, 3, padding="same", groups=32),
        nn.Conv2d(32, 32, 3, padding=1, dilation=2, groups=32),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect", groups=32),
        nn.Conv2d(32, 32, (3, 5), groups=32),
        nn.Conv2d(32, 64, 3, groups=32),
    ):
        assert not can_speed_up(conv, x)
    plain = nn.Conv2d(32, 32, 3, groups=32)
    assert can_speed_up(plain, x)
    assert not can_speed_up(plain, x.contiguous())
    assert not can_speed_up(nn.Conv2d(8, 8, 3, groups=8), x[:, :8].contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_supernet_trains_alike_with_and_without_it(monkeypatch, bf16):
    torch.manual_seed(0)
    model = MobileNet(10, (16, 40, 40, 40, 16, 48, 24))
    supernet = Supernet(model, trace(model, (3, 16, 16)), wide=True).to(memory_format=torch.channels_last).train()
    supernet.set_active_subnet((3, 2, 4, 2, 2, 3, 4), "right")
    used, results = [], []
    fast = layers.depthwise_conv2d
    monkeypatch.setattr(layers, "depthwise_conv2d", lambda *args: used.append(args[-2]) or fast(*args))
    for way in ("kernel", "PyTorch"):
        if way == "PyTorch":
            monkeypatch.setattr(layers, "can_speed_up", lambda conv, x: False)
        supernet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = supernet(images(8, 3, 16, 16))
        F.cross_entropy(logits.float(), torch.arange(8)).backward()
        results.append([p.grad.clone() for p in supernet.parameters() if p.grad is not None])
    assert used == ([] if library("depthwise") is None else [1, 1, 2, 1])
    for one, other in zip(*results, strict=True):
        assert float((one - other).norm()) <= (0.05 if bf16 else 1e-4) * float(other.norm()) + 1e-5
