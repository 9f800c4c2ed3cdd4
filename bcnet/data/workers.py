"""Batches that worker processes make ahead of time; what they make follows from the step alone, however many there are."""

import signal
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bcnet.errors import UserError, first_line
from bcnet.processes import begin_worker

AHEAD = 3  # batches that every worker makes ahead of time


class Maker(Protocol):
    """Makes batch number ``step``: uint8 images ``(n, C, H, W)`` and labels ``(n,)``."""

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch, the same one whenever it is asked for."""


class Prefetched:
    """Asks a maker for one batch after the other, ahead of time and in other processes.

    Args:
        make: makes a batch; it is copied to the workers, and raises `UserError` for what a user must know.
        workers: how many processes; 0: this one makes them.
        pin: put batches where a GPU can fetch them.
    """

    def __init__(self, make: Maker, workers: int, *, pin: bool = False) -> None:
        self._make, self._workers, self._pin = make, workers, pin
        self._batches: Iterator[Any] | None = None
        self._next = -1

    def batch(self, step: int, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Batch number ``step``; asked for in order it is there already.

        Args:
            step: which.
            last: of a fixed set: the number of batches.

        Raises:
            UserError: an image cannot be read, or a worker died.
        """
        if self._workers == 0:
            return self._make(step)
        if self._batches is None or step != self._next:
            self._batches = self._start(step, last)
        self._next = step + 1
        try:
            made = _next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:  # of a worker that was killed: missed, or its end of a connection closed
            self.close()
            raise UserError(f"a worker that reads images died ({first_line(error)}); less memory is needed with fewer workers") from error
        if isinstance(made, _Failure):
            self.close()
            raise UserError(made.text)
        images, labels = made
        return images, labels

    def close(self) -> None:
        """End the workers."""
        self._batches = None

    def _start(self, step: int, last: int | None) -> Iterator[Any]:
        self.close()
        loader: DataLoader[Any] = DataLoader(
            _Made(self._make),
            batch_size=None,
            sampler=_Steps(step, last),
            num_workers=self._workers,
            prefetch_factor=AHEAD,
            pin_memory=self._pin,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else a number is drawn from the global one
        )
        return _begun(loader)


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator whose dead workers are noticed by who waits for a batch.

    PyTorch's handler of SIGCHLD raises wherever the program happens to be; without it a dead worker is noticed within five seconds.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches


def _next(batches: Iterator[Any]) -> Any:
    while True:
        try:
            return next(batches)
        except InterruptedError:  # a signal on Windows, which whoever trains has noted; nothing was taken yet
            continue


class _Failure:
    """What an exception says, on its way from a worker."""

    def __init__(self, text: str) -> None:
        self.text = text


class _Made(Dataset[Any]):
    def __init__(self, make: Maker) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Any:
        try:
            return self._make(step)
        except UserError as error:
            return _Failure(str(error))


class _Steps(Sampler[int]):
    def __init__(self, first: int, last: int | None) -> None:
        self._first, self._last = first, last

    def __iter__(self) -> Iterator[int]:
        step = self._first
        while self._last is None or step < self._last:
            yield step
            step += 1


def _start_worker(number: int) -> None:
    begin_worker()
