"""A ResNet for 8x8 handwritten digits, small enough to train in seconds on one core."""

from collections.abc import Sequence

from torch import Tensor, nn

from bcnet.models.channel_bench import BasicBlock, conv_bn

DIGITS_CHANNELS = (8, 24, 16, 16, 16)


class DigitsResNet(nn.Module):
    """Stem, residual block, strided block, residual block, linear layer: five groups.

    Args:
        num_classes: number of logits.
        channels: stem (= stream 1), hidden of block 1, hidden of the strided block, stream 2, hidden of block 3.
    """

    def __init__(self, num_classes: int = 10, channels: Sequence[int] = DIGITS_CHANNELS) -> None:
        super().__init__()
        stream1, hidden1, hidden2, stream2, hidden3 = channels
        self.stem = conv_bn(1, stream1, 3)
        self.blocks = nn.Sequential(
            BasicBlock(stream1, hidden1, stream1, 1),
            BasicBlock(stream1, hidden2, stream2, 2),
            BasicBlock(stream2, hidden3, stream2, 1),
        )
        self.classifier = nn.Linear(stream2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 1, 8, 8)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits
