"""Find the groups of any CNN: which dimensions of which layers must keep the same channels.

Torch-Pruning's dependency graph says, for every channel of every layer, which entries of which other layers go with it.
Entries that go together form classes (union-find); classes that occur in exactly the same dimensions form a group.
"""

import contextlib
import copy
import ctypes
import io
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.models.shortcut import IdentityOr, shortcut_of
from bcnet.space.widths import Group, Layer, Segment, Space

SLICED_TYPES = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
_Entry = tuple[str, int]  # (dimension such as "blocks.0.conv1:out", position in it)
_Class = dict[str, list[int]]  # tied entries: dimension -> positions in it
# Torch-Pruning operations that hand on whole channels; any other keeps its groups at full width.
_TRANSPARENT_OPS = ("_ElementWiseOp", "_ConcatOp", "_ReshapeOp")
OUTPUTS = "the outputs of the model"


class _Classes:
    """Union-find over entries of layer dimensions."""

    def __init__(self) -> None:
        self.parent: dict[_Entry, _Entry] = {}

    def find(self, entry: _Entry) -> _Entry:
        root = entry
        while (parent := self.parent.setdefault(root, root)) != root:
            root = parent
        while (parent := self.parent[entry]) != root:
            self.parent[entry], entry = root, parent
        return root

    def union(self, a: _Entry, b: _Entry) -> None:
        self.parent[self.find(b)] = self.find(a)

    def members(self) -> list[_Class]:
        """The positions of every class in every dimension, ascending."""
        members: dict[_Entry, _Class] = defaultdict(lambda: defaultdict(list))
        for dim, position in sorted(self.parent):
            members[self.find((dim, position))][dim].append(position)
        return list(members.values())


@dataclass(frozen=True)
class Choices:
    """How the groups of a model get their choices.

    Attributes:
        bins: equal bins ``K`` per group.
        min_bins: smallest width index ``k_min``.
        divisor: channel counts are multiples of it in every group whose full count is one.
        lists: pattern -> channel counts, ascending, for the groups with a layer of that name; later patterns win over earlier ones.
        exclude: patterns of layers whose groups stay whole.

    A pattern is a module's name, in which ``*`` stands for any characters: ``blocks.*.conv1``; it means all layers in that module.
    """

    bins: int = 4
    min_bins: int = 1
    divisor: int | None = None
    lists: Mapping[str, Sequence[int]] | None = None
    exclude: Sequence[str] = ()


def trace(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    bins: int = 4,
    min_bins: int = 1,
    divisor: int | None = None,
    choices: Mapping[str, Sequence[int]] | None = None,
    exclude: Sequence[str] = (),
) -> Space:
    """Find the width space of a model.

    Input channels and class logits are never searched. Groups that touch a layer which cannot be sliced (layer norms,
    bare parameters, channel splits, transposed convolutions) stay at full width and are listed in ``Space.fixed``.

    Args:
        model: any CNN; it is not changed.
        input_shape: ``(C, H, W)`` of one image.
        bins: equal bins ``K`` per group.
        min_bins: smallest width index ``k_min``.
        divisor: channel counts are multiples of it in every group whose full count is one.
        choices: pattern of layer names -> channel counts, for groups that are not to be cut into equal bins; see `Choices`.
        exclude: patterns of layers whose groups stay whole.

    Raises:
        UserError: the model cannot be run or traced, nothing in it can be searched, or a pattern means no group.
    """
    rules = Choices(bins, min_bins, divisor, choices, exclude)
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, IdentityOr):
            module.forced = False  # so that the layers of its body are seen
    modules: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, SLICED_TYPES)}
    positions = _output_positions(model, modules, input_shape)
    used = {name: modules[name] for name in positions}
    sizes = _dimension_sizes(used)
    classes, frozen = _tie_channels(model, used, sizes, input_shape)
    runs, fixed = _split_into_runs(classes.members(), frozen, sizes)
    searched, groups = [], []
    for run in runs:
        group = _group(run, used, rules)
        if isinstance(group, Group):
            searched.append(run)
            groups.append(group)
        else:
            fixed.update(dict.fromkeys(run.places, group))
    _refuse_idle_patterns(rules, groups, fixed)
    if not groups:
        raise UserError(f"{type(model).__name__} has no group of channels that can be searched")
    segments = _segments(searched, sizes)
    layers = _mark_optional(model, [_describe(name, module, positions[name], segments) for name, module in used.items()])
    notes = tuple((dim.removesuffix(":out"), why) for dim, why in fixed.items() if dim.endswith(":out"))
    held = sum(p.numel() for module in used.values() for p in (module.weight, module.bias) if p is not None)
    total = sum(p.numel() for p in model.parameters())
    return Space(tuple(groups), layers, notes, total - held)


def _output_positions(model: nn.Module, modules: dict[str, Any], input_shape: tuple[int, ...]) -> dict[str, int]:
    """Run one image; return the output positions of every layer used, in order of first use."""
    positions: dict[str, int] = {}

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        size = output.shape[1:-1] if isinstance(module, nn.Linear) else output.shape[2:]
        positions[name] = positions.get(name, 0) + prod(size)

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, _, output: record(name, module, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape))
    except Exception as error:
        shape = "x".join(map(str, input_shape))
        raise UserError(f"{type(model).__name__} cannot be run on one {shape} image: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return positions


def _dimension_sizes(modules: dict[str, Any]) -> dict[str, int]:
    """Size of every dimension: ``NAME:in`` and ``NAME:out`` in order of use."""
    sizes: dict[str, int] = {}
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            sizes[f"{name}:in"], sizes[f"{name}:out"] = module.in_channels, module.out_channels
        elif isinstance(module, nn.Linear):
            sizes[f"{name}:in"], sizes[f"{name}:out"] = module.in_features, module.out_features
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            sizes[f"{name}:out"] = module.num_features
    return sizes


def _tie_channels(
    model: nn.Module, modules: dict[str, Any], sizes: dict[str, int], input_shape: tuple[int, ...]
) -> tuple[_Classes, dict[str, str]]:
    """Tie the entries that must go together; also return the dimensions that must stay whole, with the reason."""
    import torch_pruning as tp

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with _quiet():
        try:
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(1, *input_shape))
        except Exception as error:
            raise UserError(f"{type(model).__name__} cannot be traced: {first_line(error)}") from error
    names = {id(module): name for name, module in modules.items()}
    classes = _Classes()
    frozen: dict[str, str] = {}
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        out = f"{name}:out"
        for position in range(sizes[out]):
            classes.find((out, position))
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            if module.in_channels == module.out_channels:
                for position in range(module.in_channels):
                    classes.union((out, position), (f"{name}:in", position))
            else:
                frozen[f"{name}:in"] = frozen[out] = "a grouped convolution with other inputs than outputs"
        for target, is_in, pairs in _dependents(graph, name, module, sizes[out]):
            if id(target.module) in names:
                dim = f"{names[id(target.module)]}:{'in' if is_in else 'out'}"
                for root, position in pairs:
                    classes.union((out, root), (dim, position))
            elif type(target.module).__name__ == "_OutputOp":
                frozen.setdefault(out, OUTPUTS)
            elif type(target.module).__name__ not in _TRANSPARENT_OPS and _has_channels(target.module):
                frozen.setdefault(out, f"its channels pass through {_kind(target)}")
    return classes, frozen


def _dependents(graph: Any, name: str, module: nn.Module, size: int) -> Iterator[tuple[Any, bool, list[tuple[int, int]]]]:
    """What goes with the outputs of a layer: (node, whether its inputs, (output of the layer, entry of the node) pairs)."""
    try:
        with _quiet(), _time_limit(60.0):
            prune = graph.get_pruner_of_module(module).prune_out_channels
            group = graph.get_pruning_group(module, prune, idxs=list(range(size)))
    except Exception as error:
        raise UserError(f"{name}: Torch-Pruning cannot follow its channels: {first_line(error)}") from error
    for item in group:
        handler = item.dep.handler
        is_in = graph.is_in_channel_pruning_fn(handler) and not graph.is_out_channel_pruning_fn(handler)
        yield item.dep.target, is_in, [(int(r), int(i)) for r, i in zip(item.root_idxs, item.idxs, strict=True)]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread when pure Python code runs too long (Torch-Pruning can loop without end)."""
    thread = ctypes.c_ulong(threading.get_ident())
    raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
    timer = threading.Timer(seconds, lambda: raise_there(thread, ctypes.py_object(TimeoutError)))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _has_channels(module: nn.Module | nn.Parameter) -> bool:
    """Whether a target of the dependency graph is bound to a channel count (a layer without parameters is not)."""
    return isinstance(module, nn.Parameter) or type(module).__module__.startswith("torch_pruning") or any(True for _ in module.parameters())


def _kind(target: object) -> str:
    kind = type(target.module).__name__.strip("_")  # type: ignore[attr-defined]
    name = str(target.name).split(" ")[0]  # type: ignore[attr-defined]
    return kind if name.startswith("_") else f"{kind} {name}"


@dataclass(frozen=True)
class _Run:
    """Classes that occur in the same dimensions in the same order: a group to be.

    Attributes:
        channels: number of classes.
        places: dimension -> (first entry, entries per channel).
    """

    channels: int
    places: dict[str, tuple[int, int]]


def _split_into_runs(members: list[_Class], frozen: dict[str, str], sizes: dict[str, int]) -> tuple[list[_Run], dict[str, str]]:
    """Sort the classes into runs that can be searched and dimensions that are fixed, with the reason."""
    order = {dim: number for number, dim in enumerate(sizes)}
    last = [dim for dim in sizes if dim.endswith(":out")][-1]
    by_dims: dict[tuple[str, ...], list[_Class]] = defaultdict(list)
    for places in members:
        by_dims[tuple(sorted(places, key=order.__getitem__))].append(places)
    runs, fixed = [], {}
    for dims, tied in by_dims.items():
        tied.sort(key=lambda places: places[dims[-1]])
        run = _Run(len(tied), {dim: (tied[0][dim][0], len(tied[0][dim])) for dim in dims})
        reason = next((frozen[dim] for dim in dims if dim in frozen), None)
        if reason is None and not any(dim.endswith(":in") for dim in dims):
            reason = OUTPUTS if last in dims else "no layer that can be sliced reads its channels"
        elif reason is None and not all(_is_consecutive([places[dim] for places in tied]) for dim in dims):
            reason = "its channels are reordered on the way"
        if reason is None:
            runs.append(run)
        else:
            fixed.update(dict.fromkeys(dims, reason))
    return sorted(runs, key=lambda run: min(order[dim] for dim in run.places if dim.endswith(":out"))), fixed


def _is_consecutive(positions: list[list[int]]) -> bool:
    """Whether channel after channel takes the next entries of a dimension, the same number each."""
    flat = [entry for channel in positions for entry in channel]
    return len(set(map(len, positions))) == 1 and flat == list(range(flat[0], flat[0] + len(flat)))


def _channels_per_group(module: nn.Module) -> int:
    """Input channels per group of a grouped convolution; 0 for any other layer."""
    return module.in_channels // module.groups if isinstance(module, nn.Conv2d) and module.groups > 1 else 0


def _group(run: _Run, modules: dict[str, Any], rules: Choices) -> Group | str:
    """The group of a run, or the reason why it stays whole."""
    names = [dim.removesuffix(":out") for dim in run.places if dim.endswith(":out")]
    makers = tuple(name for name in names if not isinstance(modules[name], nn.modules.batchnorm._BatchNorm))
    unit = lcm(*(_channels_per_group(modules[name]) or 1 for name in names))
    if any(_means(pattern, makers) for pattern in rules.exclude):
        return "excluded"
    patterns = [pattern for pattern in rules.lists or () if _means(pattern, makers)]
    if patterns:
        return _listed_group(makers, run.channels, unit, (rules.lists or {})[patterns[-1]], patterns[-1])
    if run.channels < rules.bins:
        return f"{run.channels} channels, fewer than {rules.bins} bins"
    if rules.divisor and run.channels % lcm(unit, rules.divisor) == 0:
        unit = lcm(unit, rules.divisor)
    if run.channels % unit:
        where = next(iter(run.places)).rpartition(":")[0]
        raise UserError(f"{where}: {run.channels} channels cannot be cut into the groups of {unit} that a grouped convolution wants")
    group = Group.of_bins(makers[0], run.channels, bins=rules.bins, min_bins=rules.min_bins, unit=unit, layers=makers)
    return group if group.bins > 1 or rules.bins == 1 else f"{run.channels} channels are one choice only in multiples of {unit}"


def _listed_group(makers: tuple[str, ...], channels: int, unit: int, counts: Sequence[int], pattern: str) -> Group:
    """A group with choices of its own.

    Raises:
        UserError: the list is not ascending, or its counts do not fit the model.
    """
    where = f"space.groups[{pattern!r}] of {makers[0]}"
    if not counts or counts[-1] != channels:
        raise UserError(f"{where}: the choices {list(counts)} must end with the {channels} channels of the model")
    if any(count % unit for count in counts):
        raise UserError(f"{where}: the choices {list(counts)} must be multiples of {unit}, which a grouped convolution wants")
    return Group(makers[0], tuple(counts), 1, unit, makers)


def _means(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for name in names)


def _refuse_idle_patterns(rules: Choices, groups: Sequence[Group], fixed: Mapping[str, str]) -> None:
    """A pattern that means no group is a mistake.

    Raises:
        UserError: naming it and the groups that there are.
    """
    searched = [layer for group in groups for layer in group.layers]
    excluded = [dim.rpartition(":")[0] for dim, why in fixed.items() if why == "excluded"]
    idle = [pattern for pattern in rules.lists or () if not _means(pattern, searched + excluded)]
    idle += [pattern for pattern in rules.exclude if not _means(pattern, excluded)]
    if idle:
        names = ", ".join(group.name for group in groups[:6])
        raise UserError(f"space: the pattern {idle[0]!r} means no group that can be searched; groups here: {names}")


def _mark_optional(model: nn.Module, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Say of the layers inside an `IdentityOr` when they are not part of the network.

    Raises:
        UserError: one has channels of its own.
    """
    by_name = {layer.name: layer for layer in layers}
    marked = []
    for layer in layers:
        shortcut = shortcut_of(model, layer.name)
        if shortcut is None or shortcut[1].stride > 1:
            marked.append(layer)
            continue
        name = shortcut[0]
        inside = [one for one in layers if one.name.startswith(f"{name}.")]
        ends = [by_name[one.name].inputs for one in inside[:1]] + [by_name[one.name].outputs for one in inside[-1:]]
        own = {segment for one in inside for segment in (*one.inputs, *one.outputs)}
        if any(len(end) != 1 for end in ends) or not own <= {end[0] for end in ends}:
            raise UserError(f"{layer.name}: a layer inside {name} (IdentityOr) has channels of its own; it may only map input to output")
        marked.append(replace(layer, skipped_if_equal=(ends[0][0], ends[1][0])))
    return tuple(marked)


def _segments(runs: list[_Run], sizes: dict[str, int]) -> dict[str, tuple[Segment, ...]]:
    """What every dimension is made of; entries of no group become fixed segments."""
    placed: dict[str, list[tuple[int, Segment]]] = {dim: [] for dim in sizes}
    for number, run in enumerate(runs):
        for dim, (start, repeat) in run.places.items():
            placed[dim].append((start, Segment(number, run.channels, repeat)))
    segments = {}
    for dim, size in sizes.items():
        parts, end = [], 0
        for start, segment in [*sorted(placed[dim], key=lambda part: part[0]), (size, None)]:
            if start > end:
                parts.append(Segment(None, start - end))
            if segment is not None:
                parts.append(segment)
                end = start + segment.channels * segment.repeat
        segments[dim] = tuple(parts)
    return segments


def _describe(name: str, module: nn.Module, positions: int, segments: dict[str, tuple[Segment, ...]]) -> Layer:
    outputs = segments[f"{name}:out"]
    inputs = segments.get(f"{name}:in", outputs)
    if isinstance(module, nn.Conv2d):
        kernel, per_group = prod(module.kernel_size), _channels_per_group(module)
        return Layer(name, "conv", inputs, outputs, per_group, kernel, positions, module.bias is not None)
    if isinstance(module, nn.Linear):
        return Layer(name, "linear", inputs, outputs, positions=positions, bias=module.bias is not None)
    return Layer(name, "norm", inputs, outputs, vectors=sum(p is not None for p in (module.weight, module.bias)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Torch-Pruning's warnings about what it guesses out of the user's sight: the proof decides."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
