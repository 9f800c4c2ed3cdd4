"""Zero-cost proxies: what networks that were never trained say about how well they would learn.

They are the cheapest thing that a width search can be asked to beat: a few passes per network, no supernet. Activations are taken from
``torch.nn.functional``, so it does not matter whether a network has modules for them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bcnet.models.copying import copy_network
from bcnet.models.outputs import logits_of
from bcnet.supernet.layers import BATCH_NORM

Batches = Sequence[tuple[Tensor, Tensor]]
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
ACTIVATIONS = {F.relu, F.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.silu, F.gelu, F.hardswish, torch.relu, torch.relu_, Tensor.relu}
ZEN_STEP = 0.01  # of the random step in the images, relative to them


def grad_norm(network: nn.Module, batches: Batches) -> float:
    """Norm of the gradient of the loss, summed over layers (Abdelfattah et al., ICLR 2021)."""
    (gradients,) = _gradients(network, batches[:1])
    return sum(float(gradient.norm()) for gradient in gradients)


def synflow(network: nn.Module, batches: Batches) -> float:
    """Logarithm of the sum of all weights times their gradient, with absolute weights and an input of ones (Tanaka et al., NeurIPS 2020).

    Norms are the identity, and activations without an upper end: behind one that is saturated there is no flow.
    """
    net = _with_identity_norms(network).double().eval()
    weights = _weights(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    images, _ = batches[0]
    with _Unbounded():
        logits = logits_of(net(torch.ones_like(images[:1], dtype=torch.float64)))
    gradients = torch.autograd.grad(logits.sum(), weights)
    return math.log(sum(float((weight.detach() * gradient).sum()) for weight, gradient in zip(weights, gradients, strict=True)))


def naswot(network: nn.Module, batches: Batches) -> float:
    """Logarithm of the determinant of the kernel that counts on how many activations two images agree (Mellor et al., ICML 2021)."""
    images, _ = batches[0]
    with torch.no_grad(), _Activations() as seen:
        network.train()(images)
    agree = torch.zeros(len(images), len(images), dtype=torch.float64)
    for codes in seen.codes:
        agree += (codes @ codes.T + (1 - codes) @ (1 - codes).T).double().cpu()
    return float(torch.linalg.slogdet(agree).logabsdet)


def zen(network: nn.Module, batches: Batches) -> float:
    """Logarithm of how far the last norm's output moves when noise does, plus those of what norms divide by (Lin et al., ICCV 2021).

    Shortcuts stay, which the paper's own code takes out, and where one has a norm it counts as any other.
    """
    net = _with_identity_norms(network).train()
    variances: list[float] = []
    outputs: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dims = [dim for dim in range(inputs[0].dim()) if dim != 1]
        variances.append(float(inputs[0].float().var(dims).mean()))
        outputs[:] = [output]

    for module in net.modules():
        if isinstance(module, BATCH_NORM):
            module.register_forward_hook(look)
        elif isinstance(module, WEIGHTED):
            module.weight.data.copy_(torch.randn(module.weight.shape))
    images, _ = batches[0]
    noise, step = (torch.randn(images.shape).to(images.device) for _ in range(2))
    ends = []
    with torch.no_grad():
        for one in (noise, noise + ZEN_STEP * step):
            variances.clear()
            logits = logits_of(net(one))
            ends.append(outputs[0] if outputs else logits)
    moved = float((ends[0] - ends[1]).abs().sum() / len(images))
    return math.log(moved + 1e-30) + sum(math.log(variance + 1e-30) / 2 for variance in variances)


def zico(network: nn.Module, batches: Batches) -> float:
    """Logarithms of the mean of gradients over their deviation between batches, summed over layers (Li et al., ICLR 2023).

    Norms are the identity; layers whose gradients do not vary say nothing.
    """
    per_batch = _gradients(_with_identity_norms(network), batches)
    total = 0.0
    for gradients in zip(*per_batch, strict=True):
        values = torch.stack(gradients)
        deviation, mean = values.std(0, correction=0), values.abs().mean(0)
        ratio = float((mean / deviation)[deviation > 0].sum())
        total += math.log(ratio) if ratio > 0 else 0.0
    return total


PROXIES: dict[str, Callable[[nn.Module, Batches], float]] = {
    "grad_norm": grad_norm,
    "synflow": synflow,
    "naswot": naswot,
    "zen": zen,
    "zico": zico,
}
BATCHES = 2  # that proxies see


def zero_cost_scores(network: nn.Module, batches: Batches, seed: int = 0) -> dict[str, float]:
    """Every proxy of a network that was not trained.

    Args:
        network: freshly initialised; its weights stay as they are.
        batches: two of images and labels.
        seed: of what proxies draw; other random numbers are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return {name: proxy(copy_network(network), batches) for name, proxy in PROXIES.items()}  # BN statistics change in them


def _with_identity_norms(network: nn.Module) -> nn.Module:
    """A copy whose batch norms neither scale nor shift: some are initialised to silence a branch, whose layers would then say nothing."""
    net = copy_network(network)
    for module in net.modules():
        if isinstance(module, BATCH_NORM) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def _weights(network: nn.Module) -> list[Tensor]:
    return [module.weight for module in network.modules() if isinstance(module, WEIGHTED)]


def _gradients(network: nn.Module, batches: Batches) -> list[tuple[Tensor, ...]]:
    """Gradients of the loss by the weights of every layer, a tuple per batch."""
    network.train()
    weights = _weights(network)
    return [torch.autograd.grad(F.cross_entropy(logits_of(network(images)), labels), weights) for images, labels in batches]


class _Unbounded(TorchFunctionMode):
    """ReLU6 and its like without their upper end."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func is F.relu6 or (func is F.hardtanh and (args[1] if len(args) > 1 else given.get("min_val", -1.0)) == 0):
            return F.relu(args[0])
        return func(*args, **given)


class _Activations(TorchFunctionMode):
    """Keeps which units are on at every activation of a pass: images x units, 0 or 1."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in ACTIVATIONS:
            self.codes.append((args[0].detach().flatten(1) > 0).float())
        return func(*args, **(kwargs or {}))
