"""Evaluations on disk, so that they survive a kill."""

import os
from math import isfinite
from pathlib import Path

from bcnet.files import read_bytes
from bcnet.formatting import plural
from bcnet.progress import notice
from bcnet.scoring.evaluate import Evaluation
from bcnet.seals import append_sealed, read_line
from bcnet.space.widths import SIDES


class ScoreCache:
    """Evaluations of width vectors, one sealed JSON line each; a half-written last line is dropped, a damaged one too.

    Args:
        path: the file; its name says which checkpoint, data and settings the evaluations belong to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.evaluations: dict[str, dict[str, Evaluation]] = {}
        damaged = 0
        if os.path.lexists(path):
            whole, _, _ = read_bytes(path, "evaluations").rpartition(b"\n")
            for line in whole.split(b"\n") if whole else ():
                try:
                    name, sides = _read(line)
                    self.evaluations[name] = sides
                except (ValueError, KeyError, TypeError, AttributeError):
                    damaged += bool(line)
        if damaged:
            notice(f"{path}: {plural(damaged, 'line')} damaged; what stood there is evaluated again")

    def add(self, name: str, sides: dict[str, Evaluation]) -> None:
        """Keep one evaluation."""
        self.evaluations[name] = sides
        append_sealed(self.path, {"widths": name} | sides)


def _read(line: bytes) -> tuple[str, dict[str, Evaluation]]:
    """Widths and what was measured on each side, all of it finite."""
    entry = read_line(line)
    sides: dict[str, Evaluation] = {side: {} for side in SIDES if side in entry}
    for side, values in sides.items():
        if not all(type(value) in (int, float) and isfinite(value) for value in entry[side].values()):
            raise ValueError(line)
        values.update({str(name): float(value) for name, value in entry[side].items()})
    if not isinstance(entry["widths"], str):
        raise ValueError(line)
    return entry["widths"], sides
