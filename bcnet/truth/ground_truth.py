"""Ground truth: accuracies of networks trained one by one, in the JSON format of Channel-Bench-Macro.

``{"4432214": {"acc": [90.62, ...], "mean": ..., "std": ..., "params": ..., "flops": ...}, ...}``, accuracies in per cent,
one per seed; a ``"meta"`` entry may stand beside the widths. `bcnet.truth.other_truths` reads the files of other people's spaces.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet.errors import UserError
from bcnet.files import is_file, read_json, shipped
from bcnet.space.channel_strings import read_channel_string
from bcnet.space.cost import CostTable
from bcnet.space.widths import Space, Widths
from bcnet.truth.checks import is_accuracy, is_cost, is_number
from bcnet.truth.other_truths import AS_FRACTIONS, OtherTruth, read_csv_truth, read_json_truth

Floats = npt.NDArray[np.float64]
_SEPARATOR = re.compile("[-:]")


@dataclass(frozen=True)
class GroundTruth:
    """Accuracies and costs of many networks, in the order of the file.

    Attributes:
        names: width strings.
        acc: per-seed test accuracies in per cent, ``(N, S)``.
        known_flops: multiply-adds of one image, ``(N,)``, 0 where not known.
        known_params: ``(N,)``, 0 where not known.
        meta: what the file says of itself.
        one_index: whether width strings are one index each (see `is_one_index`); unset: as the names and ``meta`` tell.
        has_channels: whether width strings are channel counts, not indices.
    """

    names: tuple[str, ...]
    acc: Floats
    known_flops: npt.NDArray[np.int64]
    known_params: npt.NDArray[np.int64]
    meta: dict[str, Any]
    one_index: bool | None = None
    has_channels: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mean(self) -> Floats:
        """Mean accuracy over the seeds, ``(N,)``."""
        mean: Floats = self.acc.mean(1)
        return mean

    @property
    def flops(self) -> npt.NDArray[np.int64]:
        """Multiply-adds of one image, ``(N,)``; see `cost`."""
        return self.cost("flops")

    @property
    def params(self) -> npt.NDArray[np.int64]:
        """``(N,)``; see `cost`."""
        return self.cost("params")

    def cost(self, cost: str) -> npt.NDArray[np.int64]:
        """``flops`` or ``params`` of all networks, ``(N,)``.

        Raises:
            UserError: not known for all of them.
        """
        if self.unknown(cost):
            raise UserError(
                f"{cost} are not known for {self.unknown(cost):,} of {len(self):,} networks of the truth; "
                "a CSV truth may hold them, and for bcnet rank the 'costs' of the score file"
            )
        return self._known(cost)

    def unknown(self, cost: str) -> int:
        """For how many networks ``flops`` or ``params`` are not known."""
        return int((self._known(cost) == 0).sum())

    def _known(self, cost: str) -> npt.NDArray[np.int64]:
        return self.known_flops if cost == "flops" else self.known_params

    def with_costs(self, costs: Mapping[str, Sequence[float]], full: Any = None) -> "GroundTruth":
        """The same with FLOPs and params by width string, and those of the full model, where they were not known."""
        flops, params = (
            np.array(
                [own or int(costs[name][place]) if name in costs else own for name, own in zip(self.names, known, strict=True)], np.int64
            )
            for place, known in enumerate((self.known_flops.tolist(), self.known_params.tolist()))
        )
        return replace(self, known_flops=flops, known_params=params, meta={"full": full} | self.meta)

    def in_space(self, costs: CostTable) -> "GroundTruth":
        """The same by the width strings of a space, with the FLOPs and params of its model where they were not known.

        Raises:
            UserError: widths of another space, or costs that the model does not have; names the first and says how many there are.
        """
        widths = self.widths_in(costs.space)
        own = np.array([[costs.one(one, cost) for cost in ("flops", "params")] for one in widths], np.int64)
        stated = np.stack((self.known_flops, self.known_params), 1)
        wrong = np.flatnonzero(((stated != own) & (stated != 0)).any(1))
        if len(wrong):
            first, offenders = wrong[0], f"({len(wrong)} of {len(self)} differ)"
            there, here = (
                " and ".join(f"{value:,} {cost}" for value, cost in zip(row[first], ("FLOPs", "params"), strict=True) if value)
                for row in (stated, own)
            )
            raise UserError(
                f"the truth is of another model: {self.names[first]!r} has {there} in the truth, {here} in the model {offenders}"
            )
        names, one_index = tuple(map(costs.space.encode, widths)), len(costs.space.groups) == 1
        meta = {"full": {cost: costs.of_model(cost) for cost in ("flops", "params")}} | self.meta
        return replace(self, names=names, known_flops=own[:, 0], known_params=own[:, 1], meta=meta, one_index=one_index, has_channels=False)

    def widths_in(self, space: Space) -> list[Widths]:
        """The width vectors of a space that the width strings mean.

        Raises:
            UserError: one is of another space.
        """
        try:
            return [read_channel_string(name, space) if self.has_channels else space.decode(name) for name in self.names]
        except UserError as error:
            raise UserError(f"the truth is of another space: {error}") from error

    @cached_property
    def indices(self) -> npt.NDArray[np.int64]:
        """The numbers of the width strings, ``(N, groups)``: width indices, or channel counts."""
        return np.array([width_indices(name, self._has_one_index) for name in self.names], dtype=np.int64)

    @cached_property
    def _has_one_index(self) -> bool:
        return is_one_index(self.names, self.meta) if self.one_index is None else self.one_index

    def full_cost(self, cost: str) -> int:
        """FLOPs or params of the full model, as ``meta`` states them; else the largest of the file, which most files hold."""
        return int(self.meta["full"][cost]) if self.knows_full(cost) else int(self.cost(cost).max())

    def knows_full(self, cost: str) -> bool:
        """Whether ``meta`` states the FLOPs or params of the full model."""
        stated = self.meta.get("full")
        return isinstance(stated, dict) and is_number(stated.get(cost)) and stated[cost] >= 1

    @property
    def has_own_choices(self) -> bool:
        """Whether ``meta`` says that groups have lists of choices of their own, whose indices are no shares of the model."""
        config = self.meta.get("config")
        space = config.get("space") if isinstance(config, dict) else None
        return isinstance(space, dict) and bool(space.get("groups"))

    def rows(self, names: list[str], where: str) -> npt.NDArray[np.int64]:
        """Positions of the given width strings.

        Raises:
            UserError: one is not in the truth; names the first and says how many.
        """
        place = {name: number for number, name in enumerate(self.names)}
        absent = [name for name in names if name not in place]
        if absent:
            example = f"; the truth holds widths such as {self.names[0]!r}"
            example += ", channel counts: give a file of those to bcnet score --widths" if self.has_channels else ""
            raise UserError(f"{where}: {len(absent)} of {len(names)} widths are not in the truth, first {absent[0]!r}{example}")
        return np.array([place[name] for name in names], dtype=np.int64)

    def subset(self, rows: npt.NDArray[np.int64]) -> "GroundTruth":
        """The networks at the given positions."""
        names = tuple(self.names[row] for row in rows)
        flops, params = self.known_flops[rows], self.known_params[rows]
        return replace(self, names=names, acc=self.acc[rows], known_flops=flops, known_params=params, one_index=self._has_one_index)


CHANNEL_BENCH_DIGITS = "channel_bench_digits"  # all widths of digits/resnet, ten seeds each; ships with the package


def find_truth(name: str) -> Path:
    """The file for a path or for the name of the embedded benchmark.

    Raises:
        UserError: neither exists.
    """
    if name == CHANNEL_BENCH_DIGITS:
        return shipped(f"benchmarks/{name}.json")
    path = Path(name)
    if not is_file(path):
        raise UserError(
            f"{name}: no such file; expected ground truth such as Results_MobileNet.json, or {CHANNEL_BENCH_DIGITS}, which is built in"
        )
    return path


def load_ground_truth(path: Path) -> GroundTruth:
    """Read and check a ground-truth file: of Channel-Bench-Macro's form, or one of `bcnet.truth.other_truths`.

    Accuracies are fractions if none in the file is above 1 (and it is not of ``bcnet truth build``), else per cent.

    Raises:
        UserError: missing file, wrong form; names the first offending widths, the field, and how many offend.
    """
    if path.suffix.lower() == ".csv":
        return _of_channels(read_csv_truth(path))
    tree = read_json(path, 'ground truth such as {"4432214": {"acc": [90.6, 91.2], "params": 716234, "flops": 122923008}}')
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected an object of widths, found {type(tree).__name__}")
    other = read_json_truth(path, tree)
    if other is not None:
        return _of_channels(other)
    meta = tree.pop("meta", {})
    if not tree:
        raise UserError(f"{path}: holds no widths")
    meta = meta if isinstance(meta, dict) else {}
    first = _field(next(iter(tree.values())), "acc")
    seeds = len(first) if isinstance(first, list) else 0
    is_one = is_one_index(list(tree), meta)
    length = len(_digits(next(iter(tree)), is_one))
    faults = ((name, _fault(name, _digits(name, is_one), entry, seeds, length)) for name, entry in tree.items())
    wrong = [(name, reason) for name, reason in faults if reason]
    if wrong:
        name, reason = wrong[0]
        raise UserError(f"{path}: {name!r}: {reason} ({len(wrong)} of {len(tree)} entries are wrong)")
    entries = list(tree.values())
    acc = np.array([entry["acc"] for entry in entries], dtype=np.float64)
    if acc.max() <= 1 and "accuracy" not in meta:  # what states how it measured is in per cent
        acc, meta = acc * 100, meta | {"accuracy": AS_FRACTIONS}
    flops = np.array([entry["flops"] for entry in entries], dtype=np.int64)
    params = np.array([entry["params"] for entry in entries], dtype=np.int64)
    return GroundTruth(tuple(tree), acc, flops, params, meta)


def _of_channels(truth: OtherTruth) -> GroundTruth:
    return GroundTruth(truth.names, truth.acc, truth.flops, truth.params, truth.meta, has_channels=True)


def is_one_index(names: Sequence[str], meta: Mapping[str, Any]) -> bool:
    """Whether width strings are one index each, of a space of one group with ten bins or more.

    ``"12"`` alone could be two indices. Other names of the file tell (some have one digit, or a zero), or the config in its ``meta``.
    """
    if any(_SEPARATOR.search(name) or len(name) > 3 for name in names):
        return False
    config = meta.get("config")
    space = config.get("space") if isinstance(config, dict) else None
    bins = space.get("bins") if isinstance(space, dict) else None
    lengths = {len(name) for name in names}
    return (isinstance(bins, int) and bins >= 10) or (len(lengths) > 1 and 1 in lengths) or any("0" in name[1:] for name in names)


def width_indices(name: str, is_one: bool = False) -> list[int]:
    """The indices of a width string: ``"4432214"``, ``"12-7-20"`` (or with ``:``), or ``"12"`` where `is_one_index`."""
    return [int(digit) for digit in _digits(name, is_one)]


def _digits(name: str, is_one: bool) -> list[str]:
    return _SEPARATOR.split(name) if is_one or _SEPARATOR.search(name) else list(name)


def _field(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else None


def _fault(name: str, digits: Sequence[str], entry: Any, seeds: int, length: int) -> str | None:
    """What is wrong with one entry, if anything."""
    if not all(digit.isascii() and digit.isdigit() and int(digit) > 0 for digit in digits):
        return "is not a width string such as '4432214'"
    if len(digits) != length:
        return f"has {len(digits)} indices, the first entry has {length}"
    if not isinstance(entry, dict):
        return "is not an object with acc, params and flops"
    acc = entry.get("acc")
    if not isinstance(acc, list) or not acc or not all(is_accuracy(a) for a in acc):
        return f"field 'acc' is {acc!r}: expected a list of accuracies in per cent"
    if len(acc) != seeds:
        return f"field 'acc' holds {len(acc)} seeds, the first entry {seeds}"
    for field in ("params", "flops"):
        value = entry.get(field)
        if not is_cost(value):
            return f"field {field!r} is {value!r}: expected a positive integer"
    mean = entry.get("mean")
    if mean is not None and not (is_number(mean) and abs(mean - sum(acc) / len(acc)) < 0.01):
        return f"field 'mean' is {mean!r}, but the mean of 'acc' is {sum(acc) / len(acc):.4f}"
    return None
