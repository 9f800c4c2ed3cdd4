"""Evaluations on disk, so that they survive a kill."""

import json
from pathlib import Path

from bcnet.errors import UserError
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"widths": name} | sides) + "\n"
        try:
            with self.path.open("ab") as file:
                if file.tell() and not _ends_with_newline(self.path):
                    line = "\n" + line
                file.write(line.encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
