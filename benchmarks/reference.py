"""A plain supernet to measure against: slices of the widest layers, one module call per side, NCHW, float32.

It works as the authors' code does and shares nothing with `bcnet.supernet`: every module cuts its parameters anew at every
call, BN keeps PyTorch's kernels, losses are read back every step, a candidate is calibrated and evaluated alone.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.models.shortcut import IdentityOr
from bcnet.space.widths import Layer, Segment, Space, Widths
from bcnet.supernet.supernet import Supernet

Batches = list[tuple[Tensor, Tensor]]


class Reference(nn.Module):
    """The same parameters as a supernet's, in plain sliced modules.

    Args:
        supernet: whose parameters to copy.
        model: the plain model that it was made from.
    """

    def __init__(self, supernet: Supernet, model: nn.Module) -> None:
        super().__init__()
        self.space: Space = supernet.space
        self.table = supernet.channel_table
        self.net = copy.deepcopy(model)
        for layer in self.space.layers:
            wide = supernet.net.get_submodule(layer.name)
            parameters = {name: p.detach().clone().contiguous() for name, p in wide._parameters.items() if p is not None}
            parent, _, name = layer.name.rpartition(".")
            setattr(self.net.get_submodule(parent), name, _Sliced(self.net.get_submodule(layer.name), layer, parameters))
        for module in list(self.net.modules()):
            for name, child in module.named_children():
                if isinstance(child, IdentityOr):
                    setattr(module, name, _Shortcut(child.body, child.stride))
        self.sliced = [module for module in self.net.modules() if isinstance(module, _Sliced)]

    def select(self, widths: Widths, side: str) -> None:
        """Restrict every module to a subnet."""
        active = [row[k] for row, k in zip(self.table, widths, strict=True)]
        for module in self.sliced:
            module.select(active, [row[-1] for row in self.table], side)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the subnet."""
        logits: Tensor = self.net(x)
        return logits

    def step(self, images: Tensor, labels: Tensor, widths: Widths, optimizer: torch.optim.Optimizer) -> list[float]:
        """One bilateral training step; returns the loss of both sides."""
        optimizer.zero_grad()
        losses = []
        for side in ("left", "right"):
            self.select(widths, side)
            loss = F.cross_entropy(self(images), labels)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        return losses

    @torch.no_grad()
    def score(self, widths: Widths, calibration: Batches, validation: Batches) -> list[float]:
        """Cross-entropy of both sides, each calibrated for itself."""
        result = []
        for side in ("left", "right"):
            self.select(widths, side)
            for module in self.sliced:
                module.start_calibration()
            self.train()
            for images, _ in calibration:
                self(images)
            self.eval()
            loss, count = 0.0, 0
            for images, labels in validation:
                loss += F.cross_entropy(self(images), labels, reduction="sum").item()
                count += len(labels)
            self.train()
            result.append(loss / count)
        return result


class _Shortcut(nn.Module):
    """The identity where the active widths of both ends agree, else the projection."""

    def __init__(self, body: nn.Module, stride: int) -> None:
        super().__init__()
        self.body, self.stride = body, stride
        (self.convolution,) = [(one,) for one in body.modules() if isinstance(one, _Sliced) and isinstance(one.plain[0], nn.Conv2d)]

    def forward(self, x: Tensor) -> Tensor:
        into, out = self.convolution[0].inputs, self.convolution[0].outputs
        is_identity = self.stride == 1 and into.stop - into.start == out.stop - out.start
        return x if is_identity else self.body(x)  # type: ignore[no-any-return]


class _Sliced(nn.Module):
    def __init__(self, plain: nn.Module, layer: Layer, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.plain, self.layer = (plain,), layer  # the plain layer says stride and padding; not a submodule
        self.weight = nn.Parameter(parameters["weight"])
        self.bias = nn.Parameter(parameters["bias"]) if "bias" in parameters else None
        self.means: list[Tensor] | None = None
        self.batches = 0

    def select(self, active: list[int], totals: list[int], side: str) -> None:
        def range_of(segments: tuple[Segment, ...]) -> slice:
            (segment,) = segments
            if segment.group is None:
                return slice(0, segment.channels)
            width, total = active[segment.group], totals[segment.group]
            return slice(0, width) if side == "left" else slice(total - width, total)

        self.outputs, self.inputs = range_of(self.layer.outputs), range_of(self.layer.inputs)

    def start_calibration(self) -> None:
        self.means, self.batches = None, 0

    def forward(self, x: Tensor) -> Tensor:
        plain = self.plain[0]
        bias = None if self.bias is None else self.bias[self.outputs]
        if isinstance(plain, nn.Linear):
            return F.linear(x, self.weight[self.outputs, self.inputs], bias)
        if isinstance(plain, nn.Conv2d):
            depthwise = self.layer.channels_per_group == 1
            weight = self.weight[self.outputs] if depthwise else self.weight[self.outputs, self.inputs]
            return F.conv2d(x, weight, bias, plain.stride, plain.padding, plain.dilation, len(weight) if depthwise else 1)
        assert isinstance(plain, nn.BatchNorm2d)
        weight = self.weight[self.outputs]
        if self.training and torch.is_grad_enabled():
            return F.batch_norm(x, None, None, weight, bias, True, eps=plain.eps)
        if self.training:
            var, mean = torch.var_mean(x, (0, 2, 3))
            self.means = [mean, var] if self.means is None else [a + b for a, b in zip(self.means, (mean, var), strict=True)]
            self.batches += 1
            return F.batch_norm(x, None, None, weight, bias, True, eps=plain.eps)
        assert self.means is not None
        mean, var = (total / self.batches for total in self.means)
        return F.batch_norm(x, mean, var, weight, bias, False, eps=plain.eps)
