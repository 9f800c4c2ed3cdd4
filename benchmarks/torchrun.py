"""Stop, freeze and crowd a training of several processes, and see whether it ends with the same weights all the same.

    python benchmarks/torchrun.py [--ranks 2 4] [--steps 2000] [--cases CASE ...] [--out FOLDER]

Trains digits/bcnetv2_distilled by tools/train_supernet.py under torchrun, saving as often as the processes agree on anything. Case
``alone`` is left in peace. In the others all processes get SIGTERM or the launcher Ctrl-C at a random step, and the training
goes on with ``--resume``; or one process is frozen for some seconds; or other processes keep all cores busy; or two of
these. The final checkpoint must be that of ``alone`` to the last bit, for every number of processes by itself (they add up
gradients in another order). torchrun itself exits with 1 whenever it is stopped; what counts then is what its processes
say and exit with. Prints one JSON record; exits with 1 if any case fails. Linux only.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import compare_checkpoints

from bcnet.machine import environment
from bcnet.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent
STEPS_PER_EPOCH = 10  # of digits in batches of 64
FROZEN_SECONDS = 5.0
STUCK_SECONDS = 300.0  # without a new checkpoint: it hangs


@dataclass(frozen=True)
class Case:
    """What happens to a training.

    Attributes:
        stop: signal that stops it: SIGTERM to its processes, or SIGINT to the launcher, which is whom Ctrl-C reaches.
        frozen: whether one of its processes is frozen for a while.
        load: whether other processes keep the machine busy.
    """

    stop: signal.Signals | None = None
    frozen: bool = False
    load: bool = False


CASES = {
    "alone": Case(),
    "load": Case(load=True),
    "frozen": Case(frozen=True),
    "frozen-load": Case(frozen=True, load=True),
    "sigterm": Case(stop=signal.SIGTERM),
    "sigterm-load": Case(stop=signal.SIGTERM, load=True),
    "ctrl-c": Case(stop=signal.SIGINT),
    "ctrl-c-load": Case(stop=signal.SIGINT, load=True),
}


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="N", help="numbers of processes, divisors of 64")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, help="a new folder for runs, logs and torchrun.json")
    options = parser.parse_args()
    folder = (options.out or Path(tempfile.mkdtemp())).resolve()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"--out {folder}: is not empty; choose another folder")
    rows = []
    for ranks in options.ranks:
        for name in dict.fromkeys(["alone", *options.cases]):
            rows.append(run_case(name, ranks, options.steps, folder))
            print(f"{ranks} processes, {name}: {'passed' if rows[-1]['passed'] else 'FAILED'}", file=sys.stderr, flush=True)
    passed = all(row["passed"] for row in rows)
    record = {"ranks": options.ranks, "steps": options.steps, "cases": rows, "passed": passed, "environment": environment()}
    text = json.dumps(record, indent=1)
    print(text)
    if options.out:
        (folder / "torchrun.json").write_text(text + "\n")
    sys.exit(not passed)


def run_case(name: str, ranks: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train once, whatever happens; returns how it ended and what equals the training left in peace."""
    case, run, whole = CASES[name], folder / f"{ranks}-{name}", folder / f"{ranks}-alone"
    rng = random.Random(f"{ranks} {name}")
    target = rng.randrange(steps // 10, 7 * steps // 10)  # the step at which it happens
    lives, was_frozen = [], False
    with busy_machine(max(2, os.cpu_count() or 1) if case.load else 0):
        with Life(run, ranks, steps, number=1) as life:
            if case.stop or case.frozen:
                life.wait_for(target)
            if case.frozen:
                was_frozen = life.freeze(rng.randrange(ranks))
            if case.stop:
                life.stop(case.stop)
            lives.append(life.end(case.stop))
        if case.stop:
            with Life(run, ranks, steps, number=2) as life:
                lives.append(life.end())
    both_exist = checkpoint_step(run) > 0 and checkpoint_step(whole) > 0
    equal = compare_checkpoints(whole / "checkpoint.pt", run / "checkpoint.pt") if both_exist else {}
    passed = both_exist and all(equal.values()) and all(life["as_expected"] for life in lives) and was_frozen == case.frozen
    row: dict[str, Any] = {"ranks": ranks, "case": name, "passed": passed and checkpoint_step(run) == steps}
    return row | ({"at_step": target} if case.stop or case.frozen else {}) | {"lives": lives, "equal": equal}


class Life:
    """One torchrun from its start to its end; whatever is left of it is killed on leaving.

    Args:
        run: the run's folder; what it prints goes to ``RUN.NUMBER.log``.
        ranks: number of processes.
        steps: of the training.
        number: of this life of the run; the second resumes.
    """

    def __init__(self, run: Path, ranks: int, steps: int, *, number: int) -> None:
        self.run, self.ranks, self.begun = run, ranks, time.monotonic()
        self.log = run.with_name(f"{run.name}.{number}.log")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        settings = [f"train.epochs={steps / STEPS_PER_EPOCH}", "checkpoint_seconds=0.05", *(["--resume"] if number > 1 else [])]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [*launch, "tools/train_supernet.py", "digits/bcnetv2_distilled", "--out", str(run), *settings],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a Ctrl-C here does not reach it
            )

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes():
            send(process, signal.SIGKILL)
        self.launcher.kill()
        self.launcher.wait()

    def processes(self) -> list[int]:
        """The training's processes, by rank."""
        by_rank = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            except OSError:  # it is gone, or somebody else's
                continue
            ranks = [int(variable.partition(b"=")[2]) for variable in variables if variable.startswith(b"RANK=")]
            if ranks and str(self.run).encode() in arguments:
                by_rank[ranks[0]] = int(folder.name)
        return [by_rank[rank] for rank in sorted(by_rank)]

    def wait_for(self, step: int | None) -> None:
        """Wait until a step is saved, or else until the end or until nothing was saved for too long."""
        stood, since = -1, time.monotonic()
        while self.launcher.poll() is None and time.monotonic() - since < STUCK_SECONDS:
            now = checkpoint_step(self.run)
            if now > stood:
                stood, since = now, time.monotonic()
            if step is not None and now >= step:
                return
            time.sleep(0.1)

    def freeze(self, rank: int) -> bool:
        """Freeze one process for some seconds; returns whether it was there."""
        process = dict(enumerate(self.processes())).get(rank)
        if process is None or not send(process, signal.SIGSTOP):
            return False
        time.sleep(FROZEN_SECONDS)
        return send(process, signal.SIGCONT)

    def stop(self, number: signal.Signals) -> None:
        """Ask every process to stop, or the launcher, which asks them."""
        for process in [self.launcher.pid] if number == signal.SIGINT else self.processes():
            send(process, number)

    def end(self, stopped_by: signal.Signals | None = None) -> dict[str, Any]:
        """Wait for the end and say how it came."""
        self.wait_for(None)
        code = self.launcher.poll()
        row = {"exit_code": code, "seconds": round(time.monotonic() - self.begun, 1)}
        if stopped_by is None:
            return row | {"as_expected": code == 0}
        text = self.log.read_text(errors="replace")
        steps = [int(step) for step in re.findall(rf"stopped by {stopped_by.name}; saved at step (\d+)", text)]
        # torchrun lists exit codes unless it was stopped itself; once one process has left, it ends the others by SIGTERM
        codes = [int(value) for value in re.findall(r"^\s*exitcode\s*:\s*(-?\d+)", text, re.MULTILINE)]
        as_expected = code not in (None, 0) and set(codes) <= {128 + stopped_by, -signal.SIGTERM}
        as_expected = as_expected and steps == [checkpoint_step(self.run)]  # one line, of the first process
        return row | {"exit_codes_of_processes": codes, "saved_at": steps, "as_expected": as_expected}


def send(process: int, number: signal.Signals) -> bool:
    """Send a signal; returns whether the process was there."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """Keep so many cores busy; the processes end with this one, however that ends."""
    spin = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(1_000_000))"
    spinning = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def checkpoint_step(run: Path) -> int:
    """The step that a run's checkpoint stands at; 0 without one."""
    checkpoint = run / "checkpoint.pt"
    return int(load_checkpoint(checkpoint)["step"]) if checkpoint.exists() else 0


if __name__ == "__main__":
    main()
