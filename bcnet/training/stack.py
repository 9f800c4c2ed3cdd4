"""Several networks of one shape as one: small networks spend their time between operations, so train them side by side."""

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bcnet.data.interfaces import TrainSource
from bcnet.supernet.layers import BATCH_NORM
from bcnet.training.strategies.base import Pass


class NotStackable(ValueError):
    """The networks cannot run side by side as one."""


class NetworkStack(nn.Module):
    """``S`` networks that differ in their parameters only; none of them sees another.

    Their channels lie one after the other, ``(N, S * C, H, W)``: convolutions become grouped, normalisations longer. One
    step on the mean loss of the stack, weighted by ``S`` (`passes`), is one step of every network on its own mean loss, as
    long as the optimizer treats every entry by itself (SGD does; clipping the gradient norm does not).

    Args:
        networks: of the same architecture.
        input_shape: ``(C, H, W)`` of one image.

    Raises:
        NotStackable: a layer mixes channels in another way than by convolution, found by comparing logits; or two share parameters.
    """

    def __init__(self, networks: Sequence[nn.Module], input_shape: Sequence[int]) -> None:
        super().__init__()
        self.size = len(networks)
        _refuse_shared(networks[0])
        self.body = _side_by_side(networks)
        self._plain = [copy.deepcopy(networks[0])]  # in a list, so that its parameters are not the stack's
        _prove(networks, input_shape)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(S * N, C, H, W)``, network by network, to logits ``(S * N, classes)``."""
        number, channels, *size = images.shape
        stacked = images.view(self.size, -1, channels, *size).transpose(0, 1).reshape(number // self.size, -1, *size)
        logits: Tensor = self.body(stacked.contiguous(memory_format=torch.channels_last))
        return logits.view(number // self.size, self.size, -1).transpose(0, 1).flatten(0, 1)

    def split(self) -> list[nn.Module]:
        """The networks, each as a plain one that shares nothing with the stack."""
        networks = []
        for number in range(self.size):
            network = copy.deepcopy(self._plain[0])
            state = {
                name: value.chunk(self.size)[number].clone() if value.ndim else value.clone()
                for name, value in self.body.state_dict().items()
            }
            network.load_state_dict(state)
            networks.append(network.to(next(self.parameters()).device))
        return networks

    def passes(self, step: int) -> list[Pass]:
        """The passes of a step for the trainer."""
        return [Pass(weight=float(self.size))]


class _StackedLinear(nn.Module):
    """Map ``(N, S * I)`` to ``(N, S * O)``, network by network."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.size = len(layers)
        self.weight = _joined([layer.weight for layer in layers])  # (S * O, I)
        self.bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, S * I)`` to ``(N, S * O)``."""
        of_each = torch.einsum("nsi,soi->nso", x.unflatten(1, (self.size, -1)), self.weight.unflatten(0, (self.size, -1))).flatten(1)
        return of_each if self.bias is None else of_each + self.bias


def _refuse_shared(network: nn.Module) -> None:
    named = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    tensors = [id(tensor) for _, tensor in named]
    if len(set(tensors)) < len(tensors):
        raise NotStackable("layers share parameters, or one of them has two names")


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), parts[0].requires_grad)


def _side_by_side(layers: Sequence[nn.Module]) -> nn.Module:
    """One module that does what each of these does to its own channels."""
    first, size = layers[0], len(layers)
    if isinstance(first, nn.Linear):
        return _StackedLinear([layer for layer in layers if isinstance(layer, nn.Linear)])
    stacked = copy.copy(first)
    stacked._parameters, stacked._buffers, stacked._modules = dict(first._parameters), dict(first._buffers), dict(first._modules)
    counts: tuple[str, ...] = ()
    if isinstance(first, _ConvNd):
        counts = ("in_channels", "out_channels", "groups")
    elif isinstance(first, BATCH_NORM):
        counts = ("num_features",)
    elif any(True for _ in chain(first.parameters(recurse=False), first.buffers(recurse=False))):
        raise NotStackable(f"a {type(first).__name__} cannot be stacked")
    for count in counts:
        setattr(stacked, count, size * getattr(first, count))
    for name, parameter in first._parameters.items():
        if parameter is not None:
            stacked._parameters[name] = _joined([layer._parameters[name] for layer in layers])  # type: ignore[misc]
    for name, buffer in first._buffers.items():
        if buffer is not None:
            one = [layer._buffers[name] for layer in layers]
            stacked._buffers[name] = torch.cat(one) if buffer.ndim else buffer.clone()  # type: ignore[arg-type]
    for name, child in first._modules.items():
        if child is not None:
            stacked._modules[name] = _side_by_side([layer._modules[name] for layer in layers])  # type: ignore[misc]
    return stacked


def _prove(networks: Sequence[nn.Module], input_shape: Sequence[int]) -> None:
    """Compare copies of the networks, alone and side by side, at random parameters, where no branch is silent."""
    generator = torch.Generator().manual_seed(0)
    copies = [copy.deepcopy(network).cpu().eval() for network in networks]
    for parameter in chain.from_iterable(one.parameters() for one in copies):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    images = torch.randn(len(copies), 2, *input_shape, generator=generator)
    with torch.no_grad():
        alone = torch.stack([one(x) for one, x in zip(copies, images, strict=True)], 1).flatten(1)
        try:
            together = _side_by_side(copies)(images.transpose(0, 1).flatten(1, 2))
        except (RuntimeError, IndexError, ValueError) as error:
            raise NotStackable(f"the networks do not run side by side: {error}") from error
    if together.shape != alone.shape or not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise NotStackable("the networks side by side compute something else than each alone")


class StackedBatches:
    """The batches of several networks, each with its own order and augmentation.

    Args:
        parts: one per network, of equal sizes.
    """

    def __init__(self, parts: Sequence[TrainSource]) -> None:
        self.parts = parts
        self.steps_per_epoch, self.batch_size = parts[0].steps_per_epoch, parts[0].batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(S * N, C, H, W)`` and labels ``(S * N,)``, network by network."""
        images, labels = zip(*(part.batch(step) for part in self.parts), strict=True)
        return torch.cat(images), torch.cat(labels)
