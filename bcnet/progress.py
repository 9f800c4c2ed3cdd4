"""What people are told while they wait: a bar on a terminal, a line now and then in a log, a note where something is unusual."""

import sys
import time
from functools import cache
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from bcnet.distributed import process_rank
from bcnet.formatting import duration

_LOG_SECONDS = 30.0
_FIRST_LINE_SECONDS = 5.0  # so that who reads a log knows within ten seconds what to expect


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
        self._start, self._first = time.perf_counter(), done
        self._stepped = self._start
        self._next_line = self._start + _FIRST_LINE_SECONDS
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
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), _TimeLeft(self), transient=True)
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
        return (self.done - self._first) / max(1e-9, time.perf_counter() - self._start)

    def seconds_left(self) -> float | None:
        """As long as the rest takes at the rate so far, ``None`` before the first step; counts down between steps."""
        if self.done <= self._first:
            return None
        per_step = (self._stepped - self._start) / (self.done - self._first)
        return max(0.0, per_step * (self.total - self.done) - (time.perf_counter() - self._stepped))

    def begin(self) -> None:
        """What was done until now is done once for all steps: the time left is not reckoned from it."""
        if self.done <= self._first:
            self._start = self._stepped = time.perf_counter()

    def skip(self, steps: int) -> None:
        """Count steps that need no work, as an earlier process did them; the time left is not reckoned from them."""
        self._first += steps
        self.update(self.done + steps)

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` steps are done in all; ``note`` is shown beside the rate."""
        if done > self.done:
            self._stepped = time.perf_counter()
        self.done, self._fields = done, note or self._fields
        now = time.perf_counter()
        if self._bar:
            self._bar.update(self._task, completed=done, note=self._fields)
        elif self._speaks and now >= self._next_line:
            self._next_line = now + _LOG_SECONDS
            left = self.seconds_left()
            parts = [f"{self.label}: {done}/{self.total}", self._fields, "" if left is None else f"{duration(left)} left"]
            text = ", ".join(part for part in parts if part)
            print(text, file=sys.stderr, flush=True)


class _TimeLeft(ProgressColumn):
    """Reckoned from all steps so far: rich's own column forgets them after half a minute, and steps may take longer."""

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        left = self.bar.seconds_left()
        return Text("-:--:--" if left is None else duration(left), style="progress.remaining")
