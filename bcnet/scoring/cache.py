"""Evaluations on disk, so that they survive a kill."""

import json
from pathlib import Path

from bcnet.lines import append_line
from bcnet.scoring.evaluate import Evaluation
from bcnet.space.widths import SIDES


class ScoreCache:
    """Evaluations of width vectors, one JSON line each; a half-written last line is dropped.

    Args:
        path: the file; its name says which checkpoint, data and settings the evaluations belong to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.evaluations: dict[str, dict[str, Evaluation]] = {}
        if path.exists():
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            for line in whole.decode("utf-8", "replace").splitlines():
                try:
                    entry = json.loads(line)
                    sides: dict[str, Evaluation] = {
                        side: {name: float(value) for name, value in entry[side].items()} for side in SIDES if side in entry
                    }
                    self.evaluations[entry["widths"]] = sides
                except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                    continue  # a damaged line is scored again

    def add(self, name: str, sides: dict[str, Evaluation]) -> None:
        """Keep one evaluation."""
        self.evaluations[name] = sides
        append_line(self.path, json.dumps({"widths": name} | sides))
