"""Worker processes: they leave Ctrl-C to their parent, end when it ends, however it ends, and when one dies that is noticed."""

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from threading import Thread, current_thread, main_thread
from typing import Any, NoReturn

from bcnet.errors import Interrupted, Stopped, UserError

GRACE_SECONDS = 10.0  # for a worker that was asked to stop


def begin_worker() -> None:
    """What every worker process does first: leave signals of the terminal to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    connection.wait([parent])
    os._exit(1)


def end_with_launcher() -> None:
    """End this process when the one that started it is gone: torchrun, when it is killed, takes nobody with it."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End this process without taking Python apart.

    Once it was replicated, a model keeps gloo's threads alive, also after the process group is destroyed; one that lets go of its last
    tensor while Python is being taken apart aborts the process, rarely, and everything was done already.
    """
    atexit._run_exitfuncs()  # what was registered runs all the same
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Worker:
    """A process that works off tasks, one after the other.

    Args:
        start: called in it, gives the function that does a task; both must be importable.
    """

    def __init__(self, start: Callable[[], Callable[[Any], Any]]) -> None:
        context = get_context("spawn")
        self.channel, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, start))
        with _without_ctrl_c():
            self.process.start()
        there.close()

    def receive(self) -> Any:
        """What it says next: ``None`` when it has started, then what every task gives.

        Raises:
            UserError: it died.
            Exception: what a task raised.
        """
        try:
            result, error, trace = self.channel.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(GRACE_SECONDS)
            raise UserError(f"a worker process died ({_cause(self.process.exitcode)})") from None
        if error is not None:
            raise error from (None if isinstance(error, UserError) else RuntimeError(f"in a worker process:\n{trace}"))
        return result

    def send(self, task: Any) -> None:
        """Give it a task; if it is dead, `receive` says so."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send(task)


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as when memory runs out: fewer workers need less" if name == "SIGKILL" else name


def end_workers(workers: Sequence[Worker], seconds: float = GRACE_SECONDS) -> None:
    """End processes: by SIGTERM, then, after some seconds, by force."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.perf_counter() + seconds
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.perf_counter()))
        worker.process.kill()
        worker.process.join()
        worker.channel.close()


def work_off(start: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], count: int) -> Generator[Any, None, None]:
    """Do tasks in several processes.

    Args:
        start: as of `Worker`.
        tasks: what each is given.
        count: processes.

    Returns:
        Results, in order of completion.

    Raises:
        UserError: a worker died.
        Exception: what a task raised.
    """
    waiting = list(tasks)[::-1]
    workers: list[Worker] = []
    try:
        most = 60 if sys.platform == "win32" else count  # Windows waits for no more than 63 things
        for _ in range(min(count, len(waiting), most)):
            workers.append(Worker(start))
        busy = {worker.channel: worker for worker in workers}
        while busy:
            for channel in connection.wait(list(busy)):
                worker = busy[channel]  # type: ignore[index]
                result = worker.receive()
                if waiting:
                    worker.send(waiting.pop())
                else:
                    del busy[worker.channel]
                if result is not None:
                    yield result
    finally:
        end_workers(workers)


def _work(channel: Any, start: Callable[[], Callable[[Any], Any]]) -> None:
    begin_worker()
    try:
        work = start()
        channel.send((None, None, ""))
        while True:
            task = channel.recv()
            channel.send((work(task), None, ""))
    except (EOFError, BrokenPipeError, ConnectionResetError, Interrupted, Stopped):
        return  # the parent is gone, or asked to stop, maybe after the last step of a training
    except Exception as error:
        channel.send((None, error, traceback.format_exc()))


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ctrl-C does not reach a process that is started meanwhile, not even before its first line: ignoring is inherited."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
