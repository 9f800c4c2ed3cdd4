"""One set of weights for the operations that a mixed one chooses from (the superkernel of Stamoulis et al., Single-Path NAS, 2019).

With weights of their own, an operation is trained in one step of as many as there are, and what it computes has nothing in common with
what the others do: the layers behind see another input in every step. Shared, a smaller kernel is the centre of the largest one and a
smaller expansion the first channels of the largest, so every step trains a part of them all. BN statistics stay each operation's own.
"""

from typing import Any

from torch import Tensor, nn

from bcnet.models.densenas import MBConv

_PARTS = ("expand", "depthwise", "project")


class SlicedConv2d(nn.Module):
    """A convolution whose weight is a part of another one's: its first channels and the centre of its kernel.

    Args:
        like: shape, stride and padding.
        source: holds the weight, and is registered elsewhere.
    """

    def __init__(self, like: nn.Conv2d, source: nn.Conv2d) -> None:
        super().__init__()
        self.shape = tuple(like.weight.shape)
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, like.groups
        self.padding_mode = like.padding_mode
        self._source = (source,)  # in a tuple, so that it is no submodule of this one

    @property
    def weight(self) -> Tensor:
        """The part, contiguous, through which gradients flow to the whole."""
        outputs, inputs, height, width = self.shape
        whole = self._source[0].weight
        top, left = (whole.shape[2] - height) // 2, (whole.shape[3] - width) // 2
        return whole[:outputs, :inputs, top : top + height, left : left + width].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``."""
        out: Tensor = self._conv_forward(x, self.weight, None)
        return out

    _conv_forward: Any = nn.Conv2d._conv_forward


def share_kernels(operations: nn.ModuleList) -> nn.ModuleDict:
    """Let the inverted residuals among some operations share their convolutions' weights.

    Args:
        operations: those of a mixed one; their convolutions are replaced.

    Returns:
        The convolutions that now hold the weights; none where there is nothing to share.
    """
    held = nn.ModuleDict()
    inverted = [operation for operation in operations if isinstance(operation, MBConv)]
    if len(inverted) < 2:
        return held
    for part in _PARTS:
        places: list[Any] = [layers for one in inverted if not isinstance(layers := getattr(one, part), nn.Identity)]
        if not places:
            continue
        convs: list[nn.Conv2d] = [layers[0] for layers in places]
        most = {name: max(getattr(conv, name) for conv in convs) for name in ("in_channels", "out_channels", "kernel_size", "groups")}
        held[part] = nn.Conv2d(**most, bias=False)
        for layers, conv in zip(places, convs, strict=True):
            layers[0] = SlicedConv2d(conv, held[part])  # type: ignore[arg-type]
    return held
