"""Channel counts from a file, in whatever order the layers are listed there, as channels per group.

Published networks are lists of channel counts, one per layer. The lists differ in which layers they hold (depthwise convolutions,
shortcut convolutions, the classifier) and where a shortcut's convolution stands. All these orders are tried; layers of one group must
agree and layers that are not searched must have their own size, so that in practice one reading fits.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcnet.errors import UserError
from bcnet.files import is_file, read_json
from bcnet.space.widths import Layer, Segment, Space

MOST_CHANNELS = 1_000_000
ChannelCounts = Sequence[int] | Mapping[str, int]


@dataclass(frozen=True)
class ChannelList:
    """Channel counts that fit a space.

    Attributes:
        channels: of every group of the space.
        order: which layers were listed, in words.
    """

    channels: tuple[int, ...]
    order: str


def read_channels(text: str) -> list[int] | dict[str, int]:
    """Channel counts from a JSON file, as a list or by the names of groups.

    Args:
        text: ``FILE``, or ``FILE:key.key`` for an entry of a larger file. The file or the entry is a list of channel counts, an object
            name -> count, or an object with one of the two under ``"channels"`` (such as ``network.json`` of ``bcnet extract``).

    Raises:
        UserError: no such file or entry, or something else in it. The counts themselves are looked at by `match_channels`.
    """
    path, key = (text, "") if is_file(Path(text)) else text.rpartition(":")[::2] if ":" in text else (text, "")
    tree = read_json(Path(path), "a list of channel counts")
    entry = tree
    if key:
        found = next(_entries(tree, key.split(".")), None)
        if found is None:
            raise UserError(f"{path}: no entry {key!r} in it; there are {_first(_names(tree))}")
        (entry,) = found
    if isinstance(entry, dict) and "channels" in entry:
        entry = entry["channels"]
    if not isinstance(entry, list | dict) or (isinstance(entry, dict) and any(isinstance(one, list | dict) for one in entry.values())):
        names = list(_names(entry))
        hint = f"choose an entry, such as {path}:{'.'.join(filter(None, (key, names[0])))}" if names else "expected [32, 16, 96, ...]"
        raise UserError(f"{text}: not a list of channel counts; {hint}")
    return entry


def match_channels(counts: ChannelCounts, space: Space, where: str = "channels") -> ChannelList:
    """Channels per group of a list over the layers, or of a mapping from names of groups (or of any of their layers).

    Args:
        counts: the channel counts; more than the model has are fine.
        space: the traced space of the model.
        where: what messages name as their source.

    Raises:
        UserError: one is no channel count, they fit the model in no order of its layers, or in several that differ.
    """
    for place, count in counts.items() if isinstance(counts, Mapping) else enumerate(counts, start=1):
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_CHANNELS:
            what = repr(place) if isinstance(place, str) else f"number {place}"
            raise UserError(f"{where}: {what} is {str(count)[:40]}, not a channel count (a whole number of 1 to {MOST_CHANNELS:,})")
    if isinstance(counts, Mapping):
        return ChannelList(_by_name(counts, space, where), "by name")
    orders = _orders(space)
    fitting: dict[tuple[int, ...], str] = {}
    conflicts = []
    for words, layers in orders:
        if len(layers) == len(counts):
            try:
                fitting.setdefault(_solve(layers, counts, space), words)
            except _Conflict as conflict:
                conflicts.append(conflict)
    if len(fitting) > 1:
        (one, words), (other, others) = list(fitting.items())[:2]
        group, a, b = next((g.name, a, b) for g, a, b in zip(space.groups, one, other, strict=True) if a != b)
        raise UserError(f"{where}: ambiguous: group {group} has {a} channels if these are {words}, and {b} if they are {others}")
    if fitting:
        ((channels, words),) = fitting.items()
        return ChannelList(channels, words)
    if conflicts:
        raise UserError(f"{where}: these {len(counts)} numbers do not fit: {max(conflicts, key=lambda one: one.place)}")
    lengths: dict[int, str] = {}
    for words, layers in orders:
        lengths.setdefault(len(layers), words)
    wanted = ", ".join(f"{length} ({words})" for length, words in sorted(lengths.items(), reverse=True))
    raise UserError(f"{where}: {len(counts)} numbers, and a list for this model has {wanted}")


def _by_name(counts: Mapping[str, int], space: Space, where: str) -> tuple[int, ...]:
    place_of = {layer: place for place, group in enumerate(space.groups) for layer in (group.name, *group.layers)}
    given: dict[int, int] = {}
    for name, count in counts.items():
        if name not in place_of:
            names = _first(group.name for group in space.groups)
            raise UserError(f"{where}: {name!r} is no group that can be searched; groups here: {names}")
        if given.setdefault(place_of[name], count) != count:
            raise UserError(f"{where}: {name!r} has {count} channels, and {given[place_of[name]]} by another layer of its group")
    missing = [group.name for place, group in enumerate(space.groups) if place not in given]
    if missing:
        raise UserError(f"{where}: no channels for {_first(missing)}")
    for place, group in enumerate(space.groups):
        if given[place] < 1 or given[place] % group.block:
            raise UserError(f"{where}: {given[place]} channels of {group.name}: {_multiple(group.block)}")
    return tuple(given[place] for place in range(len(space.groups)))


# Orders of the layers ----------------------------------------------------------------------------------------------------


def _orders(space: Space) -> list[tuple[str, tuple[Layer, ...]]]:
    """Every order in which a list may hold the layers and which says the channels of all groups, each in words; no order twice."""
    layers = [layer for layer in space.layers if layer.kind in ("conv", "linear") and not layer.along]
    orders: dict[tuple[str, ...], tuple[str, tuple[Layer, ...]]] = {}
    for (place, shortcuts), depthwise, last in itertools.product(_with_shortcuts(layers).items(), (True, False), (True, False)):
        kept = [layer for layer in shortcuts if depthwise or not _is_depthwise(layer)]
        if not last and layers and all(segment.group is None for segment in layers[-1].outputs):
            kept = [layer for layer in kept if layer is not layers[-1]]
        said = {segment.group for layer in kept for segment in layer.outputs}
        if all(group in said for group in range(len(space.groups))):
            left_out = [what for what, there in (("depthwise convolutions", depthwise), ("the classifier", last)) if not there]
            words = f"all layers{place}" + (f", without {' and '.join(left_out)}" if left_out else "")
            orders.setdefault(tuple(layer.name for layer in kept), (words, tuple(kept)))
    return list(orders.values())


def _is_depthwise(layer: Layer) -> bool:
    return layer.kind == "conv" and layer.channels_per_group == 1


def _with_shortcuts(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers with shortcut convolutions where they run, before their block, behind it, and left out."""
    blocks = list(_shortcuts(layers))
    names = {shortcut.name for shortcut, _, _ in blocks}
    main = [layer for layer in layers if layer.name not in names]
    before = {head.name: shortcut for shortcut, head, _ in blocks}
    behind = {tail.name: shortcut for shortcut, _, tail in blocks}
    return {
        "": list(layers),
        ", shortcuts before their block": [one for layer in main for one in (before.get(layer.name), layer) if one is not None],
        ", shortcuts behind their block": [one for layer in main for one in (layer, behind.get(layer.name)) if one is not None],
        " but shortcuts": main,
    }


def _shortcuts(layers: Sequence[Layer]) -> Iterator[tuple[Layer, Layer, Layer]]:
    """Every shortcut convolution with the first and the last layer of the main path that it goes around.

    It reads what the first one reads and gives what the last one gives, and stands directly behind the last or before the first.
    Other blocks may read the same channels, as all but the first of a stage do: the nearest such layer is the first of the block.
    """
    for place, layer in enumerate(layers):
        if layer.kind != "conv" or layer.channels_per_group or layer.inputs == layer.outputs:
            continue
        if place and layers[place - 1].outputs == layer.outputs:
            head = next((one for one in range(place - 2, -1, -1) if layers[one].inputs == layer.inputs), None)
            if head is not None:
                yield layer, layers[head], layers[place - 1]
                continue
        if place + 1 < len(layers) and layers[place + 1].inputs == layer.inputs and layers[place + 1].outputs != layer.outputs:
            tail = next((one for one in layers[place + 2 :] if one.outputs == layer.outputs), None)
            if tail is not None:
                yield layer, layers[place + 1], tail


# Values of the layers ----------------------------------------------------------------------------------------------------


class _Conflict(Exception):
    """A number that does not fit, at its place in the list."""

    def __init__(self, place: int, value: int, layer: Layer, why: str) -> None:
        super().__init__(f"number {place} is {value} for {layer.name}, {why}")
        self.place = place


def _solve(layers: Sequence[Layer], counts: Sequence[int], space: Space) -> tuple[int, ...]:
    """Channels per group from the outputs of every layer; a layer whose outputs are several groups leaves at most one of them open.

    Raises:
        _Conflict: the first number that does not fit.
    """
    channels: dict[int, int] = {}
    said_by: dict[int, int] = {}
    whole = dict(space.fixed)

    def entries(segment: Segment) -> int:
        return segment.repeat * (segment.channels if segment.group is None else channels[segment.group])

    waiting = list(enumerate(zip(layers, counts, strict=True), start=1))
    while waiting:
        later = []
        for place, (layer, value) in waiting:
            groups = {segment.group for segment in layer.outputs if segment.group is not None}
            unknown = groups - set(channels)
            if len(unknown) > 1:
                later.append((place, (layer, value)))
                continue
            rest = value - sum(entries(s) for s in layer.outputs if s.group not in unknown)
            if not unknown:
                if rest:
                    why = f"by number {max(said_by[g] for g in groups)}" if groups else f"({whole.get(layer.name, 'not searched')})"
                    raise _Conflict(place, value, layer, f"which has {value - rest} {why}")
                continue
            (group,) = unknown
            each = sum(segment.repeat for segment in layer.outputs if segment.group == group)
            block = space.groups[group].block
            if rest < 1 or rest % each or rest // each % block:
                raise _Conflict(place, value, layer, _multiple(each * block))
            channels[group], said_by[group] = rest // each, place
        if len(later) == len(waiting):
            place, (layer, value) = later[0]
            raise _Conflict(place, value, layer, "whose groups have no number of their own")
        waiting = later
    return tuple(channels[group] for group in range(len(space.groups)))


def _multiple(block: int) -> str:
    return f"which wants a multiple of {block}, for a grouped convolution or norm" if block > 1 else "which wants 1 or more"


# Entries of a file ------------------------------------------------------------------------------------------------------


def _entries(tree: Any, parts: Sequence[str]) -> Iterator[tuple[Any]]:
    """Whatever a dotted key means in a tree of objects whose own keys may have dots in them."""
    if not parts:
        yield (tree,)
    elif isinstance(tree, dict):
        for end in range(1, len(parts) + 1):
            if ".".join(parts[:end]) in tree:
                yield from _entries(tree[".".join(parts[:end])], parts[end:])


def _names(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the lists of numbers in a tree, each without a last ``.channels``."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            name = f"{prefix}.{key}".removeprefix(".")
            if isinstance(value, list) and value and all(type(one) is int for one in value):
                yield name.removesuffix(".channels")
            else:
                yield from _names(value, name)


def _first(names: Iterable[str], most: int = 6) -> str:
    """The first few names."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "") if listed else "none"
