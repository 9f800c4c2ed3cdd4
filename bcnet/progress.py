"""What people are told while they wait: a bar on a terminal, a line now and then in a log, a note where something is unusual."""

import sys
import time
from functools import cache
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bcnet.distributed import process_rank
from bcnet.formatting import duration

_LOG_SECONDS = 30.0


@cache  # so that each message is printed once
def notice(message: str) -> None:
    """Tell people on stderr what they would otherwise not notice, once per message and process, on rank 0 only."""
    if process_rank() == 0:
        print(f"bcnet: note: {message}", file=sys.stderr, flush=True)


class ProgressBar:
    """Shows how far a loop is, what matters in it, and the time left; silent without a label, and on ranks other than 0.

    Args:
        label: what is running; empty: nothing is shown.
        total: steps in all.
        done: steps already done by an earlier process.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._start, self._first = time.monotonic(), done
        self._shown = self._start
        self._fields = ""
        self._bar: Progress | None = None
        self._speaks = bool(label) and process_rank() == 0
        if self._speaks and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), transient=True)
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def rate(self) -> float:
        """Steps per second since the start of this process's work."""
        return (self.done - self._first) / max(1e-9, time.monotonic() - self._start)

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` steps are done in all; ``note`` is shown beside the rate."""
        self.done, self._fields = done, note or self._fields
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=done, note=self._fields)
        elif self._speaks and now - self._shown >= _LOG_SECONDS:
            self._shown = now
            seconds = (now - self._start) / max(1, done - self._first) * (self.total - done)
            parts = [f"{self.label}: {done}/{self.total}", self._fields, f"{duration(seconds)} left"]
            text = ", ".join(part for part in parts if part)
            print(text, file=sys.stderr, flush=True)
