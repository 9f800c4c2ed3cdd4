"""Score files: ``{"meta": {...}, "costs": {"4432214": [FLOPs, params], ...}, "scores": {"4432214": 0.8731, ...}}``, higher is better.

``costs`` may be missing; where they stand, they tell a truth of another model from the right one, and stand in for those that a truth
does not state.
"""

from collections.abc import Mapping
from pathlib import Path

from bcnet.errors import UserError
from bcnet.files import read_json
from bcnet.results import ScoreFile
from bcnet.seals import read_sealed
from bcnet.truth.checks import is_cost, is_number
from bcnet.truth.ground_truth import GroundTruth


def load_scores(path: Path) -> ScoreFile:
    """Read a score file.

    Raises:
        UserError: missing, not of that form, or a score that is not a finite number; names the first and how many.
    """
    form = '{"scores": {"4432214": 0.87, ...}}'
    tree = read_json(path, f"scores such as {form}")
    try:
        tree = read_sealed(tree)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    scores = tree.get("scores") if isinstance(tree, dict) else None
    if not isinstance(scores, dict) or not scores:
        raise UserError(f"{path}: has no 'scores'; expected {form}")
    wrong = [name for name, value in scores.items() if not is_number(value)]
    if wrong:
        raise UserError(
            f"{path}: the score of {wrong[0]!r} is {scores[wrong[0]]!r}, not a finite number ({len(wrong)} of {len(scores)} are wrong)"
        )
    costs, meta = tree.get("costs", {}), tree.get("meta", {})
    if not isinstance(costs, dict) or not all(isinstance(pair, list) and len(pair) == 2 for pair in costs.values()):
        raise UserError(f"{path}: 'costs' is not of the form {{\"4432214\": [FLOPs, params], ...}}")
    odd = [name for name, pair in costs.items() if not all(is_cost(value) for value in pair)]
    if odd:
        raise UserError(
            f"{path}: the costs of {odd[0]!r} are {costs[odd[0]]!r}, not two positive integers ({len(odd)} of {len(costs)} are wrong)"
        )
    return ScoreFile(scores=scores, costs=costs, meta=meta if isinstance(meta, dict) else {})


def check_costs_of_scores(file: ScoreFile, path: Path, truth: GroundTruth, where: str) -> bool:
    """Check that the networks of a score file cost what those of the truth do, where the truth states it.

    Returns:
        Whether FLOPs agree, too: a supernet that saw images of another size has the same params, and FLOPs by another scale.

    Raises:
        UserError: naming the first offender and the count.
    """
    stated = zip(truth.names, truth.known_flops.tolist(), truth.known_params.tolist(), strict=True)
    known = {name: (flops, params) for name, flops, params in stated}
    wrong = [name for name, pair in file.costs.items() if any(k and k != own for k, own in zip(known.get(name, (0, 0)), pair, strict=True))]
    if wrong and _differ_by_scale(file, known):
        return False
    if wrong:
        name = wrong[0]
        flops, params = (f"{cost:,}" if cost else "unknown" for cost in known[name])
        own_flops, own_params = file.costs[name]
        raise UserError(
            f"{where} is of another model than {path}: {name!r} has {flops} FLOPs and {params} params there, "
            f"{own_flops:,} and {own_params:,} here ({len(wrong)} of {len(file.costs)} differ)"
        )
    return True


def _differ_by_scale(file: ScoreFile, known: Mapping[str, tuple[int, int]]) -> bool:
    """Whether params are the same and FLOPs are all about as many times those of the truth."""
    pairs = [(own, known[name]) for name, own in file.costs.items() if all(known.get(name, (0, 0)))]
    ratios = [own[0] / there[0] for own, there in pairs]
    return bool(pairs) and all(own[1] == there[1] for own, there in pairs) and max(ratios) < 1.05 * min(ratios)
