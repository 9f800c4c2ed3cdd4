"""ResNets for CIFAR whose shortcuts have no parameters: channels that a shortcut cannot give are zero (He et al., 2016, option A).

The published trained ones (akamaster/pytorch_resnet_cifar10) are read as they are: see `PaddedResNet.from_published`.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from bcnet.errors import UserError
from bcnet.models.channel_bench import conv_bn

STREAMS = (16, 32, 64)


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that is the identity.

    Shapes: ``(N, channels, H, W)`` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, channels, 3)
        self.conv2 = conv_bn(channels, channels, 3, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.conv2(self.conv1(x)))
        return out


class GrowingBlock(nn.Module):
    """A block of stride 2 that adds channels behind those it reads, which alone have a shortcut.

    The second convolution stands in two parts, so that the channels of the stage before and the new ones are groups of their own.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H / 2, W / 2)``, where ``out_channels > in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(in_channels, out_channels, 3, stride=2)
        self.conv2 = conv_bn(out_channels, in_channels, 3, relu=False)
        self.conv2_new = conv_bn(out_channels, out_channels - in_channels, 3, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(x)
        out: Tensor = self.relu(torch.cat([x[:, :, ::2, ::2] + self.conv2(hidden), self.conv2_new(hidden)], 1))
        return out


class PaddedResNet(nn.Module):
    """ResNet20, 32, 44, 56 or 110 for 32x32 images, with zeros in the shortcuts.

    The channels of a stage's residual stream are those of the stage before and new ones behind them, so a stage is never narrower
    than the one before. Groups of the space are the new channels of each stage and the hidden ones of each
    block.

    Args:
        num_classes: number of logits.
        depth: convolutions and the linear layer: ``6 n + 2``.

    Raises:
        UserError: no such depth.
    """

    def __init__(self, num_classes: int = 10, depth: int = 20) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"depth is {depth}: a ResNet for CIFAR has 6 n + 2 layers, such as 20, 32, 44, 56 or 110")
        self.stem = conv_bn(3, STREAMS[0], 3)
        blocks = (depth - 2) // 6
        self.stage1 = nn.Sequential(*(PaddedBlock(STREAMS[0]) for _ in range(blocks)))
        self.stage2, self.stage3 = (
            nn.Sequential(GrowingBlock(old, own), *(PaddedBlock(own) for _ in range(blocks - 1))) for old, own in pairwise(STREAMS)
        )
        self.classifier = nn.Linear(STREAMS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.stage3(self.stage2(self.stage1(self.stem(x)))).mean((2, 3)))
        return logits

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What a state of akamaster/pytorch_resnet_cifar10 is here; ``None`` if it is none.

        There the shortcut's zeros stand on both sides of the channels of the stage before, here behind them: streams are reordered.
        """
        if not {"conv1.weight", "layer1.0.conv1.weight", "linear.weight"} <= state.keys():
            return None
        order = _stream_orders()
        named: dict[str, Tensor] = {}
        for key, tensor in state.items():
            stage, block, leaf = _place(key)
            own = _own_name(key)
            if leaf in ("conv1.weight", "linear.weight") and stage:  # reads a stream
                tensor = tensor[:, order[stage - 1 if block == 0 and stage > 1 else stage]]
            elif leaf.startswith(("conv2.", "bn2.")) and tensor.ndim:  # gives one
                tensor = tensor[order[stage]]
            if block == 0 and stage > 1 and ".conv2." in own:
                old = STREAMS[stage - 2]
                named[own.replace(".conv2.", ".conv2_new.")] = tensor[old:] if tensor.ndim else tensor
                tensor = tensor[:old] if tensor.ndim else tensor
            named[own] = tensor
        return named


def _stream_orders() -> dict[int, Tensor]:
    """Stage -> which channel of the published stream is which here."""
    order = {1: torch.arange(STREAMS[0])}
    for stage, (old, own) in enumerate(pairwise(STREAMS), start=2):
        pad = (own - old) // 2
        order[stage] = torch.cat([pad + order[stage - 1], torch.arange(pad), torch.arange(pad + old, own)])
    return order


def _place(key: str) -> tuple[int, int | None, str]:
    """Stage 1 to 3, number of the block in it and the rest of a published key; the stem is stage 0, the linear layer at the end of 3."""
    inside = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", key)
    if inside:
        return int(inside[1]), int(inside[2]), inside[3]
    return (3, None, key) if key.startswith("linear.") else (0, None, key)


def _own_name(key: str) -> str:
    stage, _, leaf = _place(key)
    kind, _, name = leaf.partition(".")
    if kind == "linear":
        return f"classifier.{name}"
    number = int(kind[-1])
    inner = f"{0 if kind.startswith('conv') else 1}.{name}"
    if stage == 0:
        return f"stem.{inner}"
    return f"{key.removesuffix(leaf).replace('layer', 'stage')}conv{number}.{inner}"
