"""What a measurement has done so far: a header that ties the file to its settings, then a line for each thing that was measured."""

import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from bcnet.errors import UserError
from bcnet.files import read_bytes
from bcnet.seals import append_sealed, read_line

MEASURED = ("ratio", "reference_ms", "turns")  # what every line says


class PartFile:
    """A file that a later process goes on from; what a kill left of a line is cut off.

    Args:
        path: the file; it appears with the first measurement.
        header: what ties it to its settings.
        shown: what a message calls entries of the header that are too long to be shown: ``{"groups": "other groups"}``.

    Attributes:
        lines: what was measured.

    Raises:
        UserError: the file is damaged, or of other settings: names the first that differs.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], shown: Mapping[str, str]) -> None:
        self.path, self.header, self.shown = path, header, shown
        self.lines = self._read()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a measurement."""
        if not (self.path.exists() and self.path.stat().st_size):
            append_sealed(self.path, self.header)
        append_sealed(self.path, line)
        self.lines.append(dict(line))

    def check_plan(self, plan: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a file that holds something else than the first of a plan.

        Args:
            plan: entries that every line must have, in the order in which they are measured.
        """
        if len(self.lines) > len(plan) or any(not wanted.items() <= line.items() for wanted, line in zip(plan, self.lines, strict=False)):
            raise UserError(f"{self.path}: holds other measurements than these settings ask for; delete it to start anew")

    def _read(self) -> list[dict[str, Any]]:
        content = read_bytes(self.path, "what was measured so far") if os.path.lexists(self.path) else b""
        whole = content[: content.rfind(b"\n") + 1]
        try:
            entries = [dict(read_line(line)) for line in whole.split(b"\n")[:-1]]
            if not all(isfinite(line[name]) for line in entries[1:] for name in MEASURED):
                raise ValueError(f"{MEASURED} must be finite")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(f"{self.path}: is damaged; delete it to start anew") from error
        if entries:
            self._check(entries[0])
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return entries[1:]

    def _check(self, header: Mapping[str, Any]) -> None:
        for key, wanted in self.header.items():
            if header.get(key) != wanted:
                known, here = (self.shown[key], "these") if key in self.shown else (f"{key}={header.get(key)}", wanted)
                raise UserError(f"{self.path}: was begun with {known}, not {here}: give the same settings to go on, or delete it")
