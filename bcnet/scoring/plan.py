"""What the outputs of a supernet's operations depend on: a plan for computing what width vectors share only once.

torch.fx gives the operations. One of them must be computed again only when a group it depends on changed its width. A
layer's output channels do not depend on how many of them are used, only on its inputs; so, if asked, a layer that sums over
channels computes all of its outputs at once, operations that treat every channel alone hand them on, and the next layer
that sums over them takes the part that is active.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bcnet.models.shortcut import IdentityOr
from bcnet.space.widths import Layer, Segment, Widths
from bcnet.supernet.graph import operations
from bcnet.supernet.layers import BATCH_NORM
from bcnet.supernet.supernet import Supernet

# Operations that compute every channel from the same channel of their inputs.
_CHANNELWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_CHANNELWISE_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.truediv, torch.add, torch.mul),
    *(F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.sigmoid, torch.sigmoid, F.hardsigmoid, F.dropout),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
)
_CHANNELWISE_METHODS = ("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "contiguous", "clone")
_OUT_OF_PLACE: dict[Any, Any] = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}


class NotShareable(ValueError):
    """The operations of a network cannot be told apart."""


@dataclass
class Step:
    """One operation.

    Attributes:
        node: of the graph.
        inputs: numbers of the steps whose results it reads.
        layer: of the space, if it is a slimmable layer.
        group: the result's channels (dimension 1) are those of this group, all that a subnet can have; ``None``: the active ones.
        depends: groups whose widths decide the result.
        summed: the group over which it sums, bin by bin.
        is_norm: whether it is a BN layer.
        keep: whether a step that depends on other groups reads the result, which must then outlive this one.
        in_place: whether it may overwrite its input.
        body: of which shortcut it is a part that not every subnet has.
    """

    node: fx.Node
    inputs: tuple[int, ...] = ()
    layer: Layer | None = None
    group: int | None = None
    depends: frozenset[int] = frozenset()
    summed: int | None = None
    is_norm: bool = False
    keep: bool = False
    in_place: bool = False
    body: "Body | None" = None

    def context(self, widths: Widths) -> tuple[int, ...]:
        """The widths that decide the result, but for that of the group it sums over."""
        return tuple(widths[g] for g in sorted(self.depends) if g != self.summed)


@dataclass
class Body:
    """The body of a `bcnet.models.shortcut.IdentityOr`.

    Attributes:
        ends: it is no part of subnets in which these two have as many channels.
        source: number of the step that it reads.
        last: number of the step that gives its result.
    """

    ends: tuple[Segment, Segment]
    source: int
    last: int

    def is_skipped(self, channels: Sequence[int]) -> bool:
        """Whether the shortcut is the identity at these channels of every group."""
        first, second = self.ends
        return first.entries(channels) == second.entries(channels)


@dataclass
class Plan:
    """The operations of a supernet in order, and where its logits are.

    Attributes:
        steps: see `Step`.
        result: number of the step that gives the logits.
        modules: of the network, by name.
        entries: values per image of every step's result at full width.
        bodies: by the name of the shortcut.
    """

    steps: list[Step]
    result: int
    modules: dict[str, nn.Module]
    entries: list[int] = field(default_factory=list)
    bodies: dict[str, Body] = field(default_factory=dict)

    def dirty(self, changed: frozenset[int], wanted: Iterable[int]) -> list[int]:
        """Steps among those wanted whose results change when the widths of these groups do."""
        return [number for number in wanted if self.steps[number].depends & changed]

    def before_norms(self) -> list[int]:
        """The steps that BN statistics depend on, and the BN layers themselves."""
        needed: set[int] = set()
        for number in reversed(range(len(self.steps))):
            if self.steps[number].is_norm or number in needed:
                needed.update((number, *self.steps[number].inputs))
        return sorted(needed)


def make_plan(supernet: Supernet, input_shape: Sequence[int], *, whole_layers: bool) -> Plan:
    """Follow the operations of a supernet.

    Args:
        supernet: in evaluation mode.
        input_shape: ``(C, H, W)`` of one image.
        whole_layers: compute all output channels of a layer at once, which pays when most width vectors are wanted.

    Raises:
        NotShareable: torch.fx cannot trace the network.
    """
    net = supernet.net
    try:
        graph = operations(net, bodies=True)
        shapes = _shapes(net, graph, input_shape)
    except Exception as error:  # whatever a model's forward raises when it is run on proxies
        raise NotShareable(str(error)) from error
    modules = dict(net.named_modules())
    layers = {layer.name: layer for layer in supernet.space.layers if hasattr(modules[layer.name], "slices")}
    numbers: dict[fx.Node, int] = {}
    plan = Plan([], 0, modules)
    for node in graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise NotShareable("the network returns more than logits")
            plan.result = numbers[node.args[0]]
            break
        numbers[node] = len(plan.steps)
        inputs = tuple(numbers[one] for one in node.all_input_nodes)
        plan.steps.append(_follow(node, inputs, plan, layers, shapes, whole_layers))
        shape = shapes[node]
        plan.entries.append(0 if shape is None else torch.Size(shape[1:]).numel())
    for name, body in plan.bodies.items():
        if any(step.body is not body and any(plan.steps[n].body is body and n != body.last for n in step.inputs) for step in plan.steps):
            raise NotShareable(f"{name} is made of more than modules")
        plan.steps[body.last].inputs += (body.source,)
    _mark_lifetimes(plan)
    return plan


_Shape = tuple[int, ...] | None


def _shapes(net: nn.Module, graph: fx.Graph, input_shape: Sequence[int]) -> dict[fx.Node, _Shape]:
    """Shape of every result that is a tensor, for two images."""
    shapes: dict[fx.Node, _Shape] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            shapes[n] = tuple(value.shape) if isinstance(value, Tensor) else None
            return value

    with torch.no_grad():
        Recorder(net, graph=graph).run(torch.zeros(2, *input_shape, device=next(net.parameters()).device))
    return shapes


def _follow(
    node: fx.Node, inputs: tuple[int, ...], plan: Plan, layers: dict[str, Layer], shapes: dict[fx.Node, _Shape], whole_layers: bool
) -> Step:
    sources = [plan.steps[number] for number in inputs]
    step = Step(node, inputs, depends=frozenset().union(*(source.depends for source in sources)))
    groups = {source.group for source in sources if source.group is not None}
    if node.op == "call_module":
        module = plan.modules[str(node.target)]
        step.is_norm = isinstance(module, BATCH_NORM)
        step.layer = layers.get(str(node.target))
        step.body = _follow_body(str(node.target), inputs, plan, layers)
    if step.layer is not None:
        _follow_layer(step, sources[0], plan.modules[step.layer.name], len(shapes[node] or ()), whole_layers)
    elif len(groups) == 1 and _is_channelwise(node, sources, plan, shapes):
        (step.group,) = groups
    else:
        step.depends |= groups
    if step.body is not None:  # what stands in for it has the active channels, too
        step.depends |= _groups(step.body.ends) | groups
        step.depends |= _groups(step.layer.outputs) if step.layer is not None else frozenset()
        step.group = step.summed = None
    return step


def _follow_body(target: str, inputs: tuple[int, ...], plan: Plan, layers: dict[str, Layer]) -> Body | None:
    """The body that a module belongs to, which now ends with it; ``None`` if it is always part of the network."""
    for name, shortcut in plan.modules.items():
        if isinstance(shortcut, IdentityOr) and target.startswith(f"{name}."):
            ends = next((own.skipped_if_equal for layer, own in layers.items() if layer.startswith(f"{name}.")), None)
            if ends is None:
                return None
            if any(step.body is not None and str(step.node.target) == target for step in plan.steps):
                raise NotShareable(f"{target} runs more than once, and not in every subnet")
            body = plan.bodies.setdefault(name, Body(ends, inputs[0], 0))
            body.last = len(plan.steps)
            return body
    return None


def _follow_layer(step: Step, source: Step, module: nn.Module, ndim: int, whole_layers: bool) -> None:
    layer = step.layer
    assert layer is not None
    if layer.kind == "other":
        step.depends |= _groups(layer.inputs) | _groups(layer.outputs)
        return
    is_switched = module.slices.switched_by is not None  # type: ignore[union-attr]
    if layer.kind == "norm" or layer.channels_per_group:
        if not is_switched and source.group is not None and _only_group(layer.outputs) == source.group:
            step.group = source.group
        else:
            step.depends |= _groups(layer.outputs)
        return
    step.depends |= _groups(layer.inputs)
    if not is_switched and source.group is not None and source.group not in source.depends and module._parameters.get("bias") is None:
        step.summed = source.group  # with more of its channels active, those before stay what they were
    step.group = _only_group(layer.outputs) if whole_layers and (layer.kind == "conv" or ndim == 2) else None
    if step.group is None:
        step.depends |= _groups(layer.outputs)


def _groups(segments: tuple[Segment, ...]) -> frozenset[int]:
    return frozenset(segment.group for segment in segments if segment.group is not None)


def _only_group(segments: tuple[Segment, ...]) -> int | None:
    return segments[0].group if len(segments) == 1 and segments[0].repeat == 1 else None


def _is_channelwise(node: fx.Node, sources: Sequence[Step], plan: Plan, shapes: dict[fx.Node, _Shape]) -> bool:
    first = shapes[sources[0].node]
    for source in sources:
        shape = shapes[source.node]
        if first is None or shape is None or len(shape) != len(first):
            return False  # the channels would not lie along the same dimension
        if source.group is None and shape[1] != 1:
            return False
    assert first is not None
    if node.op == "call_module":
        module = plan.modules[str(node.target)]
        return isinstance(module, _CHANNELWISE_MODULES) or (isinstance(module, nn.Flatten) and _flattens_nothing(module.start_dim, first))
    if node.target in ("flatten", torch.flatten):
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return _flattens_nothing(start, first)
    if node.target in ("mean", torch.mean):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = (dims,) if isinstance(dims, int) else dims
        return isinstance(dims, Sequence) and all(isinstance(d, int) and d % len(first) > 1 for d in dims)
    return node.target in (_CHANNELWISE_FUNCTIONS if node.op == "call_function" else _CHANNELWISE_METHODS)


def _flattens_nothing(start: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``(N, C, 1, 1)`` becomes ``(N, C)``."""
    return start == 1 and all(size == 1 for size in shape[2:])


def _mark_lifetimes(plan: Plan) -> None:
    readers: list[list[Step]] = [[] for _ in plan.steps]
    for step in plan.steps:
        for number in step.inputs:
            readers[number].append(step)
    for number, step in enumerate(plan.steps):
        step.keep = number == plan.result or step.summed is not None or any(reader.depends != step.depends for reader in readers[number])
        if len(step.inputs) == 1:
            source = plan.steps[step.inputs[0]]
            step.in_place = source.layer is not None and source.body is None and not source.keep and len(readers[step.inputs[0]]) == 1


def out_of_place(target: Any) -> Any:
    """The operation that does the same and leaves its input as it is."""
    if isinstance(target, str):
        return target[:-1] if target.endswith("_") and not target.endswith("__") else target
    return _OUT_OF_PLACE.get(target, target)
