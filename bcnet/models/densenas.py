"""The networks that DenseNAS finds: a stem, a chain of blocks, a 1x1 convolution, a classifier (Fang et al., CVPR 2020, section 3)."""

import math
from typing import Any

from torch import Tensor, nn

from bcnet.errors import UserError
from bcnet.models.net_config import BASIC, BlockSpec, NetConfig, read_mbconv, read_net_config


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True, affine: bool = True
) -> nn.Sequential:
    """Convolution without bias, BN and, unless ``act`` is false, ReLU6; the padding keeps the size at stride 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels, affine=affine)]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


class MBConv(nn.Module):
    """1x1 expansion (none where it is by 1), depthwise convolution, 1x1 projection; a shortcut where input and output agree in shape.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, kernel: int, expansion: int, affine: bool = True) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand: nn.Module = conv_bn(in_channels, hidden, 1, affine=affine) if expansion > 1 else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, kernel, stride=stride, groups=hidden, affine=affine)
        self.project = conv_bn(hidden, out_channels, 1, act=False, affine=affine)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where input and output differ in shape; shapes as of `MBConv`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, affine: bool = True) -> None:
        super().__init__()
        same = stride == 1 and in_channels == out_channels
        self.conv1 = conv_bn(in_channels, out_channels, 3, stride=stride, affine=affine)
        self.conv2 = conv_bn(out_channels, out_channels, 3, act=False, affine=affine)
        self.shortcut: nn.Module = nn.Identity() if same else conv_bn(in_channels, out_channels, 1, stride=stride, act=False, affine=affine)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


def make_operation(name: str, in_channels: int, out_channels: int, stride: int, *, affine: bool = True) -> nn.Module:
    """An operation by its name, ``mbconv_k3_t6`` or ``basic_block``.

    Raises:
        UserError: an unknown name.
    """
    if name == BASIC:
        return BasicBlock(in_channels, out_channels, stride, affine=affine)
    sizes = read_mbconv(name)
    if sizes is None:
        raise UserError(f"unknown operation {name!r}")
    return MBConv(in_channels, out_channels, stride, kernel=sizes[0], expansion=sizes[1], affine=affine)


class Block(nn.Module):
    """A head and the operations stacked behind it."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.head = make_operation(spec.head, spec.in_channels, spec.channels, spec.stride)
        self.stack = nn.Sequential(*(make_operation(name, spec.channels, spec.channels, 1) for name in spec.stack))

    def operations(self) -> list[nn.Module]:
        """Its operations in order."""
        return [self.head, *self.stack]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stack(self.head(x))
        return out


class ChainNetwork(nn.Module):
    """A network that is written as a net_config.

    Args:
        num_classes: number of logits.
        net_config: its blocks; see `bcnet.models.net_config`.
        in_channels: of an image.
        stem_stride: of the 3x3 convolution that reads it.

    Raises:
        UserError: the net_config cannot be read.
    """

    def __init__(self, num_classes: int = 1000, *, net_config: str | NetConfig, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        config = net_config if isinstance(net_config, NetConfig) else read_net_config(net_config)
        self.stem = conv_bn(in_channels, config.stem, 3, stride=stem_stride)
        self.blocks = nn.Sequential(*map(Block, config.blocks))
        self.last: nn.Module = conv_bn(config.blocks[-1].channels, config.last, 1) if config.last else nn.Identity()
        self.classifier = nn.Linear(config.features, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


def init_weights(network: nn.Module) -> None:
    """Normal weights of variance 2 over the fan-out of a channel for convolutions, as the authors do; no bias at first."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan: Any = module.kernel_size[0] * module.kernel_size[1] * module.out_channels / module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
