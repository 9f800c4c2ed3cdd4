"""What does it help that effects of widths may only rise, ever more slowly, and smoothly? Additive models against ground truth.

    python benchmarks/effects.py CONFIG --truth FILE [NAME=SCORES.json ...] [--sizes 100 300] [--draws 8] [--out FILE.md]
    python benchmarks/effects.py CONFIG NAME=SCORES.json ... --write FOLDER

Of each file of scores of a whole space, and of the truth itself (whose predictions are held against the networks that were not drawn),
so many width vectors are drawn at random, additive models are fitted to them, and what they say of all the others is ranked against
the truth: Kendall's tau, mean and standard deviation over the draws. Size 0 takes every score once. ``--write`` needs no truth: what
smooth effects of all scores say goes to ``FOLDER/NAME/scores.json``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, pearsonr

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.files import write_json, write_text
from bcnet.models.cifar import read_resnet20_list
from bcnet.models.factory import build_model, default_input
from bcnet.scoring.additive import Shape, WidthEffects
from bcnet.space.widths import Group
from bcnet.supernet.proof import trace
from bcnet.truth.ground_truth import GroundTruth, find_truth, load_ground_truth
from bcnet.truth.score_files import load_scores

KINDS: tuple[Shape | None, ...] = (None, "concave", "smooth")
Floats = npt.NDArray[np.float64]


def main() -> None:
    """Read the options, fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("config")
    parser.add_argument("scores", nargs="*", metavar="NAME=SCORES.json")
    parser.add_argument("--truth")
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    parser.add_argument("--sizes", nargs="+", type=int, default=[0, 300, 100])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args()
    config = load_config(options.config)
    model, space = config.model.name, config.space
    plain, choices = build_model(model, 10), dict(space.groups)
    groups = trace(plain, default_input(model), bins=space.bins, min_bins=space.min_bins, choices=choices, proof=False).groups
    if options.write:
        write_fitted(dict(given.split("=", 1) for given in options.scores), groups, options.write)
    if not options.truth:
        return
    truth = load_ground_truth(find_truth(options.truth))
    widths = read_widths(truth, groups)
    accuracy, rows = truth.mean, []
    for size in (size for size in options.sizes if size):
        rows.append(["true accuracies", str(size), *compare(widths, accuracy, accuracy, groups, size, options.draws)])
    for given in options.scores:
        name, _, file = given.partition("=")
        known = load_scores(Path(file)).scores
        values = np.array([known[one] for one in truth.names])
        alone = kendalltau(values, accuracy).statistic
        rows.append([name, "scores as they are", f"{alone:.3f}", *("" for _ in KINDS[1:])])
        for size in options.sizes:
            rows.append([name, str(size or len(values)), *compare(widths, values, accuracy, groups, size, options.draws)])
    text = table(rows)
    print(text)
    if options.out:
        write_text(options.out, text + "\n")


def write_fitted(files: dict[str, str], groups: Sequence[Group], folder: Path) -> None:
    """Score files of what smooth effects say, by the name of the method."""
    for name, file in files.items():
        known = load_scores(Path(file))
        widths = np.array([read_resnet20_list(one) if "-" in one else [int(digit) for digit in one] for one in known.scores])
        model = WidthEffects.fit(widths, list(known.scores.values()), groups)
        if model is None:
            raise UserError(f"{file}: too few scores for an additive model")
        fitted = dict(zip(known.scores, model.predict(widths).tolist(), strict=True))
        tau = kendalltau(list(known.scores.values()), list(fitted.values())).statistic
        (folder / name).mkdir(parents=True, exist_ok=True)
        note = {"fitted": f"smooth effects of all scores of {Path(file).parent.name}/{Path(file).name}"}
        write_json(folder / name / "scores.json", {"meta": known.meta | note, "costs": known.costs, "scores": fitted})
        print(f"{name}: tau of the scores before and after {tau:.3f}")


def read_widths(truth: GroundTruth, groups: Sequence[Group]) -> npt.NDArray[np.int64]:
    """Width indices of a truth's networks; the lists of the channel-search challenge have one number more than there are groups."""
    if truth.has_channels:
        return np.array([read_resnet20_list(name) for name in truth.names])
    if truth.indices.shape[1] != len(groups):
        raise UserError(f"the truth has {truth.indices.shape[1]} groups, and the config {len(groups)}")
    return truth.indices


def compare(widths: npt.NDArray[np.int64], values: Floats, truth: Floats, groups: Sequence[Group], size: int, draws: int) -> list[str]:
    """Tau of what models of all kinds say; the truth's own are held against those that were not drawn, which also gives Pearson's r."""
    cells = []
    for kind in KINDS:
        taus, correlations = [], []
        for draw in range(draws if size else 1):
            order = np.random.default_rng(draw).permutation(len(values))
            drawn, rest = (order[:size], order[size:]) if size else (order, order)
            held = rest if values is truth else order
            model = WidthEffects.fit(widths[drawn], values[drawn], groups, kind)
            if model is None or np.isnan(predicted := model.predict(widths[held])).any():
                continue
            taus.append(float(kendalltau(predicted, truth[held]).statistic))
            correlations.append(float(pearsonr(predicted, truth[held]).statistic))
        if not taus:
            cells.append("too few")
            continue
        spread = f" +- {pstdev(taus):.3f}" if len(taus) > 1 else ""
        cells.append(f"{fmean(taus):.3f}{spread}" + (f" (r {fmean(correlations):.3f})" if values is truth else ""))
    return cells


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    heads = ["fitted to", "width vectors", *(kind or "free" for kind in KINDS)]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
