"""Proof that a traced model can be sliced (law 1), and what to do where it cannot.

The sliced forward equals the extracted plain module's, with and without training; and its outputs have the model's own shape. What
both would get wrong, such as channels that are tied to the wrong ones, is seen by a third way: the plain network at full width whose
parameters are zero for inactive channels.
"""

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.kernels.pointwise import safe_convolutions
from bcnet.models.copying import copy_network
from bcnet.models.layout import fit_layout, to_device
from bcnet.models.outputs import logits_of
from bcnet.models.shortcut import IdentityOr
from bcnet.space.trace import Choices, Tracing
from bcnet.space.widths import SIDES, Side, Space, Widths
from bcnet.supernet.layers import Slices, fuse_relus, make_plain
from bcnet.supernet.supernet import Supernet

MIXED = "channels are mixed or reordered on the way"


def trace(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    bins: int = 4,
    min_bins: int = 1,
    divisor: int | None = None,
    choices: Mapping[str, Sequence[int]] | None = None,
    exclude: Sequence[str] = (),
    proof: bool = True,
) -> Space:
    """Find the width space of a model, and prove that it can be sliced so.

    Input channels and outputs are never searched, nor are channels that are mixed or regrouped on the way. A group at which the
    proof fails stays whole. Layers that stay whole are listed in ``Space.fixed``, with the reason.

    Args:
        model: any CNN; it is not changed.
        input_shape: ``(C, H, W)`` of one image.
        bins: equal bins ``K`` per group.
        min_bins: smallest width index ``k_min``.
        divisor: channel counts are multiples of it in every group whose full count is one.
        choices: pattern of layer names -> channel counts, for groups that are not to be cut into equal bins.
        exclude: patterns of layers whose groups stay whole.
        proof: prove it; else a group that cannot be sliced may be among those of the space.

    Raises:
        UserError: the model cannot be run, nothing in it can be searched, or a pattern means no group.
    """
    rules = Choices(bins, min_bins, divisor, choices, exclude)
    tracing = Tracing(model, input_shape)
    return _proven(tracing, rules)[0] if proof else tracing.space(rules)


def trace_for_channels(model: nn.Module, input_shape: tuple[int, ...], *, exclude: Sequence[str] = (), proof: bool = True) -> Space:
    """The space of a model for networks of any channel counts: its groups have one choice, the model's own count.

    What is proven is the space of four bins per group; see `trace`.

    Raises:
        UserError: as `trace`.
    """
    tracing = Tracing(model, input_shape)
    whole = _proven(tracing, Choices(exclude=exclude))[1] if proof else {}
    return tracing.space(Choices(bins=1, exclude=exclude), whole)


def _proven(tracing: Tracing, rules: Choices) -> tuple[Space, dict[str, str]]:
    """A space that is proven, and the layers whose groups stay whole because the proof fails there, each with the reason."""
    space = tracing.space(rules)
    whole: dict[str, str] = {}
    while True:
        try:
            prove(tracing.model, space, tracing.input_shape)
            return space, whole
        except NotProven as failure:
            culprits = failure.culprits() or _failing_alone(tracing, rules, whole, space)
            if not culprits:
                raise
            whole.update({layer: why for group, why in culprits.items() for layer in space.groups[group].layers})
        space = tracing.space(rules, whole)


def _failing_alone(tracing: Tracing, rules: Choices, whole: Mapping[str, str], space: Space) -> dict[int, str]:
    """Groups that cannot be searched even when no other is, each with the reason; the dearest way to find out."""
    found = {}
    for number, group in enumerate(space.groups):
        others = {layer: "left out" for other in space.groups if other is not group for layer in other.layers}
        try:
            prove(tracing.model, tracing.space(rules, {**whole, **others}), tracing.input_shape, num_random=0)
        except NotProven as failure:
            found[number] = failure.why
    return found


def prove(model: nn.Module, space: Space, input_shape: tuple[int, ...], *, num_random: int = 2, tolerance: float = 1e-4) -> float:
    """Check both sides of the narrowest, the widest and random widths, with random BN statistics and affine parameters.

    Returns:
        The largest difference seen, relative to the largest output.

    Raises:
        NotProven: the model cannot be sliced at these groups.
    """
    bench = _Bench(model, space, input_shape, tolerance)
    rng = np.random.default_rng(0)
    every = [space.narrowest, *(space.sample(rng) for _ in range(num_random)), space.full]
    worst = 0.0
    for number, widths in enumerate(every):
        for side in SIDES:
            checks = ["sliced_and_extracted"]
            if number < 2:  # the whole network takes longest
                checks.append("sliced_and_zeroed")
            if (number, side) in ((0, "left"), (1, "right")):
                checks.append("trained")
            for check in checks:
                try:
                    worst = max(worst, getattr(bench, check)(widths, side))
                except _Differs as failure:
                    raise NotProven(bench, check, widths, side, str(failure)) from failure
    return worst


class NotProven(UserError):
    """A model that cannot be sliced at all of its groups."""

    def __init__(self, bench: "_Bench", check: str, widths: Widths, side: Side, why: str) -> None:
        super().__init__(f"{bench.name}, widths {bench.space.encode(widths)} ({side}): {why}; this model cannot be sliced")
        self.bench, self.check, self.widths, self.side, self.why = bench, check, widths, side, why

    def culprits(self) -> dict[int, str]:
        """Groups that cannot be narrowed, each with the reason: those that fail when the others are as wide as possible."""
        bench, whole = self.bench, self.bench.space.whole(True)
        if self._failure(bench, whole) is not None:  # a size that is written down somewhere holds for the plain model alone
            bench, whole = self.bench.plain(), self.bench.space.full
        found: dict[int, str] = {}

        def narrow(groups: Sequence[int], passed: Widths) -> Widths:
            """Take the narrow widths of as many of the groups as the check allows."""
            tried = tuple(self.widths[g] if g in groups else k for g, k in enumerate(passed))
            why = self._failure(bench, tried)
            if why is None:
                return tried
            if len(groups) == 1:
                found[groups[0]] = why
                return passed
            middle = len(groups) // 2
            return narrow(groups[middle:], narrow(groups[:middle], passed))

        narrow(range(len(whole)), whole)
        return found

    def _failure(self, bench: "_Bench", widths: Widths) -> str | None:
        try:
            getattr(bench, self.check)(widths, self.side)
        except _Differs as failure:
            return str(failure)
        return None


class _Differs(Exception):
    """Two forms of one subnet differ; says how."""


class _Bench:
    """A supernet with random parameters where those of the model would hide something, and the checks."""

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        input_shape: tuple[int, ...],
        tolerance: float,
        dtype: torch.dtype = torch.float32,
        wide: bool = True,
    ) -> None:
        self.name, self.space, self.tolerance, self.dtype = type(model).__name__, space, tolerance, dtype
        self._arguments = model, space, input_shape
        self._precise: _Bench | None = None
        self.generator = torch.Generator().manual_seed(0)
        model = copy_network(model).cpu().float()
        fit_layout(model, input_shape)
        self.wide = wide
        self.supernet = Supernet(model, space, wide=wide, fuse=False).to(dtype)
        _stir(self.supernet, self.generator)
        self.images = torch.randn(3, *input_shape, generator=self.generator).to(dtype)
        self.shortcuts = [module for module in self.supernet.net.modules() if isinstance(module, IdentityOr)]
        self.own_shape = _logits(model.to(dtype).eval(), self.images[:2]).shape
        self._last: tuple[Widths, Side, Tensor] | None = None

    def plain(self) -> "_Bench":
        """The same with a supernet no wider than the model."""
        return _Bench(*self._arguments, tolerance=self.tolerance, wide=False)

    def sliced_and_extracted(self, widths: Widths, side: Side) -> float:
        """The sliced network and the extracted one, without training."""
        sliced = self._sliced(widths, side)
        plain = _logits(self.supernet.extract(widths, side).eval(), self.images[:2])
        difference = _difference(sliced, plain)
        if difference <= self.tolerance:
            return difference
        text = f"the sliced forward differs from the extracted module's by {difference:.1e}"
        return self._in_double("sliced_and_extracted", widths, side, text)

    def sliced_and_zeroed(self, widths: Widths, side: Side) -> float:
        """The sliced network and the whole one whose parameters are zero for inactive channels."""
        sliced = self._sliced(widths, side)
        if sliced.shape != self.own_shape:
            raise _Differs(f"the output has the shape {tuple(sliced.shape)}, the model's own is {tuple(self.own_shape)}")
        identities = [shortcut.is_identity for shortcut in self.shortcuts]
        extracted = self.supernet.extract(widths, side).eval() if any(layer.across for layer in self.space.layers) else None
        difference = _difference(sliced, _logits(self._zeroed(extracted, identities), self.images[:2]))
        if difference <= self.tolerance:
            return difference
        text = f"{MIXED}: the whole network with its inactive channels zeroed differs by {difference:.1e}"
        return self._in_double("sliced_and_zeroed", widths, side, text)

    def trained(self, widths: Widths, side: Side) -> float:
        """One step of training, sliced and extracted: logits and gradients."""
        try:
            return self._trained(widths, side)
        finally:
            self.supernet.zero_grad(set_to_none=True)

    def _trained(self, widths: Widths, side: Side) -> float:
        shared = {id(parameter): parameter for parameter in self.supernet.parameters()}  # a large network has room for one set of weights
        trainee = copy_network(self.supernet, shared)
        if self.dtype != torch.float64:  # with the kernels that training uses
            fuse_relus(trainee.net)
        to_device(trainee, torch.device("cpu")).train()
        trainee.set_active_subnet(widths, side)
        plain = to_device(trainee.extract(widths, side), torch.device("cpu")).train()
        sliced, extracted = (_learn(network, self.images) for network in (trainee, plain))
        difference = _difference(sliced, extracted)
        if not difference <= 100 * self.tolerance:
            text = f"in training, the sliced network differs from the extracted one by {difference:.1e}"
            return self._in_double("trained", widths, side, text)
        own = [parameter.grad for parameter in plain.parameters() if parameter.grad is not None and parameter.numel()]
        largest = max((float(gradient.abs().max()) for gradient in own), default=0.0)
        del own
        for name, a, b in _gradients(trainee.net, plain):
            if a is None or b is None:
                if a is not b:
                    raise _Differs(f"in training, {name} gets a gradient in the sliced network or in the extracted one, not in both")
                continue
            difference = _difference(a, b, least=1e-3 * largest)
            if not difference <= 1000 * self.tolerance:
                text = f"in training, the gradient of {name} in the sliced network differs from the extracted one's by {difference:.1e}"
                return self._in_double("trained", widths, side, text)
        return 0.0

    def _sliced(self, widths: Widths, side: Side) -> Tensor:
        if self._last is None or self._last[:2] != (widths, side):
            self.supernet.eval().set_active_subnet(widths, side)
            self._last = widths, side, _logits(self.supernet.net, self.images[:2])
        return self._last[2]

    def _in_double(self, check: str, widths: Widths, side: Side, text: str) -> float:
        """Rounding alone may do that to a deep network: double precision decides."""
        if self.dtype == torch.float64:
            raise _Differs(text)
        if self._precise is None:
            self._precise = _Bench(*self._arguments, tolerance=1e-7, dtype=torch.float64, wide=self.wide)
        getattr(self._precise, check)(widths, side)
        return self.tolerance

    def _zeroed(self, extracted: nn.Module | None, identities: Sequence[bool]) -> nn.Module:
        """The whole plain network with zeros wherever a parameter belongs to an inactive channel."""
        slices: dict[str, Slices] = {name: module.slices for name, module in self.supernet.net.named_modules() if hasattr(module, "slices")}  # type: ignore[misc]
        active = {(name, one.name): own.of_tensor(one.name) for name, own in slices.items() for one in own.layer.tensors}
        ranges = {name: (own.inputs, own.outputs) for name, own in slices.items()}
        for shortcut, is_identity in zip(self.shortcuts, identities, strict=True):
            shortcut.forced = is_identity
        before = self.supernet.active
        self.supernet.set_active_subnet(self.space.whole(self.wide), "left")
        whole = make_plain(self.supernet.net).eval()
        self.supernet.set_active_subnet(*before)
        for shortcut in self.shortcuts:
            shortcut.forced = None
        modules = dict(whole.named_modules())
        for (name, key), dims in active.items():
            tensor = modules[name]._parameters.get(key) if name in modules else None
            if tensor is not None:
                tensor.requires_grad_(False)
                for dim, kept in enumerate(dims):
                    _keep(tensor, dim, kept)
        if extracted is not None:
            for layer in self.space.layers:
                if layer.across is not None and layer.name in ranges:
                    size = sum(segment.entries(slices[layer.name].totals) for segment in layer.outputs)
                    _run_active(modules[layer.name], extracted.get_submodule(layer.name), layer.across, ranges[layer.name], size)
        return whole


_Ranges = list[tuple[int, int]]


def _keep(tensor: Tensor, dim: int, active: _Ranges) -> None:
    """Put zeros everywhere but in the active ranges of a dimension."""
    kept = torch.zeros(tensor.shape[dim], dtype=torch.bool)
    for start, stop in active:
        kept[start:stop] = True
    tensor.index_fill_(dim, torch.nonzero(~kept).flatten(), 0)


def _run_active(module: nn.Module, sliced: nn.Module, dims: tuple[int, int], ranges: tuple[_Ranges, _Ranges], size: int) -> None:
    """Let a layer that normalises over channels see the active ones only, which is what its subnet means; it gives ``size`` channels."""
    read, give = (torch.cat([torch.arange(start, stop) for start, stop in own]) for own in ranges)

    def forward(x: Tensor) -> Tensor:
        y: Tensor = sliced(x.index_select(dims[0], read))
        shape = list(y.shape)
        shape[dims[1]] = size
        return y.new_zeros(shape).index_copy(dims[1], give, y)

    module.forward = forward


def _stir(supernet: Supernet, generator: torch.Generator) -> None:
    """Draw parameters and statistics that are constant: a factor of zero in front of a block would hide whatever happens in it."""
    with torch.no_grad():
        for module in supernet.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None or not tensor.is_floating_point() or not tensor.numel() or float(tensor.max()) != float(tensor.min()):
                    continue
                learned = name in module._parameters
                if not learned and name not in ("running_mean", "running_var"):
                    continue
                drawn = torch.rand(tensor.shape, generator=generator) + 0.5
                if name == "running_mean" or "bias" in name:
                    drawn = 0.2 * (drawn - 1)
                elif tensor.ndim > 1 and tensor.numel() > 2 * max(tensor.shape):  # a weight, which sums
                    drawn = (drawn - 1) * (6 / tensor[0].numel()) ** 0.5
                tensor.copy_(drawn)


def _difference(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    """The largest difference of two results, relative to the largest value, which is taken for ``least`` at least."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs_().max()) / max(float(a.abs().max()), least, 1e-12) if a.numel() else 0.0


def _gradients(sliced: nn.Module, extracted: nn.Module) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """The gradient of every parameter of an extracted network, in the sliced one and in it."""
    modules = dict(sliced.named_modules())
    for name, parameter in extracted.named_parameters():
        owner, _, leaf = name.rpartition(".")
        full = modules[owner]._parameters[leaf]
        gradient = None if full is None else full.grad
        slices = getattr(modules[owner], "slices", None)
        if gradient is not None and isinstance(slices, Slices) and slices.holds(leaf):
            gradient = slices.take(leaf, gradient)
        yield name, gradient, parameter.grad


def _learn(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of a training step whose gradients stay in the network; all random numbers are the same every time."""
    python_state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), safe_convolutions(network):
            torch.manual_seed(0)
            random.seed(0)
            logits = logits_of(network(images.contiguous(memory_format=torch.channels_last)))
            logits.float().square().mean().backward()
    except Exception as error:
        raise _Differs(f"it cannot be trained with fewer channels: {first_line(error)}") from error
    finally:
        random.setstate(python_state)
    return logits.detach()


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            logits = network(images)
    except Exception as error:
        raise _Differs(f"it cannot be run with fewer channels: {first_line(error)}") from error
    if not isinstance(logits, Tensor):
        kind = f"{type(network).__name__} returns {type(logits).__name__}"
        raise UserError(f"{kind}, where one tensor of logits is wanted: wrap it in a module that gives one")
    return logits
