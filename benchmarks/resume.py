"""Kill a training, or a build of ground truth, with SIGKILL at random instants; go on each time; compare with an undisturbed one.

    python benchmarks/resume.py [--of train|truth] [--kills 20] [--seed 0] [--out FOLDER]

The kills are spread over the run, each a random time after a random step's checkpoint (or a random width's journal line)
appeared, so that they fall into steps, into files being written and into starts. Prints one JSON record; exits with 1 if anything differs.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import compare_checkpoints

from bcnet.machine import environment
from bcnet.training.checkpoint import load_checkpoint

WORK = {
    "train": ["train", "digits/bcnetv2", "train.epochs=200", "train.ema_decay=0.99", "checkpoint_seconds=0.2", "--resume"],
    "truth": ["truth", "build", "digits/truth", "retrain.epochs=3", "--widths", "random:400", "--seeds", "3", "--workers", "2"],
}


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=sorted(WORK), default="train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp())
    whole, killed = (folder / f"{name}{'.json' if options.of == 'truth' else ''}" for name in ("whole", "killed"))
    command = [sys.executable, "-m", "bcnet", *WORK[options.of], "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    total = _total(whole)
    rng = random.Random(options.seed)
    stood_at: list[int] = []
    for target in sorted(rng.randrange(int(0.9 * total)) for _ in range(options.kills)):
        life = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while life.poll() is None and _progress(killed) < target:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.5))
        if life.poll() is not None:
            sys.exit(f"a life ended by itself with code {life.returncode} after {len(stood_at)} kills")
        life.kill()
        life.wait()
        stood_at.append(_progress(killed))
        print(f"kill {len(stood_at)}: stands at {stood_at[-1]} of {total}", file=sys.stderr)
    subprocess.run([*command, str(killed)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    equal = _compare(whole, killed)
    record = {
        "work": WORK[options.of],
        "seed": options.seed,
        "stood_at_after_each_kill": stood_at,
        "total": total,
        "equal": equal,
        "undisturbed_seconds": round(seconds, 1),
        "environment": environment(),
    }
    print(json.dumps(record, indent=1))
    sys.exit(not all(equal.values()))


def _total(whole: Path) -> int:
    """Steps of the whole training, or widths of the whole file."""
    return len(json.loads(whole.read_text())) - 1 if whole.is_file() else _progress(whole)


def _progress(out: Path) -> int:
    """The checkpoint's step, or the journal's lines."""
    journal = out.with_name(f"{out.name}.partial")
    if out.suffix == ".json":
        return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0
    return int(load_checkpoint(out / "checkpoint.pt")["step"]) if (out / "checkpoint.pt").exists() else 0


def _compare(whole: Path, killed: Path) -> dict[str, bool]:
    if whole.is_file():
        return {"file": whole.read_bytes() == killed.read_bytes(), "journal is gone": not _progress(killed)}
    return compare_checkpoints(whole / "checkpoint.pt", killed / "checkpoint.pt")


if __name__ == "__main__":
    main()
