"""Score files: ``{"meta": {...}, "scores": {"4432214": 0.8731, ...}}``, higher is better."""

from math import isfinite
from pathlib import Path

from bcnet.errors import UserError
from bcnet.files import read_json


def load_scores(path: Path) -> dict[str, float]:
    """Read a score file.

    Raises:
        UserError: missing, not of that form, or a score that is not a finite number; names the first and how many.
    """
    form = '{"scores": {"4432214": 0.87, ...}}'
    tree = read_json(path, f"scores such as {form}")
    scores = tree.get("scores") if isinstance(tree, dict) else None
    if not isinstance(scores, dict) or not scores:
        raise UserError(f"{path}: has no 'scores'; expected {form}")
    wrong = [name for name, value in scores.items() if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value)]
    if wrong:
        raise UserError(
            f"{path}: the score of {wrong[0]!r} is {scores[wrong[0]]!r}, not a finite number ({len(wrong)} of {len(scores)} are wrong)"
        )
    return {name: float(value) for name, value in scores.items()}
