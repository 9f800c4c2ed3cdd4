"""What a folder of results holds: which files are whole, what was begun and not ended, what kills left behind."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from bcnet.config import Config, load_as, read_yaml
from bcnet.dense.config import DenseConfig
from bcnet.dense.results import DenseRecord, TrainedNetwork
from bcnet.errors import UserError, first_line
from bcnet.files import read_json
from bcnet.formatting import shell_word
from bcnet.locks import LOCK, TEMPORARY, leftovers
from bcnet.plugins import trust_option
from bcnet.provenance import kind_of
from bcnet.results import (
    Comparison,
    FitRecord,
    FittedNetwork,
    Ranking,
    Record,
    RetrainRecord,
    ScoreFile,
    SearchRecord,
    Speed,
    TogetherRecord,
    read_record,
)
from bcnet.run import run_identity
from bcnet.scoring.cache import ScoreCache
from bcnet.training.checkpoint import load_checkpoint
from bcnet.version import __version__

State = Literal["whole", "unfinished", "left over", "in use", "damaged"]


@dataclass(frozen=True)
class Finding:
    """What one file is like.

    Attributes:
        path: of the file.
        state: whether it can be used.
        words: what it is, or what is wrong with it.
    """

    path: Path
    state: State
    words: str


@dataclass(frozen=True)
class Diagnosis:
    """What a folder holds.

    Attributes:
        findings: of every file that a reader is known for.
        next: for every run in it, the command that goes on.
    """

    findings: list[Finding]
    next: list[str]

    def of(self, state: State) -> list[Finding]:
        """The findings of one state."""
        return [finding for finding in self.findings if finding.state == state]


def examine(folder: Path) -> Diagnosis:
    """Read everything in a run directory, of whichever command, or in a folder of such; nothing is changed, no code in it is run.

    Raises:
        UserError: there is no run in it.
    """
    runs = sorted(path.parent for path in folder.rglob("config.yaml"))
    if not runs:
        raise UserError(f"{folder}: no run directory, and none in it (no config.yaml)")
    findings = []
    for place, _, names in os.walk(folder):
        here = Path(place)
        dead = set(leftovers(here))
        for name in sorted(names):
            finding = _examine_file(here / name, here / name in dead)
            if finding is not None:
                findings.append(finding)
    nexts = [_next(run, findings) for run in runs]
    return Diagnosis(findings, nexts)


def _examine_file(path: Path, is_dead: bool) -> Finding | None:
    if path.name.endswith((TEMPORARY, LOCK)):
        if is_dead:
            return Finding(path, "left over", "of a process that was killed; the next command that writes here removes it")
        holder = path.read_text(encoding="utf-8", errors="replace").strip()[:200] if path.name.endswith(LOCK) else ""
        return Finding(path, "in use", f"by {holder or 'a process that writes it'}")
    reader = _reader(path)
    if reader is None:
        return None
    try:
        words = reader(path)
    except UserError as error:
        return Finding(path, "damaged", str(error).removeprefix(f"{path}: "))
    return Finding(path, "unfinished" if path.suffix == ".pt" and not words.startswith("ended") else "whole", words)


def _reader(path: Path) -> Callable[[Path], str] | None:
    """What reads a file of that name and place, and says what it is."""
    if path.suffix == ".pt":
        return _read_checkpoint
    if path.suffix in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix]
    if path.parent.name == "retrain" and path.suffix == ".json":
        kind: type[Record] = TrainedNetwork if kind_of(path.parent.parent) == "dense" else RetrainRecord
        return lambda path: _read_record(path, kind, "a retraining")
    if path.name == "search.json":
        found: type[Record] = DenseRecord if kind_of(path.parent) == "dense" else SearchRecord
        return lambda path: _read_record(path, found, "a search")
    if path.name in _RECORDS:
        return lambda path: _read_record(path, *_RECORDS[path.name])
    return {"config.yaml": _read_config, "environment.json": _read_environment, "network.json": _read_description}.get(path.name)


def _read_record(path: Path, kind: type[Record], what: str) -> str:
    read_record(path, kind, f"the result of {what}")
    return f"the result of {what}"


_RECORDS: dict[str, tuple[type[Record], str]] = {
    "compare.json": (Comparison, "a comparison"),
    "fit.json": (FitRecord, "plain trainings"),
    "ranking.json": (Ranking, "a ranking"),
    "result.json": (FittedNetwork, "one training"),
    "scores.json": (ScoreFile, "scoring"),
    "speed.json": (Speed, "measuring the speed"),
    "together.json": (TogetherRecord, "training widths together"),
}


def _read_config(path: Path) -> str:
    kind = kind_of(path.parent)
    load_as(DenseConfig if kind == "dense" else Config, path, trust=True)  # nothing of it is run
    return {"run": "of a supernet", "dense": "of a search of a grid", "fit": "of plain trainings"}[kind]


def _read_environment(path: Path) -> str:
    tree = read_json(path, "the environment of a run")
    try:
        version, torch = (str(tree["versions"][name]) for name in ("bcnet", "torch"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not the environment of a run: no versions") from error
    other = "" if version == __version__ else f"; this is {__version__}"
    return f"made by bcnet {version} with torch {torch}{other}"


def _read_description(path: Path) -> str:
    tree = read_json(path, "the description of a network")
    if not isinstance(tree, dict) or not str(tree.get("format")).startswith("bcnet-network-"):
        raise UserError(f"{path}: not the description of a network")
    return "of a network"


def _read_checkpoint(path: Path) -> str:
    state = load_checkpoint(path)
    step, total = state.get("step"), state.get("total_steps")
    if not isinstance(step, int):
        raise UserError(f"{path}: not a checkpoint of a training: its step is {step!r}")
    folder = path.parent
    if path.name == "checkpoint.pt" and kind_of(folder) == "run" and _identity(folder) not in (None, state.get("identity")):
        raise UserError(f"{path}: belongs to a run with another config")
    where = f"at step {step:,}" + (f" of {total:,}" if isinstance(total, int) else "")
    return f"ended {where}" if step == total or total is None else f"stands {where}"


def _identity(folder: Path) -> str | None:
    """Of the run that a config describes; ``None`` of a config that cannot be read, which is a finding of its own."""
    try:
        return run_identity((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError):
        return None


def _read_weights(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            for name in names:
                file.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not the weights of a network ({first_line(error)})") from error
    return f"weights, {len(names)} tensors"


def _read_scores(path: Path) -> str:
    known = len(ScoreCache(path).evaluations)
    lines = path.read_bytes().count(b"\n")
    lost = f"; {lines - known} damaged or repeated lines are scored again" if lines > known else ""
    return f"{known:,} scored width vectors{lost}"


def _read_lines(path: Path) -> str:
    try:
        return f"{len(path.read_text(encoding='utf-8').splitlines()):,} lines"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a text ({first_line(error)})") from error


_BY_SUFFIX: dict[str, Callable[[Path], str]] = {".safetensors": _read_weights, ".jsonl": _read_scores, ".csv": _read_lines}


def _next(run: Path, findings: list[Finding]) -> str:
    """The command that goes on with a run."""
    states = {finding.path: finding.state for finding in findings}
    kind, trained, config = kind_of(run), states.get(run / "checkpoint.pt"), run / "config.yaml"
    folder, file = shell_word(run), shell_word(config)
    if kind == "fit":
        model = load_as(Config, config, trust=True).model.name if states.get(config) == "whole" else "MODEL"
        seeds = ",".join(sorted((path.name[4:] for path in run.glob("seed*") if path.name[4:].isdecimal()), key=int))
        return f"bcnet fit {model} --config {file} --out {folder}" + (f" --seeds {seeds}" if seeds else "")
    trust = trust_option(read_yaml(config)) if states.get(config) == "whole" else ""
    if trained != "whole":
        return f"bcnet {'dense train' if kind == 'dense' else 'train'} {file} --out {folder} --resume{trust}"
    if kind == "dense":
        return f"bcnet dense {'retrain' if (run / 'search.json').exists() else 'derive'} {folder}{trust}"
    unfinished = [path.relative_to(run / "retrain").parts for path, state in states.items() if _is_begun(path, state, run)]
    if unfinished:
        return f"bcnet retrain {folder} {_retraining(*min(unfinished)[:2])}{trust} (with the --seeds and settings that it was given)"
    if not (run / "search.json").exists():
        return f"bcnet search {folder} --budget flops=0.5{trust}"
    return f"bcnet retrain {folder} --widths best{trust}"


def _is_begun(path: Path, state: State, run: Path) -> bool:
    return state == "unfinished" and path.is_relative_to(run / "retrain")


def _retraining(what: str, names: str) -> str:
    """The options of a retraining by the names of its folder and of the one therein."""
    if what == "together":
        return f"--widths {names.replace('+', ',')} --together"
    widths = what.removeprefix("uniform-like-")
    return f"--widths {widths.removesuffix('-inherited')}" + " --inherit" * widths.endswith("-inherited")
