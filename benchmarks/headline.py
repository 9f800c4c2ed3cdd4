"""Hold finished score files of one space, the released supernets' scores and the baselines against one ground truth.

    python benchmarks/headline.py NAME=scores.json ... --truth Results_MobileNet.json [--baseline NAME=scores.json ...]
        [--released scores.json] [--config channel_bench/mobilenet] [--alone 20 50] [--out FOLDER]

All are ranked on the networks that every file has, once on all of these and once on those that are nowhere of the smallest
width (there FLOPs says less). ``--released`` names a file ``{"archs": [...], "PREDICTOR": [...], ...}`` of aligned lists; these
are also read as ``score.additive`` reads ours: by what the width of each group is worth in them (smooth effects with ``--config``, free
ones without). ``--alone`` spends the compute on networks trained alone instead: that many of the truth's, drawn nine times, and an
additive model of their accuracies, of which the draw of median tau stands there.
Prints a Markdown table, and draws ``headline.png`` with ``--out``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.files import read_json
from bcnet.models.factory import build_model, default_input
from bcnet.results import Correlations
from bcnet.scoring.additive import WidthEffects
from bcnet.space.widths import Group
from bcnet.supernet.proof import trace
from bcnet.truth.ground_truth import Floats, GroundTruth, load_ground_truth, width_indices
from bcnet.truth.ranking import correlate, noise_ceiling
from bcnet.truth.score_files import load_scores

Rows = dict[str, tuple[str, Correlations]]  # predictor -> its colour and how it ranks
OURS, BASELINE, RELEASED, READ_ADDITIVELY, COUNTED, ALONE = "#2563eb", "#93c5fd", "#ea580c", "#fdba74", "#94a3b8", "#16a34a"


def main() -> None:
    """Rank and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="+", metavar="NAME=FILE", type=named)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--baseline", nargs="+", metavar="NAME=FILE", type=named, default=[], help="the same, drawn in light blue")
    parser.add_argument("--released", type=Path)
    parser.add_argument("--config", help="the config of the space, for --alone")
    parser.add_argument("--alone", type=int, nargs="+", default=[], metavar="N", help="networks trained alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        compare(options)
    except UserError as error:
        parser.error(str(error))


def named(text: str) -> tuple[str, Path]:
    """``NAME=FILE``."""
    name, equals, file = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(file)


def compare(options: argparse.Namespace) -> None:
    """Read everything, print the table and draw."""
    given = [(OURS, *one) for one in options.scores] + [(BASELINE, *one) for one in options.baseline]
    groups = groups_of(options.config) if options.config else None
    predictors = {name: (colour, load_scores(file).scores) for colour, name, file in given}
    if len(predictors) < len(given):
        raise UserError("two score files have the same NAME: give each its own")
    if options.released:
        tree = read_json(options.released, "released scores")
        names = tree.pop("archs")
        widths = [width_indices(name) for name in names]
        for name, values in tree.items():
            predictors[f"released {name}"] = RELEASED, dict(zip(names, values, strict=True))
            model = WidthEffects.fit(widths, values, groups)
            if model is not None:  # enough of them, and not all alike
                predicted = model.predict(widths).tolist()
                predictors[f"released {name}, additive"] = READ_ADDITIVELY, dict(zip(names, predicted, strict=True))
    common = sorted(set.intersection(*(set(scores) for _, scores in predictors.values())))
    if len(common) < 3:
        raise UserError(f"{len(common)} networks are in all of the files: at least 3 are needed")
    truth = load_ground_truth(options.truth)
    for count in options.alone:
        predictors[f"{count} networks trained alone"] = ALONE, trained_alone(truth, groups, count)
    whole = truth.subset(truth.rows(common, "scores"))
    smallest = min(min(width_indices(name)) for name in common)
    wider = whole.subset(np.array([row for row, name in enumerate(whole.names) if min(width_indices(name)) > smallest]))
    parts = {"all": whole} | ({f"no width {smallest}": wider} if len(wider) > 2 else {})
    rows = {label: rows_of(part, predictors) for label, part in parts.items()}
    print(table(parts, rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(options.out / "headline.png", parts, rows)


def groups_of(config: str) -> Sequence[Group]:
    """The groups of a config's model."""
    settings = load_config(config)
    model, space = settings.model.name, settings.space
    return trace(build_model(model, 10), default_input(model), bins=space.bins, min_bins=space.min_bins, proof=False).groups


def trained_alone(truth: GroundTruth, groups: Sequence[Group] | None, count: int) -> dict[str, float]:
    """What an additive model of some networks' true accuracies says of all, of nine draws the one of median tau."""
    if groups is None:
        raise UserError("--alone wants --config, the config of the space")
    draws = []
    for draw in range(9):
        drawn = np.random.default_rng(draw).permutation(len(truth.names))[:count]
        fitted = WidthEffects.fit(truth.indices[drawn], truth.mean[drawn], groups)
        if fitted is None:
            raise UserError(f"--alone {count}: too few networks for an additive model")
        predicted = fitted.predict(truth.indices)
        draws.append((float(kendalltau(predicted, truth.mean).statistic), predicted))
    return dict(zip(truth.names, sorted(draws, key=lambda one: one[0])[len(draws) // 2][1].tolist(), strict=True))


def rows_of(part: GroundTruth, predictors: dict[str, tuple[str, dict[str, float]]]) -> Rows:
    """Colour and correlations of every predictor and every count on the same networks."""
    columns: dict[str, tuple[str, Floats]] = {
        name: (colour, np.array([scores[arch] for arch in part.names])) for name, (colour, scores) in predictors.items()
    }
    columns["sum of widths"] = COUNTED, np.array([float(sum(width_indices(name))) for name in part.names])
    columns["sum of logarithms of widths"] = COUNTED, np.array([float(np.log(width_indices(name)).sum()) for name in part.names])
    columns["FLOPs"] = COUNTED, part.flops.astype(np.float64)
    columns["params"] = COUNTED, part.params.astype(np.float64)
    return {name: (colour, correlate(values, part.mean)) for name, (colour, values) in columns.items()}


def table(parts: dict[str, GroundTruth], rows: dict[str, Rows]) -> str:
    """Markdown: a row per predictor, a column per set of networks."""
    heads = [f"{label}, {len(part):,} networks" for label, part in parts.items()]
    lines = [f"| Kendall tau-b (95 % bootstrap) | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for name in next(iter(rows.values())):
        taus = [column[name][1].kendall for column in rows.values()]
        lines.append(f"| {name} | " + " | ".join(f"{tau.value:.3f} ({tau.low:.3f} to {tau.high:.3f})" for tau in taus) + " |")
    ceilings = [noise_ceiling(part.acc) for part in parts.values()]
    lines.append("| noise ceiling | " + " | ".join("" if one is None else f"{one:.3f}" for one in ceilings) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, parts: dict[str, GroundTruth], rows: dict[str, Rows]) -> None:
    """Bars of tau with their intervals, the ceiling as a line."""
    from matplotlib.figure import Figure

    names = sorted(rows["all"], key=lambda name: rows["all"][name][1].kendall.value)
    figure = Figure(figsize=(11, 1.2 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)
    for axis, (label, part) in zip(axes[0], parts.items(), strict=True):
        taus = [rows[label][name][1].kendall for name in names]
        values = [tau.value for tau in taus]
        errors = [[tau.value - tau.low for tau in taus], [tau.high - tau.value for tau in taus]]
        axis.barh(names, values, xerr=errors, color=[rows[label][name][0] for name in names], ecolor="#334155")
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            inside = value > 0.15
            dark = inside and rows[label][name][0] not in (BASELINE, READ_ADDITIVELY)
            start = 0.01 if inside else 0.01 + max(0.0, taus[place].high)
            axis.text(start, place, f"{value:.3f}", va="center", fontsize=8, color="white" if dark else "black")
        ceiling = noise_ceiling(part.acc)
        if ceiling is not None:
            axis.axvline(ceiling, color="black", linestyle=":", label=f"ceiling {ceiling:.2f}")
            axis.set_xlim(right=max(ceiling, axis.get_xlim()[1]) + 0.02)
            axis.legend(loc="lower right", fontsize=8)
        axis.set(xlabel="Kendall tau-b", title=f"{label}: {len(part):,} networks")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
