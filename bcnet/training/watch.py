"""What a training says of itself while it runs: rows of numbers, to a CSV file and to those who want to watch elsewhere."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bcnet.distributed import process_rank
from bcnet.errors import UserError, first_line
from bcnet.files import read_table, write_text
from bcnet.lines import append_line
from bcnet.progress import notice

Row = Mapping[str, float]


class Watcher(Protocol):
    """Is told how a training goes."""

    def begin(self, step: int) -> None:
        """The training begins, or goes on, at a step; what was told of later ones did not happen."""

    def tell(self, step: int, row: Row) -> None:
        """Some numbers of a step, by name."""


class CsvFile:
    """Rows in a CSV file, one per look; a training that is resumed goes on where it was.

    Args:
        path: of the file.
        columns: names that a row may have; others are an error.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, ("step", *columns)

    def begin(self, step: int) -> None:
        """Keep the rows up to this step."""
        kept = [self.columns, *(row for row in self._rows() if int(row[0]) <= step)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(kept)
        write_text(self.path, text.getvalue())

    def tell(self, step: int, row: Row) -> None:
        """Write a row; numbers that it has not are left empty."""
        assert set(row) <= set(self.columns)
        append_line(self.path, ",".join([str(step), *(f"{row[name]:.6g}" if name in row else "" for name in self.columns[1:])]))

    def _rows(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        try:
            rows = read_table(self.path, "the course of a training")
        except UserError as error:
            notice(f"{error}; it is begun anew")
            return []
        if rows[:1] != [list(self.columns)]:
            return []
        return [row for row in rows[1:] if len(row) == len(self.columns) and re.fullmatch("[0-9]{1,9}", row[0])]


def read_rows(path: Path) -> list[dict[str, float]]:
    """What a `CsvFile` was told, with the step under ``step``; nothing where there is no file.

    Args:
        path: of the file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return []
    what = "the course of a training"
    header, *rows = read_table(path, what) or [[]]
    try:
        return [{name: float(value) for name, value in zip(header, row, strict=True) if value} for row in rows]
    except ValueError as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); expected {what}") from error


class TensorBoard:
    """Rows as scalars for TensorBoard (``pip install 'bcnet[watch]'``).

    Raises:
        UserError: it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("watch: tensorboard is not installed: pip install 'bcnet[watch]', or leave it out") from error
        self._make: Any = SummaryWriter
        self._folder, self._writer = folder, None

    def begin(self, step: int) -> None:
        """Later steps of an earlier life are hidden."""
        self._writer = self._make(str(self._folder), purge_step=step + 1)

    def tell(self, step: int, row: Row) -> None:
        """Write every number as a scalar."""
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


class WeightsAndBiases:
    """Rows for Weights & Biases (``pip install 'bcnet[watch]'``); ``WANDB_MODE`` and ``WANDB_PROJECT`` tell it where.

    Raises:
        UserError: it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("watch: wandb is not installed: pip install 'bcnet[watch]', or leave it out") from error
        self._wandb: Any = wandb
        self._folder = folder

    def begin(self, step: int) -> None:
        """Go on with the run of this folder."""
        name = "-".join(self._folder.resolve().parts[-2:])
        self._wandb.init(dir=str(self._folder), id=name, name=name, resume="allow")

    def tell(self, step: int, row: Row) -> None:
        """Log a row."""
        self._wandb.log(dict(row), step=step)


WATCHERS: dict[str, Callable[[Path], Watcher]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def make_watchers(folder: Path, names: Sequence[str], columns: Sequence[str]) -> list[Watcher]:
    """A CSV file in a folder, and those that are asked for by name; none on ranks other than 0.

    Raises:
        UserError: one that is not installed.
    """
    if process_rank() != 0:
        return []
    return [CsvFile(folder / "progress.csv", columns), *(WATCHERS[name](folder) for name in names)]
