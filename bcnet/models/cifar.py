"""ResNet20 for CIFAR in which the width of every layer is free, and the channel lists of its search space.

The space is that of the CVPR 2021 NAS challenge, track 1. A network is written as 20 channel counts, ``"16-8-...-64-64"``: the stem, the
two convolutions of each of the nine blocks, and a last number that the network does not use.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from bcnet.errors import UserError
from bcnet.models.channel_bench import conv_bn
from bcnet.models.shortcut import IdentityOr

RESNET20_CHANNELS = (16,) * 7 + (32,) * 6 + (64,) * 6
RESNET20_CHOICES = tuple(tuple(range(4, full + 1, 4)) for full in (*RESNET20_CHANNELS, 64))
"""Channel counts at each of the 20 places of a list; all but the last are layers."""


class FreeBlock(nn.Module):
    """Two 3x3 convolutions of any widths; the shortcut is a 1x1 convolution with BN where the shapes differ, else the identity.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(in_channels, hidden_channels, 3, stride=stride)
        self.conv2 = conv_bn(hidden_channels, out_channels, 3, relu=False)
        self.shortcut = IdentityOr(conv_bn(in_channels, out_channels, 1, stride=stride, relu=False), stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


class ResNet20(nn.Module):
    """ResNet20 for 32x32 images, no two layers of which need the same width.

    Args:
        num_classes: number of logits.
        channels: of the stem and of the two convolutions of each of the nine blocks, in order.

    Raises:
        UserError: there are not 19 of them.
    """

    def __init__(self, num_classes: int = 100, channels: Sequence[int] = RESNET20_CHANNELS) -> None:
        super().__init__()
        if len(channels) != len(RESNET20_CHANNELS):
            raise UserError(f"{len(channels)} channel counts: a ResNet20 has {len(RESNET20_CHANNELS)} convolutions in its main path")

        def block(number: int) -> FreeBlock:
            """Block 0 to 8; each reads what the one before it gives."""
            before, hidden, after = channels[2 * number : 2 * number + 3]
            return FreeBlock(before, hidden, after, stride=2 if number in (3, 6) else 1)

        self.stem = conv_bn(3, channels[0], 3)
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*map(block, numbers)) for numbers in (range(3), range(3, 6), range(6, 9)))
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.stage3(self.stage2(self.stage1(self.stem(x)))).mean((2, 3)))
        return logits


def read_resnet20_list(text: str) -> tuple[int, ...]:
    """The width indices of the 19 layers that a channel list of the challenge means; its 20th number is checked and left out.

    Raises:
        UserError: there are not 20 numbers, or one is not among the choices of its place.
    """
    numbers = text.strip().split("-")
    if len(numbers) != len(RESNET20_CHOICES):
        raise UserError(f"channel list {text!r} has {len(numbers)} numbers: it takes {len(RESNET20_CHOICES)}, such as 16-8-...-64-64")
    indices = []
    for place, (number, choices) in enumerate(zip(numbers, RESNET20_CHOICES, strict=True), start=1):
        words = [str(choice) for choice in choices]
        if number not in words:
            raise UserError(f"channel list {text!r}: {number!r} at place {place} is not one of its choices {', '.join(words)}")
        indices.append(words.index(number) + 1)
    return tuple(indices[:-1])


def write_resnet20_list(widths: Sequence[int], last: int = 64) -> str:
    """The channel list of the challenge for the width indices of the 19 layers; ``last`` is the number that no layer uses.

    Raises:
        UserError: there are not 19 indices, one is not an index of its layer, or ``last`` is no choice of the 20th place.
    """
    layers, unused = RESNET20_CHOICES[:-1], RESNET20_CHOICES[-1]
    if len(widths) != len(layers):
        raise UserError(f"{len(widths)} width indices: a ResNet20 takes {len(layers)}")
    for place, (k, choices) in enumerate(zip(widths, layers, strict=True), start=1):
        if not 1 <= k <= len(choices):
            counts = ", ".join(map(str, choices))
            raise UserError(f"width index {k} at place {place} is not one of 1..{len(choices)} (of {counts} channels)")
    if last not in unused:
        raise UserError(f"the number {last} for place {len(RESNET20_CHOICES)} is not one of its choices {', '.join(map(str, unused))}")
    return "-".join(str(count) for count in (*(choices[k - 1] for k, choices in zip(widths, layers, strict=True)), last))
