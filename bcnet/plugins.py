"""Things named in a config or on the command line: a shipped one by its name, anybody's own as ``package.module:name``."""

import difflib
import importlib
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bcnet.errors import UserError, first_line, shown

T = TypeVar("T")


def import_object(name: str, what: str) -> Any:
    """Import what ``package.module:name`` names: of an installed package, else of the working directory.

    Args:
        name: such as ``mypackage.models:build``.
        what: what it should be, for the message.

    Raises:
        UserError: it is no such name, or cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UserError(f"{what} {shown(name)} is not package.module:name")
    try:
        return getattr(_import(module_name), attribute)
    except Exception as error:  # whatever the module raises
        raise UserError(f"{what} {name!r}: {first_line(error)}; expected package.module:name, importable from here") from error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file there never stands in for an installed package
        importlib.invalidate_caches()
    return importlib.import_module(name)


def named_code(tree: Any) -> list[tuple[str, str]]:
    """Key and ``package.module:name`` of all code from outside the package that a config's tree would run."""
    found = []
    for key in ("model.name", "data.source", "train.strategy", "search.algorithm", "score.metric", "costs"):
        section, _, leaf = key.partition(".")
        value = tree.get(section) if isinstance(tree, Mapping) else None
        if leaf:
            value = value.get(leaf) if isinstance(value, Mapping) else None
        value = value.get("name") if isinstance(value, Mapping) else value
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and ":" in name and not name.endswith(".json"):  # which is a table of latencies
                found.append((key, name))
    return found


def trust_option(tree: Any) -> str:
    """What a command on files of this config must say: nothing, where all code is bcnet's own."""
    return " --trust" if named_code(tree) else ""


def refuse_untrusted(code: Iterable[tuple[str, str]], where: object, trust: bool | Collection[str]) -> None:
    """Refuse to run code that a file names, unless somebody said that it may.

    Args:
        code: see `named_code`.
        where: the file.
        trust: whether all of it may be run, or which names.

    Raises:
        UserError: naming the first.
    """
    trusted = [] if isinstance(trust, bool) else trust
    for key, name in code:
        if trust is not True and name not in trusted:
            raise UserError(f"{where}: {key} is {shown(name)}, code that would be run; if you trust it, say --trust (trust=True)")


def find_by_name(name: str, shipped: Mapping[str, T], what: str, kind: type[Any]) -> T:
    """A shipped object by its name, or an object from outside the package.

    Args:
        name: a key of ``shipped``, or ``package.module:name``.
        shipped: what the package brings.
        what: the config's key, for the message, such as ``train.strategy``.
        kind: the type (or, for classes, the base class) that an object from outside must have.

    Raises:
        UserError: unknown, not importable, or of another kind.
    """
    if name in shipped:
        return shipped[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, shipped, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        valid = ", ".join(repr(key) for key in shipped)
        raise UserError(f"{what}: {shown(name)} is wrong: it must be one of {valid}, or your own as package.module:name{hint}")
    imported = import_object(name, what)
    is_right = issubclass(imported, kind) if isinstance(imported, type) else isinstance(imported, kind)
    if not is_right:
        raise UserError(f"{what}: {name!r} is not a {kind.__name__} of bcnet but {imported!r}")
    return imported  # type: ignore[no-any-return]
