"""Find the groups of any CNN: which dimensions of which layers must keep the same channels.

`bcnet.space.channels` says which entries of which dimensions go together. Those that occur in exactly the same dimensions, in the
same order, are the channels of one group.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import lcm

import numpy as np
import torch
from torch import nn

from bcnet.errors import UserError, first_line
from bcnet.models.copying import copy_network
from bcnet.models.shortcut import IdentityOr, shortcut_of
from bcnet.space.channels import INPUT, OUTPUTS, Channels, Labels
from bcnet.space.widths import Group, Layer, LayerTensor, Role, Segment, Space

NORMS = nn.modules.batchnorm._BatchNorm
NOT_READ = "no layer that can be sliced reads its channels"
REORDERED = "its channels are reordered on the way"


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


def trace(model: nn.Module, input_shape: tuple[int, ...], choices: Choices = Choices()) -> Space:
    """The width space of a model, without proof; `bcnet.supernet.proof.trace` proves it as well.

    Raises:
        UserError: the model cannot be run, nothing in it can be searched, or a pattern means no group.
    """
    return Tracing(model, input_shape).space(choices)


class Tracing:
    """What one look at a model says of its channels; spaces are made from it without running the model again.

    Input channels and outputs are never searched. Groups whose channels are mixed or regrouped on the way, or reach an operation
    that is not known here, stay at full width and are listed in ``Space.fixed``.

    Args:
        model: any CNN; it is not changed.
        input_shape: ``(C, H, W)`` of one image.

    Raises:
        UserError: the model cannot be run.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.model, self.input_shape = model, input_shape
        _refuse_what_cannot_be_copied(model)
        self._model = copy_network(model).cpu().float()
        for module in self._model.modules():
            if isinstance(module, IdentityOr):
                module.forced = False  # so that the layers of its body are seen
        self._channels = Channels(self._model)
        self._watch(training=False, counting=True)
        self._watch(training=True)  # some layers are there in training only
        if self._channels.reads_values:
            for factor in (-1.0, 0.0, 30.0, -30.0):  # to see the other branches
                self._watch(training=False, factor=factor)
            self._refuse_unseen_layers()
        self._components = self._channels.components()
        self._dims = _Dims(self._channels, self._components)
        self._modules = dict(self._model.named_modules())
        for parameter in self._model.parameters():  # from here on only shapes are asked for
            parameter.data = parameter.new_zeros(()).expand(parameter.shape)

    def _watch(self, *, training: bool, counting: bool = False, factor: float = 1.0) -> None:
        count = 2 if training else 1
        images = factor * (0.1 + torch.randn(count, *self.input_shape, generator=torch.Generator().manual_seed(0)))
        self._model.train(training)
        try:
            self._channels.watch(images, counting=counting)
        except Exception as error:
            shape = "x".join(map(str, self.input_shape))
            number = f"{count} {shape} images in training" if training else f"one {shape} image"
            raise UserError(f"{type(self.model).__name__} cannot be run on {number}: {first_line(error)}") from error

    def _refuse_unseen_layers(self) -> None:
        """What a layer is tied to that runs for some images only is known once it has run."""
        owners = {name for name, module in self._model.named_modules() if any(True for _ in module.parameters(recurse=False))}
        unseen = sorted(owners - set(self._channels.order))
        if unseen:
            text = f"{type(self.model).__name__} decides by its images which layers to run; {len(unseen)} never ran here, first {unseen[0]}"
            raise UserError(f"{text}: their channels cannot be known, so this model cannot be sliced")

    def space(self, choices: Choices, whole: Mapping[str, str] | None = None) -> Space:
        """The space of width vectors.

        Args:
            choices: how groups get their choices.
            whole: layers whose groups stay whole -> why.

        Raises:
            UserError: nothing can be searched, or a pattern means no group.
        """
        runs, fixed = self._dims.runs()
        searched, groups = [], []
        for run in runs:
            makers = self._makers(run)
            reason = next((why for name, why in (whole or {}).items() if name in makers), None)
            group = self._group(run, makers, choices) if reason is None else reason
            if isinstance(group, Group):
                searched.append(run)
                groups.append(group)
            else:
                fixed.update(dict.fromkeys(run.places, group))
        _refuse_idle_patterns(choices, groups, fixed)
        if not groups:
            raise UserError(f"{type(self._model).__name__} has no group of channels that can be searched{_most_frequent(fixed)}")
        segments = _segments(searched, self._dims.labels)
        layers = _mark_optional(self._model, self._layers(segments))
        uses = self._channels.uses
        notes = tuple((name, why) for dim, why in fixed.items() if dim.endswith(":out") and (name := dim.removesuffix(":out")) in uses)
        total = sum(p.numel() for p in self._model.parameters())
        held = Space(tuple(groups), layers)
        return replace(held, fixed=notes, fixed_params=total - _held(layers), fixed_flops=self._channels.flops)

    def _makers(self, run: "_Run") -> tuple[str, ...]:
        return tuple(name for dim in run.places if dim.endswith(":out") and (name := dim.removesuffix(":out")) in self._channels.uses)

    def _group(self, run: "_Run", makers: tuple[str, ...], rules: Choices) -> Group | str:
        """The group of a run, or the reason why it stays whole."""
        unit = block = self._dims.unit(run)
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
            return f"{run.channels} channels cannot be cut into the groups of {unit} that a grouped convolution or norm wants"
        group = Group.of_bins(makers[0], run.channels, bins=rules.bins, min_bins=rules.min_bins, unit=unit, layers=makers)
        if group.bins == 1 < rules.bins:
            return f"{run.channels} channels are one choice only in multiples of {unit}"
        return replace(group, block=block)

    def _layers(self, segments: "Mapping[str, tuple[Segment, ...]]") -> list[Layer]:
        channels, counted = self._channels, set()
        layers = []
        for name in self._dims.modules:
            use, module = channels.uses.get(name), self._modules[name]
            tensors = []
            for (owner, key), labels in channels.tensors.items():
                if owner != name:
                    continue
                tensor = getattr(module, key) if key in module._parameters else module._buffers[key]
                dims, roles = [], []
                for dim, size in enumerate(tensor.shape):
                    place, role = self._dims.place(name, key, dim)
                    roles.append(role)
                    dims.append((Segment(None, size),) if labels[dim] is None else segments[place])
                learned = key in module._parameters and id(tensor) not in counted
                counted.add(id(tensor))
                tensors.append(LayerTensor(key, tuple(dims), tuple(roles), learned))
            outputs = segments.get(f"{name}:out") or next((dim for one in tensors for dim in one.dims), ())
            inputs = segments.get(f"{name}:in", outputs)
            kind = use.kind if use is not None else "norm" if isinstance(module, NORMS) else "other"
            size = channels.sized[name][0] if name in channels.sized else ""
            layer = Layer(name, kind, inputs, outputs, tensors=tuple(tensors), across=channels.across.get(name), size=size)
            if use is not None:
                along = segments[f"{name}:along"] if use.along is not None else ()
                layer = replace(layer, channels_per_group=use.channels_per_group, kernel=use.kernel, positions=use.positions, along=along)
            if use is not None or kind == "norm" or layer.is_searched:
                layers.append(layer)
        return layers


def _refuse_what_cannot_be_copied(model: nn.Module) -> None:
    """Say what to do with models whose layers cannot be looked into.

    Raises:
        UserError: compiled or scripted modules, or parameters without a shape.
    """
    name = type(model).__name__
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise UserError(f"{name} is compiled or scripted: give the plain torch.nn.Module that it was made from")
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise UserError(f"{name} has lazy layers: run it on one image first, so that its parameters have a shape")


@dataclass(frozen=True)
class _Run:
    """Tied entries that occur in the same dimensions in the same order: a group to be.

    Attributes:
        channels: number of them.
        places: dimension -> (entries per channel, first entries of the parts in which all channels occur).
        members: numbers of the sets of tied labels.
    """

    channels: int
    places: dict[str, tuple[int, tuple[int, ...]]]
    members: frozenset[int]


class _Dims:
    """Dimensions by name, in order of use: ``LAYER:in``, ``LAYER:out``, ``LAYER:along``, ``LAYER.TENSOR:NUMBER``."""

    def __init__(self, channels: Channels, components: Labels) -> None:
        self.channels, self.components = channels, components
        self.labels: dict[str, Labels] = {}
        self._places: dict[tuple[str, str, int], tuple[str, Role]] = {}
        self.modules = list(channels.order)
        for name in self.modules:
            use = channels.uses.get(name)
            if use is not None:
                self.labels[f"{name}:in"], self.labels[f"{name}:out"] = use.inputs, use.outputs
                if use.along is not None:
                    self.labels[f"{name}:along"] = use.along
            if name in channels.sized:
                self.labels.setdefault(f"{name}:out", channels.sized[name][1])
            for (owner, key), dims in channels.tensors.items():
                if owner == name:
                    for dim, own in enumerate(dims):
                        if own is not None:
                            self._add(name, key, dim, own)
        self.reasons: dict[int, str] = {}
        for labels, why in channels.fixed:
            for component in np.unique(components[labels]).tolist():
                if component not in self.reasons or self.reasons[component] == INPUT or why == OUTPUTS:
                    self.reasons[component] = why

    def _add(self, name: str, key: str, dim: int, own: Labels) -> None:
        use = self.channels.uses.get(name)
        place, role = f"{name}.{key}:{dim}", "own"
        if use is not None and key == use.tensor and dim == use.out_dim:
            place, role = f"{name}:out", "out"
        elif use is not None and key == use.tensor and dim == use.in_dim and not use.channels_per_group:
            place, role = f"{name}:in", "in"
        elif use is not None and self._equal(own, use.outputs):
            role = "out"
        elif use is None and f"{name}:out" not in self.labels:
            place, role = f"{name}:out", "out"
        elif use is None and self._equal(own, self.labels[f"{name}:out"]):
            role = "out"
        self.labels.setdefault(place, own)
        self._places[name, key, dim] = place, role  # type: ignore[assignment]

    def _equal(self, a: Labels, b: Labels) -> bool:
        return len(a) == len(b) and bool(((a >= 0) == (b >= 0)).all()) and np.array_equal(self.components[a], self.components[b])

    def place(self, name: str, key: str, dim: int) -> tuple[str, Role]:
        """Where a tensor's dimension stands."""
        return self._places.get((name, key, dim), ("", "own"))

    def unit(self, run: _Run) -> int:
        """What the channel counts of a run must be multiples of."""
        units = (unit for labels, unit in self.channels.units if not run.members.isdisjoint(self.components[labels[labels >= 0]].tolist()))
        return lcm(*units)

    def runs(self) -> tuple[list[_Run], dict[str, str]]:
        """Sort tied entries into runs that can be searched and dimensions that are fixed, with the reason."""
        order = {dim: number for number, dim in enumerate(self.labels)}
        members: dict[int, dict[str, list[int]]] = defaultdict(dict)
        for dim, labels in self.labels.items():
            for position, component in enumerate(np.where(labels >= 0, self.components[labels], -1).tolist()):
                if component >= 0:
                    members[component].setdefault(dim, []).append(position)
        by_dims: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for component, places in members.items():
            by_dims[tuple(places)].append(component)  # dimensions come in order of use
        runs: list[_Run] = []
        fixed: dict[str, str] = {}
        for dims, tied in by_dims.items():
            made = [dim for dim in dims if dim.endswith(":out") and dim.removesuffix(":out") in self.channels.uses]
            reason = next((self.reasons[component] for component in tied if component in self.reasons), None)
            if reason is None and (not made or not any(dim.endswith(":in") for dim in dims)):
                reason = NOT_READ
            if reason is None:
                tied.sort(key=lambda component: members[component][made[0]])
                tiles = {dim: _tiles([members[component][dim] for component in tied]) for dim in dims}
                placed = {dim: tile for dim, tile in tiles.items() if tile is not None}
                if len(placed) == len(dims):
                    runs.append(_Run(len(tied), placed, frozenset(tied)))
                    continue
                reason = REORDERED
            for dim in dims:
                fixed.setdefault(dim, reason)
        return sorted(runs, key=lambda run: min(order[dim] for dim in run.places if dim.endswith(":out"))), fixed


def _tiles(positions: list[list[int]]) -> tuple[int, tuple[int, ...]] | None:
    """How channel after channel takes entries of a dimension: so many next to each other, in parts that begin there.

    ``None`` if the channels are in another order in some part.
    """
    table = np.array(positions) if len(set(map(len, positions))) == 1 else None
    if table is None:
        return None
    channels, entries = table.shape
    first = table[0]
    repeat = 1
    while repeat < entries and first[repeat] == first[repeat - 1] + 1:
        repeat += 1
    for size in sorted({repeat, 1}, reverse=True):  # of a single channel, parts may touch each other
        if entries % size == 0:
            starts = first[::size]
            expected = (starts[None, :, None] + size * np.arange(channels)[:, None, None] + np.arange(size)).reshape(channels, entries)
            if np.array_equal(expected, table):
                return size, tuple(map(int, starts))
    return None


def _held(layers: Sequence[Layer]) -> int:
    """Parameters of the plain model that the layers hold."""
    sizes = [[sum(s.channels * s.repeat for s in dim) for dim in one.dims] for layer in layers for one in layer.tensors if one.learned]
    return sum(int(np.prod(dims)) for dims in sizes)


def _most_frequent(fixed: Mapping[str, str]) -> str:
    reasons = [why for dim, why in fixed.items() if dim.endswith(":out") and why not in (OUTPUTS, INPUT)]
    return f": {max(set(reasons), key=reasons.count)}" if reasons else ""


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
    return Group(makers[0], tuple(counts), 1, unit, makers, unit)


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


def _segments(runs: list[_Run], labels: Mapping[str, Labels]) -> dict[str, tuple[Segment, ...]]:
    """What every dimension is made of; entries of no group become fixed segments."""
    placed: dict[str, list[tuple[int, Segment]]] = {dim: [] for dim in labels}
    for number, run in enumerate(runs):
        for dim, (repeat, starts) in run.places.items():
            placed[dim] += [(start, Segment(number, run.channels, repeat)) for start in starts]
    segments = {}
    for dim, own in labels.items():
        parts, end = [], 0
        for start, segment in [*sorted(placed[dim], key=lambda part: part[0]), (len(own), None)]:
            if start > end:
                parts.append(Segment(None, start - end))
            if segment is not None:
                parts.append(segment)
                end = start + segment.channels * segment.repeat
        segments[dim] = tuple(parts)
    return segments
