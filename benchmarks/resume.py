"""Kill a training with SIGKILL at random instants, resume it each time, and compare with an undisturbed run.

    python benchmarks/resume.py [--kills 20] [--seed 0] [--out FOLDER]

The kills are spread over the run at random steps, each a random time after the step's checkpoint appeared, so that they
fall into steps, into checkpoints being written and into starts. Prints one JSON record.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bcnet.runtime import environment
from bcnet.training.checkpoint import load_checkpoint

SETTINGS = ["digits/bcnetv2", "train.epochs=200", "train.ema_decay=0.99", "checkpoint_seconds=0.2"]


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "bcnet", "train", *SETTINGS]
    start = time.monotonic()
    subprocess.run([*command, "--out", str(folder / "whole")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    rng = random.Random(options.seed)
    checkpoint = folder / "killed" / "checkpoint.pt"
    total = load_checkpoint(folder / "whole" / "checkpoint.pt")["step"]
    steps: list[int] = []
    for target in sorted(rng.randrange(int(0.9 * total)) for _ in range(options.kills)):
        life = subprocess.Popen(
            [*command, "--out", str(folder / "killed"), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while life.poll() is None and _step(checkpoint) < target:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.5))
        if life.poll() is not None:
            sys.exit(f"a life ended by itself with code {life.returncode} after {len(steps)} kills")
        life.kill()
        life.wait()
        steps.append(_step(checkpoint))
        print(f"kill {len(steps)}: the checkpoint stands at step {steps[-1]}", file=sys.stderr)
    subprocess.run(
        [*command, "--out", str(folder / "killed"), "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    whole, killed = (load_checkpoint(folder / name / "checkpoint.pt") for name in ("whole", "killed"))
    same = {part: _same(whole[part], killed[part]) for part in ("model", "ema", "optimizer", "counts", "records")} | {
        "loss": _same(whole["history"]["loss"], killed["history"]["loss"])
    }
    record = {"settings": SETTINGS, "seed": options.seed, "kills_at_checkpoint_step": steps, "total_steps": whole["step"], "equal": same}
    print(json.dumps(record | {"undisturbed_seconds": round(seconds, 1), "environment": environment()}, indent=1))


def _step(checkpoint: Path) -> int:
    return int(load_checkpoint(checkpoint)["step"]) if checkpoint.exists() else 0


def _same(one: object, other: object) -> bool:
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


if __name__ == "__main__":
    main()
