"""Ground truth of other people's spaces: networks by their channel counts, ``"16-4-12"`` or ``"64:64:64"``, each with an accuracy.

Three forms are read:

- JSON ``{"acc": {"16-4-12": 0.539, ...}}``, as the ResNet20 challenge has it; ``about`` and ``meta`` may stand beside ``acc``.
- JSON ``{"64:64:64:64:64": 91.2, ...}``. NATS-Bench's size space takes this form once its user has exported it, by the strings of its
  architectures; its own archive is not read.
- CSV with a header: a column ``widths``; ``accuracy`` (or ``acc``), or a column per seed ``accuracy_0``, ``accuracy_1``, ...; and, if
  they are known, ``flops`` and ``params``.

In JSON, a list of numbers in the place of one holds an accuracy per seed. Accuracies are fractions if none in the file is above 1, else
per cent.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet.errors import UserError
from bcnet.files import read_text
from bcnet.truth.checks import is_accuracy, is_cost

BESIDE = ("about", "meta")
COSTS = ("flops", "params")
CSV_FORM = "a header with 'widths' and 'accuracy' (or 'accuracy_0', 'accuracy_1', ...), perhaps 'flops' and 'params'"
AS_FRACTIONS = "fractions, for none is above 1"  # how accuracies were read


@dataclass(frozen=True)
class OtherTruth:
    """What such a file holds.

    Attributes:
        names: channel counts as they are written.
        acc: accuracies in per cent, ``(N, S)``.
        flops: ``(N,)``, 0 where not known.
        params: ``(N,)``, 0 where not known.
        meta: what the file says of itself; ``accuracy``: how its accuracies were read.
    """

    names: tuple[str, ...]
    acc: npt.NDArray[np.float64]
    flops: npt.NDArray[np.int64]
    params: npt.NDArray[np.int64]
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Entry:
    """A network as it stands in the file, unchecked."""

    where: str
    name: str
    acc: Sequence[Any]
    costs: dict[str, Any] = field(default_factory=dict)


def read_json_truth(path: Path, tree: dict[str, Any]) -> OtherTruth | None:
    """Read what a JSON file holds.

    Returns:
        ``None`` if its entries are objects, as those of Channel-Bench-Macro are.

    Raises:
        UserError: a wrong entry; names the first and says how many there are.
    """
    accuracies = {key: value for key, value in tree.items() if key not in BESIDE}
    if isinstance(tree.get("acc"), dict):
        others = [key for key in accuracies if key != "acc"]
        if others:
            raise UserError(f"{path}: key {others[0]!r} beside 'acc' is none of {', '.join(BESIDE)}")
        accuracies = tree["acc"]
        if not accuracies:
            raise UserError(f"{path}: 'acc' holds no widths")
    elif not accuracies or isinstance(next(iter(accuracies.values())), dict):
        return None
    entries = [_Entry(str(path), name, value if isinstance(value, list) else [value]) for name, value in accuracies.items()]
    about = tree.get("about")
    meta = tree.get("meta")
    return _checked(entries, (meta if isinstance(meta, dict) else {}) | ({} if about is None else {"about": about}))


def read_csv_truth(path: Path) -> OtherTruth:
    """Read a CSV file.

    Raises:
        UserError: missing, not CSV, wrong columns, or a wrong line; names the first and says how many there are.
    """
    text = read_text(path, CSV_FORM)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error}); expected {CSV_FORM}") from error
    if not lines:
        raise UserError(f"{path}: is empty; expected {CSV_FORM}")
    header = [name.lower() for name in lines[0][1]]
    seeds = _accuracy_columns(path, header)
    if len(lines) == 1:
        raise UserError(f"{path}: holds no widths below its header")
    entries = []
    for number, cells in lines[1:]:
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise UserError(f"{where}: has {len(cells)} cells, the header has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        costs = {cost: _number(row[cost]) for cost in COSTS if cost in row}
        entries.append(_Entry(where, row["widths"], [_number(row[seed]) for seed in seeds], costs))
    return _checked(entries, {})


def _accuracy_columns(path: Path, header: Sequence[str]) -> list[str]:
    """The columns with accuracies: one, or one per seed."""
    seeds = [name for name in header if re.fullmatch(r"acc(uracy)?(_\d+)?", name)]
    twice = [name for name, count in Counter(header).items() if count > 1]
    unknown = [name for name in header if name not in ("widths", *COSTS, *seeds)]
    if unknown:
        raise UserError(f"{path}: column {unknown[0]!r} is not known; expected {CSV_FORM}")
    if twice:
        raise UserError(f"{path}: column {twice[0]!r} stands there twice")
    if "widths" not in header or not seeds:
        raise UserError(f"{path}: no column {'accuracy' if 'widths' in header else 'widths'!r}; expected {CSV_FORM}")
    kinds = {name.rstrip("0123456789") for name in seeds}
    if len(kinds) > 1:
        raise UserError(
            f"{path}: columns {seeds[0]!r} and {seeds[-1]!r}: expected one accuracy, or 'accuracy_0', 'accuracy_1', ... of seeds"
        )
    return seeds


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _checked(entries: Sequence[_Entry], meta: dict[str, Any]) -> OtherTruth:
    """The entries as arrays, if nothing is wrong with them."""
    first = entries[0]
    separator = ":" if ":" in first.name else "-"
    length = len(first.name.split(separator))
    known: set[str] = set()
    wrong = []
    for entry in entries:
        reason = _fault(entry, separator, length, len(first.acc))
        if entry.name in known:
            reason = "stands there twice"
        known.add(entry.name)
        if reason:
            wrong.append((entry, reason))
    if wrong:
        entry, reason = wrong[0]
        raise UserError(f"{entry.where}: {entry.name!r} {reason} ({len(wrong)} of {len(entries)} entries are wrong)")
    acc = np.array([entry.acc for entry in entries], dtype=np.float64)
    are_fractions = bool(acc.max() <= 1)
    flops, params = (np.array([entry.costs.get(cost, 0) for entry in entries], dtype=np.int64) for cost in COSTS)
    read_as = AS_FRACTIONS if are_fractions else "per cent, for not all are 1 or less"
    return OtherTruth(
        tuple(entry.name for entry in entries), acc * 100 if are_fractions else acc, flops, params, meta | {"accuracy": read_as}
    )


def _fault(entry: _Entry, separator: str, length: int, seeds: int) -> str | None:
    """What is wrong with one entry, if anything."""
    channels = entry.name.split(separator)
    if len(channels) < 2 or not all(re.fullmatch("[1-9][0-9]{0,8}", number) for number in channels):
        return f"is not a list of channel counts such as {separator.join(('16', '4', '12'))!r}"
    if len(channels) != length:
        return f"has {len(channels)} channel counts, the first entry has {length}"
    wrong = [value for value in entry.acc if not is_accuracy(value)]
    if wrong:
        return f"has the accuracy {wrong[0]!r}: expected a number, in per cent or from 0 to 1"
    if len(entry.acc) != seeds or not seeds:
        return f"has accuracies of {len(entry.acc)} seeds, the first entry of {seeds}"
    for cost, value in entry.costs.items():
        if not is_cost(value):
            return f"has the {cost} {value!r}: expected a positive integer"
    return None
