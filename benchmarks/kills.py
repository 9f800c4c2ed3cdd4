"""Kill and stop every long command again and again, go on each time, and compare what it ends with: the same bits as undisturbed.

    python benchmarks/kills.py [--of train,score,...] [--by time,write,SIGINT,SIGTERM] [--kills 100] [--seed 0] [--out FOLDER]

``time`` is a SIGKILL at a random moment; ``write`` one in the middle of a write, or before a rename, link, removal, truncation or
fsync in the command's folder, by a library that stands before libc's own (Linux, with a C compiler). SIGINT and SIGTERM must end in
one line, exit code 130 or 143, and no process left. Each life is a fork of a process that has imported everything; ``ranks`` is two real
processes of torchrun. Files must be equal but for measured times, and nothing else may lie there. What an
end costs is how much longer all lives of a command took than one undisturbed, per end: work done again, and beginning anew. Prints a
row of a table per command and way; exits with 1 if anything is wrong.
"""

import argparse
import csv
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open

from bcnet.training.checkpoint import load_checkpoint

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
static char under[4096];
static long armed_at, seen;
void kills_arm(const char *folder, long at) { snprintf(under, sizeof under, "%s", folder); seen = 0; armed_at = at; }
long kills_seen(void) { return seen; }
static int within(const char *path) { return under[0] && path && !strncmp(path, under, strlen(under)); }
static int file_within(int file) {
  char link[64], path[4096];
  if (!under[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return within(path);
}
static int now(int is_ours) { return is_ours && ++seen == armed_at; }
static void end(void) { kill(getpid(), SIGKILL); pause(); }
#define REAL(name) static typeof(name) *real; if (!real) real = (typeof(name) *)dlsym(RTLD_NEXT, #name)
ssize_t write(int file, const void *bytes, size_t size) {
  REAL(write);
  if (now(file_within(file))) { real(file, bytes, size / 2); end(); }
  return real(file, bytes, size);
}
int fsync(int file) { REAL(fsync); if (now(file_within(file))) end(); return real(file); }
int ftruncate(int file, off_t size) { REAL(ftruncate); if (now(file_within(file))) end(); return real(file, size); }
int truncate(const char *path, off_t size) { REAL(truncate); if (now(within(path))) end(); return real(path, size); }
int rename(const char *from, const char *to) { REAL(rename); if (now(within(to))) end(); return real(from, to); }
int link(const char *from, const char *to) { REAL(link); if (now(within(to))) end(); return real(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(linkat); if (now(within(to))) end(); return real(a, from, b, to, flags);
}
int unlink(const char *path) { REAL(unlink); if (now(within(path))) end(); return real(path); }
"""
QUICK = ("train.epochs=12", "search.population=8", "search.evaluations=60", "retrain.epochs=3", "score.calibration_images=128")
OFTEN = "checkpoint_seconds=0.05"
ALONE = ("score.additive=null", "score.whole_layers=false")
DENSE = ("dense/digits", "weights.epochs=2", "architecture.start_epoch=1", "retrain.epochs=2", "derive.calibration_images=64")
MODELS = ("digits/resnet", "cifar/resnet20", "torchvision/mobilenet_v3_small", "torchvision/squeezenet1_1")
MEASURED = re.compile(r"seconds|speed|_ms$|^ms$|images_per_second|date|environment|versions|identity|sha256")
PROGRESS = re.compile(r"[^:]+: [\d,]+/[\d,]+")
RUN, DENSE_RUN, FOLDER = "RUN", "DENSE_RUN", "FOLDER"


@dataclass(frozen=True)
class Work:
    """A command.

    Attributes:
        arguments: of ``bcnet``; ``FOLDER`` stands for the folder it writes to, ``RUN`` and ``DENSE_RUN`` for trained runs in there.
        is_measured: it writes times, which are never the same.
        done: a file that says that it had ended, where the same command refuses to be given again (which removes what a kill left).
    """

    arguments: tuple[str, ...]
    is_measured: bool = False
    done: str = ""


WORK = {
    "train": Work(("train", "digits/bcnetv2", "--out", "FOLDER/run", "--resume", OFTEN, *QUICK)),
    "score": Work(("score", RUN, "--widths", "random:120", *ALONE)),
    "search": Work(("search", RUN, "--budget", "flops=0.5", *ALONE)),
    "retrain": Work(("retrain", RUN, "--widths", "22222", "--seeds", "0,1", OFTEN)),
    "extract": Work(("extract", RUN, "--widths", "22222", "--out", "FOLDER/network", "--formats", "none")),
    "fit": Work(("fit", "digits/resnet", "--config", "digits/base", "--out", "FOLDER/fit", "--seeds", "0,1", OFTEN, "retrain.epochs=3")),
    "truth": Work(
        (
            *("truth", "build", "digits/truth", "--out", "FOLDER/truth.json", "--widths", "random:10", "--seeds", "2", "--workers", "2"),
            *(OFTEN, "retrain.epochs=2"),
        ),
        done="truth.json",
    ),
    "compare": Work(
        (
            *("compare", "digits/bcnetv2", "digits/uniform", "--truth", "channel_bench_digits", "--out", "FOLDER/compare", "--seeds", "1"),
            *(OFTEN, "train.epochs=3", "score.calibration_images=64", "score.max_images=64"),
        ),
    ),
    "space": Work(("space", "--all", "FOLDER/models.txt", "--out", "FOLDER/survey", "--input", "3x32x32")),
    "latency": Work(
        ("latency", "digits/resnet", "--out", "FOLDER/table.json", "--input", "1x8x8", "--repeats", "2", "--networks", "40"),
        is_measured=True,
    ),
    "dense_latency": Work(("dense", "latency", "dense/digits", "--out", "FOLDER/grid.json", "--repeats", "2"), is_measured=True),
    "dense_train": Work(("dense", "train", *DENSE, "--budget", "flops=0.5", "--out", "FOLDER/dense", "--resume", OFTEN)),
    "dense_retrain": Work(("dense", "retrain", DENSE_RUN, "--seeds", "0,1", OFTEN)),
}
RANKS = "ranks"
WAYS = ("time", "write", "SIGINT", "SIGTERM")


@dataclass
class Outcome:
    """What became of a command under one way of ending it."""

    ends: int = 0
    chains: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    costs: list[float] = field(default_factory=list)  # seconds per end, of every run to the end


@dataclass(frozen=True)
class Life:
    """How one process ended: ``seconds`` from the signal if there was one, ``lived`` from its start."""

    code: int
    errors: str
    seconds: float
    lived: float
    events: int


class Killer:
    """Lives of commands, in forks of this process.

    Args:
        folder: where they work.
        shim: the library, loaded before libc's; unset: there is none.
    """

    def __init__(self, folder: Path, shim: ctypes.CDLL | None) -> None:
        self.folder, self.shim = folder, shim
        self.prepared = folder / "prepared"

    def prepare(self, names: Sequence[str]) -> None:
        """Train the runs that these commands work on."""
        self.prepared.mkdir(parents=True, exist_ok=True)
        (self.prepared / "models.txt").write_text("\n".join(MODELS) + "\n")
        wanted = {word for name in names if name in WORK for word in WORK[name].arguments}
        makers = {RUN: ["train", "digits/bcnetv2", "--out", RUN, *QUICK], DENSE_RUN: ["dense", "train", *DENSE, "--out", DENSE_RUN]}
        for arguments in (make for run, make in makers.items() if run in wanted and not Path(_placed([run], self.prepared)[0]).exists()):
            life = self.live(_placed(arguments, self.prepared))
            assert life.code == 0, life.errors

    def start(self, folder: Path) -> Path:
        """A folder with what commands work on."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.prepared, folder)
        return folder

    def live(
        self,
        arguments: Sequence[str],
        *,
        send: int = 0,
        after: float = 0.0,
        at: int = 0,
        under: Path | None = None,
        command: Sequence[str] = (),
    ) -> Life:
        """Run a command, in a fork or, given one, as a process of its own; maybe end it after some seconds, or at an event."""
        errors, events = self.folder / "errors.txt", self.folder / "events.txt"
        events.write_text("0")
        errors.write_text("")
        born = started = time.monotonic()
        if command:
            with errors.open("w") as file:
                pid = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=file, start_new_session=True).pid
        elif (pid := os.fork()) == 0:
            self._be(arguments, errors, events, at, under)
        status = None
        while status is None:
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
            if status is None and send and time.monotonic() - started >= after:
                asked = time.monotonic()
                for one in [pid, *(_descendants(pid) if command else [])]:
                    os.kill(one, send)
                _, status = os.waitpid(pid, 0)
                started = asked
            time.sleep(0.002)
        ended_at = time.monotonic()
        left = _wait_for_end(pid)
        text = errors.read_text() + (f"\nLEFT: {left}" if left else "")
        return Life(os.waitstatus_to_exitcode(status), text.strip(), ended_at - started, ended_at - born, int(events.read_text() or 0))

    def _be(self, arguments: Sequence[str], errors: Path, events: Path, at: int, under: Path | None) -> None:
        os.setsid()
        for number, target in ((1, os.devnull), (2, str(errors))):
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            if self.shim is not None and under is not None:
                self.shim.kills_arm(str(under).encode(), ctypes.c_long(at))
            from bcnet.__main__ import main

            main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        if self.shim is not None and under is not None:
            count = int(self.shim.kills_seen())
            self.shim.kills_arm(b"", ctypes.c_long(0))
            events.write_text(str(count))
        sys.stderr.flush()
        os._exit(code)


def _placed(arguments: Sequence[str], folder: Path) -> list[str]:
    names = {RUN: "run", DENSE_RUN: "dense_run"}
    return [str(folder / names[a]) if a in names else a.replace(FOLDER, str(folder)) for a in arguments]


def _wait_for_end(session: int, seconds: float = 20.0) -> list[int]:
    """Processes of a session that are still there after some seconds."""
    deadline = time.monotonic() + seconds
    while (left := _of_session(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _of_session(session: int) -> list[int]:
    return [pid for pid, (_, own) in _processes().items() if own == session]


def _descendants(pid: int) -> list[int]:
    children = [one for one, (parent, _) in _processes().items() if parent == pid]
    return children + [one for child in children for one in _descendants(child)]


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that has not ended."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if state != "Z":
                found[int(folder.name)] = int(parent), int(session)
    return found


def try_command(killer: Killer, name: str, way: str, kills: int, rng: random.Random) -> Outcome:
    """End a command again and again until it has been ended so often, and compare every time that it came to its end."""
    work, outcome = WORK[name], Outcome()
    whole = killer.folder / f"whole-{name}"
    killer.start(whole)
    life = killer.live(_placed(work.arguments, whole), under=whole)
    if life.code:
        return Outcome(wrong=[f"undisturbed: {life.errors[-300:]}"])
    expected = contents(whole, is_measured=work.is_measured)
    while outcome.ends < kills and len(outcome.wrong) < 3:
        folder, before, lived = killer.start(killer.folder / f"killed-{name}"), outcome.ends, 0.0
        for _ in range(200):
            if work.done and (folder / work.done).exists() and not (folder / f"{work.done}.partial").exists():
                refused = killer.live(_placed(work.arguments, folder))
                outcome.wrong += [] if refused.code == 2 else [f"given again when it was done: {refused.code} {refused.errors[-300:]}"]
                break
            options: dict[str, Any] = {"at": rng.randint(1, life.events), "under": folder} if way == "write" else {}
            if way != "write":
                number = signal.SIGKILL if way == "time" else signal.Signals[way]
                options = {"send": number, "after": rng.uniform(0.1, 0.1 + 0.9 * life.seconds)}
            if outcome.ends >= kills:
                options = {}
            ended = killer.live(_placed(work.arguments, folder), **options)
            lived += ended.lived
            if problem := _problem(ended, way):
                outcome.wrong.append(problem)
                break
            if ended.code == 0:
                break
            outcome.ends += 1
            outcome.slowest = max(outcome.slowest, ended.seconds if "send" in options else 0.0)
        outcome.chains += 1
        if outcome.ends > before:
            outcome.costs.append((lived - life.lived) / (outcome.ends - before))
        found = contents(folder, is_measured=work.is_measured)
        outcome.wrong += [f"chain {outcome.chains}: {what}" for what in differences(expected, found)][:3]
    return outcome


def _problem(life: Life, way: str) -> str:
    """What is wrong with the way in which a process ended."""
    lines = [line for line in life.errors.splitlines() if not line.startswith("bcnet: note:") and not PROGRESS.match(line)]
    allowed = {0: 0, -9: -9} if way in ("time", "write") else {0: 0, 128 + signal.Signals[way]: 1}
    if life.code not in allowed or "LEFT:" in life.errors or "Traceback" in life.errors:
        return f"exit code {life.code}: {life.errors[-400:]}"
    if life.code > 0 and (len(lines) != 1 or not lines[0].startswith(f"bcnet: stopped by {way}")):
        return f"lines: {lines}"
    return ""


def try_ranks(killer: Killer, kills: int, rng: random.Random) -> Outcome:
    """Two processes of torchrun, killed together."""
    script = Path(__file__).parent.parent / "tools" / "train_supernet.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = ["digits/bcnetv2", "--out", "FOLDER/run", "--resume", OFTEN, *QUICK, "train.epochs=40"]
    whole, folder, outcome = killer.folder / "whole-ranks", killer.folder / "killed-ranks", Outcome()
    shutil.rmtree(whole, ignore_errors=True)
    life = killer.live(_placed(arguments, whole), command=command)
    if life.code:
        return Outcome(wrong=[life.errors[-300:]])
    expected = contents(whole, is_measured=False)
    while outcome.ends < kills and len(outcome.wrong) < 3:
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            after = rng.uniform(0.3, 0.95) * life.seconds
            options: dict[str, Any] = {"send": signal.SIGKILL, "after": after} if outcome.ends < kills else {}
            ended = killer.live(_placed(arguments, folder), command=command, **options)
            if ended.code not in (0, -9):
                outcome.wrong.append(f"exit code {ended.code}: {ended.errors[-400:]}")
            if ended.code >= 0:
                break
            outcome.ends += 1
        outcome.chains += 1
        outcome.wrong += differences(expected, contents(folder, is_measured=False))[:3]
    return outcome


# What a command has written ---------------------------------------------------------------------------------------------


def contents(folder: Path, *, is_measured: bool) -> dict[str, Any]:
    """Relative path -> what is compared of a file; names that hold hashes of times become one name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            found[re.sub(r"[0-9a-f]{16}\.jsonl", "HASH.jsonl", name)] = _content(path, str(folder), is_measured)
    return found


def _content(path: Path, folder: str, is_measured: bool) -> Any:
    if path.suffix == ".pt":
        return _plain(load_checkpoint(path))
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text().replace(folder, FOLDER)), is_measured)
    if path.suffix == ".jsonl":  # each line behind its checksum, which is of seconds, too
        lines = [line[line.index("{") :] for line in path.read_text().splitlines()]
        return sorted((_plain(json.loads(line)) for line in lines), key=json.dumps)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [_plain(row) for row in csv.DictReader(file)]
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            described = {key: _plain(_json_or_text(value)) for key, value in (file.metadata() or {}).items() if not MEASURED.search(key)}
            return described, {key: _plain(file.get_tensor(key)) for key in sorted(file.keys())}
    if path.suffix in (".png", ".html", ".md"):  # hold times
        return path.stat().st_size > 0
    return path.read_text().replace(folder, FOLDER)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any, is_measured: bool = False) -> Any:
    """Without what was measured; tensors as hashes of their bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.contiguous().view(-1).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: _plain(one, is_measured) for key, one in value.items() if not MEASURED.search(str(key))}
    if isinstance(value, list | tuple):
        return [_plain(one, is_measured) for one in value]
    return type(value).__name__ if is_measured and isinstance(value, float | int) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is missing, too much or other."""
    names = [f"{name} is missing" for name in expected.keys() - found.keys()] + [
        f"{name} is left" for name in found.keys() - expected.keys()
    ]
    return sorted(names) + [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]


# The command ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default=",".join([*WORK, RANKS]))
    parser.add_argument("--by", default=",".join(WAYS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folder = (options.out or Path(tempfile.mkdtemp(prefix="bcnet-kills-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    killer = Killer(folder, _load_shim(folder))
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo

    import bcnet.cli
    import bcnet.dense.run
    import bcnet.fit
    import bcnet.report.run_page
    import bcnet.truth.compare  # noqa: F401  imported once, for all lives

    torch.set_num_threads(1)
    names = options.of.split(",")
    killer.prepare(names)
    is_wrong = False
    columns = ("command", "ended by", "times", "to the end", "slowest to end", "an end costs", "outcome")
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|", flush=True)
    for name in names:
        for way in options.by.split(",") if name != RANKS else ["time"]:
            rng = random.Random(f"{options.seed} {name} {way}")
            outcome = try_ranks(killer, options.kills, rng) if name == RANKS else try_command(killer, name, way, options.kills, rng)
            is_wrong |= bool(outcome.wrong)
            said = "; ".join(outcome.wrong).replace("\n", " / ") or "the same bits, nothing left"
            slowest = f"{outcome.slowest:.1f} s" if way.startswith("SIG") else "-"
            costs = f"{fmean(outcome.costs):.1f} s, at most {max(outcome.costs):.1f}" if outcome.costs else "-"
            print(f"| {name} | {way} | {outcome.ends} | {outcome.chains} | {slowest} | {costs} | {said} |", flush=True)
    sys.exit(is_wrong)


def _load_shim(folder: Path) -> ctypes.CDLL | None:
    """The library; this process starts anew with it before libc."""
    library = folder / "shim.so"
    if os.environ.get("LD_PRELOAD") == str(library):
        return ctypes.CDLL(str(library))
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "shim.c"), "-ldl"], check=True)
    os.execve(sys.executable, [sys.executable, *sys.argv, "--out", str(folder)], os.environ | {"LD_PRELOAD": str(library)})


if __name__ == "__main__":
    main()
