"""What the commands share: the application, its options, the process around a command."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from bcnet.errors import Interrupted, Stopped, UserError, stop_behind
from bcnet.version import __version__

if TYPE_CHECKING:
    from bcnet.run import Run
    from bcnet.space.widths import Space, Widths

MOST_WIDTHS = 1_000_000
_SAMPLERS = ("random", "spread")


class _Commands(TyperGroup):
    """All commands: whatever asks one to stop is said in one line, which typer would not do."""

    def invoke(self, ctx: Any) -> Any:
        Stopped.last = None
        try:
            return super().invoke(ctx)
        except Interrupted:
            raise
        except BaseException as error:
            if (stop := stop_behind(error)) is None:
                raise
            raise Interrupted.by(stop) from None


app = typer.Typer(
    name="bcnet",
    cls=_Commands,
    help="Network width search: how many channels should every layer of a CNN have?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=5.", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory made by 'bcnet train'.")]
WIDTHS_HELP = (
    "One width string or its channel counts (8-24-16), a file with one per line, full, random:N (always the same N), "
    "spread:N (from narrow to wide), or all."
)
WidthsOption = Annotated[str, typer.Option("--widths", metavar="W", help=WIDTHS_HELP)]
OneWidth = Annotated[
    str,
    typer.Option("--widths", metavar="W", help="One width string or its channel counts, best (of the last search), full or uniform=0.5."),
]
TruthOption = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="Results_MobileNet.json, a CSV of channel counts and accuracy; or channel_bench_digits, which is built in."
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code that a config, run or list names, from outside bcnet.")]
Say = Callable[..., None]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"bcnet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Network width search: how many channels should every layer of a CNN have?"""


GOES_ON = "the same command goes on where it was"
RESUMES = "continue with --resume"


@contextmanager
def stoppable(then: str = GOES_ON) -> Iterator[None]:
    """Say how to go on, where a signal asks to stop.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; what was finished is on disk.
    """
    try:
        yield
    except Interrupted as stopped:  # of a training, which says how far it went
        raise Interrupted(f"{stopped}; {then}", stopped.signal) from None
    except BaseException as error:
        if (stop := stop_behind(error)) is None:
            raise
        raise Interrupted.by(stop, then) from None


@contextmanager
def runtime(device: str = "auto", *, then: str = GOES_ON) -> Iterator[Say]:
    """Prepare the process (allocator, torchrun) and give a print that speaks on rank 0 only.

    Args:
        device: that is computed on.
        then: how to go on after a signal.

    Raises:
        Interrupted: as `stoppable` does.
    """
    from bcnet.distributed import process_group, process_rank
    from bcnet.machine import resolve_device, tune_malloc

    tune_malloc()
    with stoppable(then), process_group(resolve_device(device)):
        yield (lambda *args, **kwargs: console.print(*args, **kwargs) if process_rank() == 0 else None)


@contextmanager
def opened(folder: Path, overrides: Sequence[str] | None, trust: bool) -> "Iterator[tuple[Run, Say]]":
    """A trained run, in a prepared process."""
    from bcnet.run import Run

    run = Run.open(folder, overrides or (), trust=trust)
    with runtime(run.config.device) as say:
        trainer = run.trained
        if trainer.step < trainer.total_steps:
            say(f"note: the training of {folder} stands at step {trainer.step:,} of {trainer.total_steps:,}")
        yield run, say


def finish(run: "Run", say: Say, *, then: str = "") -> None:
    """Write the page of a run, on rank 0, and name the command that most would give next."""
    from bcnet.distributed import process_rank
    from bcnet.report.run_page import write_run_page

    if process_rank() == 0:
        say(f"page: {write_run_page(run)}")
        if then:
            say(f"next: {then}")


def read_widths(text: str, space: "Space") -> "list[Widths]":
    """Different width vectors; see `read_named_widths`."""
    return list(dict.fromkeys(read_named_widths(text, space).values()))


def read_named_widths(text: str, space: "Space") -> "dict[str, Widths]":
    """Width vectors by their width strings; lists of channel counts are called what they were called.

    Raises:
        UserError: see `_read_widths`.
    """
    from bcnet.files import is_file

    path = Path(text)
    if text.partition(":")[0] not in _SAMPLERS and is_file(path):
        return _read_widths_file(path, space)
    widths = _read_widths(text, space)
    return {text: widths[0]} if _is_list(text, space) else {space.encode(one): one for one in widths}


def _read_widths(text: str, space: "Space") -> "list[Widths]":
    """Width vectors from ``all``, ``random:N``, ``spread:N``, or one width string.

    Raises:
        UserError: no such file, a string that is not of the space, more than the space holds or more than a million.
    """
    sampler, colon, count = text.partition(":")
    if colon and sampler in _SAMPLERS:
        if not (count.isascii() and count.isdigit()):
            raise UserError(f"--widths {text}: {count!r} is not a number of width vectors")
        if not 0 < int(count) <= min(space.size, MOST_WIDTHS):
            raise UserError(f"--widths {text}: the space has {space.size:,} width vectors, and {MOST_WIDTHS:,} is the most")
        import numpy as np

        from bcnet.space.sampling import balanced_sample, spread_sample

        if sampler == "spread":
            return spread_sample(space, int(count), np.random.default_rng(0))
        return balanced_sample(space, int(count), seed=0)
    if text == "all":
        if space.size > MOST_WIDTHS:
            raise UserError(f"--widths all: {space.summary()}, more than {MOST_WIDTHS:,}; give a file with some of them")
        return list(space.enumerate())
    if os.sep in text or "." in text:
        raise UserError(f"--widths {text}: no such file")
    return [read_width_string(text, space)]


def named_widths_of_run(text: str, run: "Run") -> "dict[str, Widths]":
    """Width vectors for a run by their names: as `read_named_widths`, and what `widths_of_run` knows beside."""
    if text == "best" or text.startswith("uniform="):
        widths = widths_of_run(text, run)
        return {run.space.encode(widths): widths}
    return read_named_widths(text, run.space)


def widths_of_run(text: str, run: "Run") -> "Widths":
    """One width vector for a run: ``best`` of its last search, ``uniform=0.5`` (all groups alike, at most half of the FLOPs), or a string.

    Raises:
        UserError: there was no search, the share is none, or the string is not of the space.
    """
    if text == "best":
        record = run.search_record()
        if record is None:
            raise UserError(f"--widths best: {run.folder} has no search yet; {run.search_command}")
        return run.space.decode(record.best.widths)
    if text.startswith("uniform="):
        from bcnet.space.cost import uniform_widths

        return uniform_widths(run.costs, f"flops={text.removeprefix('uniform=')}")
    return read_width_string(text, run.space)


def read_width_string(text: str, space: "Space") -> "Widths":
    """One width vector: ``full``, a width string, or a list of channel counts where it cannot be taken for one.

    Raises:
        UserError: it is none of these.
    """
    from bcnet.space.channel_strings import read_channel_string

    if text == "full":
        return space.full
    return read_channel_string(text, space) if _is_list(text, space) else space.decode(text)


def _is_list(text: str, space: "Space") -> bool:
    """Whether this is a list of channel counts, and no sampler such as ``random:50``."""
    from bcnet.space.channel_strings import is_channel_string

    return text.partition(":")[0] not in _SAMPLERS and is_channel_string(text, space)


def _read_widths_file(path: Path, space: "Space") -> "dict[str, Widths]":
    from bcnet.files import read_text

    lines = [line.strip() for line in read_text(path, "a width string a line").splitlines()]
    widths: dict[str, Widths] = {}
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            try:
                one = read_width_string(line, space)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            widths[line if _is_list(line, space) else space.encode(one)] = one
    if not widths:
        raise UserError(f"--widths {path}: the file holds no width strings")
    return widths
