"""Shake-Shake regularised ResNets for 32x32 images (Gastaldi, 2017)."""

from typing import Any

import torch
from torch import Tensor, nn

from bcnet.models.channel_bench import conv_bn


class _Shake(torch.autograd.Function):
    """Mix two branches by a random share of each image forward, and by another one backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, forward: Tensor, backward: Tensor) -> Tensor:  # type: ignore[override]
        """``forward * a + (1 - forward) * b``, with shares ``(N, 1, 1, 1)``."""
        ctx.save_for_backward(backward)
        return torch.lerp(b, a, forward.to(a.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        """The gradient, shared out by the other share."""
        (share,) = ctx.saved_tensors
        own = gradient * share.to(gradient.dtype)
        return own, gradient - own, None, None


class ShakeBlock(nn.Module):
    """Two branches of ReLU, 3x3, BN, ReLU, 3x3, BN, mixed at random in training and halved otherwise.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch1, self.branch2 = (
            nn.Sequential(
                nn.ReLU(), conv_bn(in_channels, out_channels, 3, stride=stride), conv_bn(out_channels, out_channels, 3, relu=False)
            )
            for _ in range(2)
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else TwoPathShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.branch1(x), self.branch2(x)
        if self.training:
            forward, backward = torch.rand(2, len(x), 1, 1, 1, device=x.device)
            mixed: Tensor = _Shake.apply(a, b, forward, backward)
        else:
            mixed = (a + b) / 2
        return mixed + self.shortcut(x)  # type: ignore[no-any-return]


class TwoPathShortcut(nn.Module):
    """Every second pixel, and those between, each through a 1x1 convolution to half of the channels; then BN."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        step = self.stride
        shifted = nn.functional.pad(x, (-1, 1, -1, 1)) if step > 1 else x
        out: Tensor = self.norm(torch.cat([self.conv1(x[:, :, ::step, ::step]), self.conv2(shifted[:, :, ::step, ::step])], 1))
        return out


class ShakeShake(nn.Module):
    """Shake-Shake 26 2 x ``width`` d: three stages of four blocks.

    Args:
        num_classes: number of logits.
        width: channels of the first stage: 32 or 64 in the paper.
    """

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, relu=False)
        blocks, before = [], 16
        for stage in range(3):
            for number in range(4):
                blocks.append(ShakeBlock(before, width * 2**stage, 2 if stage and not number else 1))
                before = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).relu().mean((2, 3)))
        return logits
