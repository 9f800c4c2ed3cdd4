"""Numbers as people write and read them."""

import math
import os
import shlex
from pathlib import Path

from bcnet.errors import UserError

_UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def parse_number(text: str, where: str) -> float:
    """Read ``150M``, ``2.5G``, ``0.5`` or ``1e6``; a unit is one of k, M, G (or B), T.

    Raises:
        UserError: not a positive number.
    """
    scale = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}.get(text[-1:].lower(), 0.0)
    try:
        number = float(text[:-1] if scale else text) * (scale or 1.0)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise UserError(f"{where}: {text!r} is not a positive number such as 150M, 2.5G or 0.5")
    return number


def human(value: float) -> str:
    """A count with a unit: ``122.9M``."""
    for unit, scale in _UNITS:
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def coefficient(value: float) -> str:
    """A coefficient of correlation: ``0.795``, or ``undefined`` where one side is all alike."""
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def shell_word(path: Path) -> str:
    """A path as it is typed: in quotes where it has spaces and the like."""
    text = str(path)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def duration(seconds: float) -> str:
    """``0:01:30``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
