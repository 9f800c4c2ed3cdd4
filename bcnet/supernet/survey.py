"""What can be searched in many models, one after the other: each in a process that may crash or take too long."""

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bcnet.errors import UserError, first_line
from bcnet.files import read_table, write_text
from bcnet.locks import locked
from bcnet.models.factory import build_model
from bcnet.processes import Worker, end_workers
from bcnet.space.channels import countable
from bcnet.space.cost import CostTable
from bcnet.space.widths import Space
from bcnet.supernet.proof import trace
from bcnet.supernet.supernet import Supernet


@dataclass(frozen=True)
class SurveyRow:
    """What one model is like.

    Attributes:
        model: its name.
        asked: ``CxHxW`` that was asked for.
        input: ``CxHxW`` that it was looked at with: its usual one where it does not take what was asked for.
        groups: number of groups; 0 if it was refused.
        share: part of the multiply-adds that lies in layers with channels that are searched.
        narrowest: multiply-adds of the narrowest network, relative to the model's.
        flops: multiply-adds of the model.
        counter: the same by PyTorch's own counter.
        equal: whether both agree, for the model, the narrowest and a random width vector.
        seconds: that tracing and proof took.
        fixed: layers that stay whole.
        reasons: why, with the number of layers, most frequent first.
        refusal: why nothing can be searched.
    """

    model: str
    asked: str
    input: str
    groups: int = 0
    share: float = 0.0
    narrowest: float = 1.0
    flops: int = 0
    counter: int = 0
    equal: bool = False
    seconds: float = 0.0
    fixed: int = 0
    reasons: str = ""
    refusal: str = ""


def survey(
    names: Sequence[str], shape: tuple[int, int, int], table: Path, *, limit: float = 300.0, tick: Callable[[int, SurveyRow], None]
) -> list[SurveyRow]:
    """Look at models, each for a limited time, and write a CSV row each; rows that are there already are kept.

    Args:
        names: of models, as `build_model` takes them.
        shape: ``(C, H, W)`` of one image, where the model takes it; else its usual size is tried.
        table: CSV file.
        limit: seconds for one model.
        tick: called with the number of models done and the last row.

    Raises:
        UserError: the table was made with images of another size, or another process is writing it.
    """
    with locked(table):
        return _survey(names, shape, table, limit, tick)


def _survey(
    names: Sequence[str], shape: tuple[int, int, int], table: Path, limit: float, tick: Callable[[int, SurveyRow], None]
) -> list[SurveyRow]:
    known = {row.model: row for row in read_survey(table)} if table.exists() else {}
    for other in {row.asked for row in known.values()} - {_text(shape)}:
        raise UserError(f"{table} was made with --input {other}, not {_text(shape)}; give another folder with --out")
    left = [name for name in names if name not in known]
    _write(table, list(known.values()))  # without a row that was cut off
    for row in _rows(left, shape, limit):
        known[row.model] = row
        _write(table, list(known.values()))
        tick(len(names) - len(left) + left.index(row.model) + 1, row)
    return [known[name] for name in names]


def read_survey(table: Path) -> list[SurveyRow]:
    """The rows of a CSV file; one that was cut off while it was written is left out.

    Raises:
        UserError: it is no such file.
    """
    kinds: dict[str, Callable[[str], Any]] = {field.name: str for field in fields(SurveyRow)}
    kinds |= {"groups": int, "flops": int, "counter": int, "fixed": int, "share": float, "narrowest": float, "seconds": float}
    kinds["equal"] = lambda text: text == "True"
    header, *rows = read_table(table, "the table of a survey") or [list(kinds)]
    try:
        return [
            SurveyRow(**{key: kinds[key](value) for key, value in zip(header, row, strict=True)}) for row in rows if len(row) == len(header)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{table}: damaged ({first_line(error)}); delete it to start anew") from error


def _write(table: Path, rows: Sequence[SurveyRow]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SurveyRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(table, text.getvalue())


def look_at(name: str, shape: tuple[int, int, int]) -> SurveyRow:
    """Trace and prove one model, and hold its multiply-adds against PyTorch's counter."""
    started = time.perf_counter()
    text = _text(shape)
    try:
        model = build_model(name, 10)
        space = trace(model, shape)
    except UserError as error:
        return SurveyRow(name, text, text, seconds=round(time.perf_counter() - started, 1), refusal=first_line(error))
    seconds = round(time.perf_counter() - started, 1)
    costs, supernet = CostTable(space), Supernet(model, space)
    rng = np.random.default_rng(0)
    every = space.full, space.narrowest, space.sample(rng)
    pairs = [(costs.one(widths, "flops"), count_flops(supernet.extract(widths), shape)) for widths in every]
    flops = int(pairs[0][0])
    reasons = Counter(why for _, why in space.fixed)
    return SurveyRow(
        name,
        text,
        text,
        groups=len(space.groups),
        share=round(searched_share(space), 4),
        narrowest=round(pairs[1][0] / flops, 4),
        flops=flops,
        counter=pairs[0][1],
        equal=all(a == b for a, b in pairs),
        seconds=seconds,
        fixed=len(space.fixed),
        reasons="; ".join(f"{why} ({number})" for why, number in reasons.most_common()),
    )


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def searched_share(space: Space) -> float:
    """The part of the full model's multiply-adds that lies in layers with channels that are searched."""
    layers = tuple(layer for layer in space.layers if layer.is_searched)
    searched = CostTable(Space(space.groups, layers)).one(space.full, "flops")
    return float(searched / CostTable(space).one(space.full, "flops"))


def count_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one image by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), countable(network), counter:
        network.eval()(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


def _rows(names: Sequence[str], shape: tuple[int, int, int], limit: float) -> Iterator[SurveyRow]:
    worker: Worker | None = None
    try:
        for name in names:
            if worker is None:
                worker = Worker(partial(_begin, shape, torch.get_num_threads()))
                worker.receive()  # imports are done
            worker.send(name)
            why = f"it took longer than {limit:g} s"
            try:
                row = worker.receive() if worker.channel.poll(limit) else None
            except UserError:
                row, why = None, "its process died"
            if row is None:
                end_workers([worker], 0.0)
                worker = None
                row = SurveyRow(name, _text(shape), _text(shape), refusal=why)
            yield row
    finally:
        if worker is not None:
            end_workers([worker], 0.0)


def _begin(shape: tuple[int, int, int], threads: int) -> Callable[[str], SurveyRow]:
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    return partial(_look, shape)


def _look(shape: tuple[int, int, int], name: str) -> SurveyRow:
    """As `look_at`, with a model's usual input where it does not take the one that was asked for; never raises."""
    from bcnet.models.factory import default_input

    try:
        row = look_at(name, shape)
        if "cannot be run" in row.refusal and shape != default_input(name):
            row = replace(look_at(name, default_input(name)), asked=_text(shape))
    except Exception as error:  # a defect of ours, which the table must show
        row = SurveyRow(name, _text(shape), _text(shape), refusal=f"DEFECT {type(error).__name__}: {first_line(error)}")
    return row
