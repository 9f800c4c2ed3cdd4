"""The two networks of Channel-Bench-Macro, the width-search benchmark of the BCNetV2 paper.

Both take a CIFAR image and seven channel counts. A *width* of the benchmark is seven digits 1..4; digit ``k`` at place
``i`` stands for ``k / 4`` of the ``i``-th full channel count, in the order of the functions' ``channels`` argument.
"""

from collections.abc import Sequence

from torch import Tensor, nn

MOBILENET_CHANNELS = (128, 768, 768, 768, 256, 1536, 1024)
RESNET_CHANNELS = (256, 256, 256, 512, 512, 512, 512)


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution without bias, BN and, unless ``relu`` is false, ReLU; the padding keeps the size at stride 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; identity shortcut where the shapes match.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.expand = conv_bn(in_channels, hidden_channels, 1)
        self.depthwise = conv_bn(hidden_channels, hidden_channels, 3, stride=stride, groups=hidden_channels)
        self.project = conv_bn(hidden_channels, out_channels, 1, relu=False)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; identity shortcut unless the block changes the resolution.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(in_channels, hidden_channels, 3, stride=stride)
        self.conv2 = conv_bn(hidden_channels, out_channels, 3, relu=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        out: Tensor = self.relu(x + y if self.shortcut else y)
        return out


class MobileNet(nn.Module):
    """MobileNetV2-like network of Channel-Bench-Macro.

    Args:
        num_classes: number of logits.
        channels: stem (= residual stream 1), hidden of blocks 1, 2, 3, residual stream 2, hidden of block 4, last conv.
    """

    def __init__(self, num_classes: int = 10, channels: Sequence[int] = MOBILENET_CHANNELS) -> None:
        super().__init__()
        stream1, hidden1, hidden2, hidden3, stream2, hidden4, last = channels
        self.stem = conv_bn(3, stream1, 3, stride=2)
        self.blocks = nn.Sequential(
            InvertedResidual(stream1, hidden1, stream1, 1, shortcut=True),
            InvertedResidual(stream1, hidden2, stream1, 1, shortcut=True),
            InvertedResidual(stream1, hidden3, stream2, 2, shortcut=False),
            InvertedResidual(stream2, hidden4, stream2, 1, shortcut=True),
        )
        self.last = conv_bn(stream2, last, 1)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


class ResNet(nn.Module):
    """ResNet of Channel-Bench-Macro.

    Args:
        num_classes: number of logits.
        channels: stem (= stream 1), hidden of blocks 1, 2, 3, stream 2, hidden of blocks 4, 5.
    """

    def __init__(self, num_classes: int = 10, channels: Sequence[int] = RESNET_CHANNELS) -> None:
        super().__init__()
        stream1, hidden1, hidden2, hidden3, stream2, hidden4, hidden5 = channels
        self.stem = conv_bn(3, stream1, 3, stride=2)
        self.blocks = nn.Sequential(
            BasicBlock(stream1, hidden1, stream1, 1),
            BasicBlock(stream1, hidden2, stream1, 1),
            BasicBlock(stream1, hidden3, stream2, 2),
            BasicBlock(stream2, hidden4, stream2, 1),
            BasicBlock(stream2, hidden5, stream2, 1),
        )
        self.classifier = nn.Linear(stream2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits
