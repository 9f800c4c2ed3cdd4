"""Things named in a config or on the command line: a shipped one by its name, anybody's own as ``package.module:name``."""

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from bcnet.errors import UserError, first_line

T = TypeVar("T")


def import_object(name: str, what: str) -> Any:
    """Import what ``package.module:name`` names, from the installed packages or the working directory.

    Args:
        name: such as ``mypackage.models:build``.
        what: what it should be, for the message.

    Raises:
        UserError: it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} {name!r}: {first_line(error)}; expected package.module:name, importable from here") from error


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
        raise UserError(f"{what}: {name!r} is wrong: it must be one of {valid}, or your own as package.module:name{hint}")
    imported = import_object(name, what)
    is_right = issubclass(imported, kind) if isinstance(imported, type) else isinstance(imported, kind)
    if not is_right:
        raise UserError(f"{what}: {name!r} is not a {kind.__name__} of bcnet but {imported!r}")
    return imported  # type: ignore[no-any-return]
