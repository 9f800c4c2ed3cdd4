"""Trees of plain values, out of JSON and YAML that somebody else wrote: bounded in size and depth, no key twice, no endless numbers."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

MOST_DEPTH = 100
MOST_NODES = 100_000  # of YAML, with everything that aliases repeat
MOST_CHARACTERS = 100_000  # of YAML, which is read slowly: some seconds
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def parse_json(text: str) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is none, or has a key twice, a whole number beyond 64 bits, or more than `MOST_DEPTH` levels.
    """
    try:
        tree = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels") from error
    level = [tree]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _children(outer) if isinstance(inner, dict | list)]
        if not level:
            return tree
    raise ValueError(f"nested deeper than {MOST_DEPTH} levels")


def parse_yaml(text: str) -> Any:
    """Read YAML: numbers are those of YAML 1.2 (``1e-3`` is one, ``010`` and ``1:30`` are words), of booleans only ``true`` and ``false``.

    Raises:
        ValueError: it is none, or has a key twice, tags, a whole number beyond 64 bits, or is deeper or larger than any config.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters are no config; {MOST_CHARACTERS:,} is the most")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (TypeError, LookupError, OverflowError) as error:  # a tag with what it cannot be of
        raise ValueError(f"a tag that fits nothing ({error})") from error


def dump_yaml(tree: Any, **options: Any) -> str:
    """Write YAML that `parse_yaml` and other readers read as it was."""
    written: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, **options)
    return written


def numbers(tree: Any, place: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers of a tree, each with the keys that lead to it, joined by dots."""
    if isinstance(tree, int | float):
        yield place, tree
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in entries:
        yield from numbers(value, f"{place}.{key}" if place else str(key))


def _children(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from tree.values()
    elif isinstance(tree, list):
        yield from tree


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError(f"key {_commonest(key for key, _ in pairs)!r} stands there twice")
    return entries


def _commonest(keys: Iterable[str]) -> str:
    return Counter(keys).most_common(1)[0][0][:60]


def _whole_number(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the number {text[:20]}{'...' if len(text) > 20 else ''} has more than 64 bits")
    return int(text)


class _Loader(yaml.SafeLoader):
    """Reads no deeper than `MOST_DEPTH`."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MOST_DEPTH} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _count_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes a tree has, its aliases written out; none of its mappings may have a key twice."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError("an alias stands inside what it stands for")
        return known[id(node)]
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"key {_commonest(keys)!r} stands there twice")
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    count = 1 + sum(_count_nodes(one, known) for one in inner)
    if count > MOST_NODES:
        raise yaml.YAMLError(f"more than {MOST_NODES:,} values, which no config has")
    known[id(node)] = count
    return count


def _construct_whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if not _WHOLE.fullmatch(node.value):
        raise yaml.YAMLError(f"{node.value[:40]!r} is no whole number")
    return _whole_number(node.value)


def _construct_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    if not _NUMBER.fullmatch(node.value):
        raise yaml.YAMLError(f"{node.value[:40]!r} is no number")
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes what any reader would take for something else than a word."""


_CHANGED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in _CHANGED and (tag != "tag:yaml.org,2002:bool" or first in ("t", "T", "f", "F"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Dumper.yaml_implicit_resolvers = {first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_CHANGED[0], re.compile(rf"^(?:{_WHOLE.pattern})$"), list("-+0123456789"))
    _kind.add_implicit_resolver(_CHANGED[1], re.compile(rf"^(?:{_NUMBER.pattern})$"), list("-+0123456789."))
_Loader.add_constructor(_CHANGED[0], _construct_whole)
_Loader.add_constructor(_CHANGED[1], _construct_number)
