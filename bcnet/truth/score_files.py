"""Score files: ``{"meta": {...}, "costs": {"4432214": [FLOPs, params], ...}, "scores": {"4432214": 0.8731, ...}}``, higher is better.

``costs`` may be missing; where they stand, they tell a truth of another model from the right one.
"""

from math import isfinite
from pathlib import Path

from bcnet.errors import UserError
from bcnet.files import read_json
from bcnet.results import ScoreFile
from bcnet.truth.ground_truth import GroundTruth


def load_scores(path: Path) -> ScoreFile:
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
    costs, meta = tree.get("costs", {}), tree.get("meta", {})
    if not isinstance(costs, dict) or not all(isinstance(pair, list) and len(pair) == 2 for pair in costs.values()):
        raise UserError(f"{path}: 'costs' is not of the form {{\"4432214\": [FLOPs, params], ...}}")
    return ScoreFile(scores=scores, costs=costs, meta=meta if isinstance(meta, dict) else {})


def check_costs_of_scores(file: ScoreFile, path: Path, truth: GroundTruth, where: str) -> None:
    """Check that the networks of a score file cost what those of the truth do.

    Raises:
        UserError: naming the first offender and the count.
    """
    known = {name: (f, p) for name, f, p in zip(truth.names, truth.flops.tolist(), truth.params.tolist(), strict=True)}
    wrong = [name for name, pair in file.costs.items() if name in known and tuple(pair) != known[name]]
    if wrong:
        name = wrong[0]
        flops, params = file.costs[name]
        raise UserError(
            f"{where} is of another model than {path}: {name!r} has {known[name][0]:,} FLOPs and {known[name][1]:,} params there, "
            f"{flops:,} and {params:,} here ({len(wrong)} of {len(file.costs)} differ)"
        )
