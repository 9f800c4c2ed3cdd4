"""Compare training methods: equal passes over the images, the same ground truth, several seeds, one table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from bcnet.benchmark.ground_truth import Floats, GroundTruth, width_indices
from bcnet.benchmark.ranking import DEFAULT_BUDGETS, correlate, noise_ceiling, regret
from bcnet.config import METRIC_NAMES, Config
from bcnet.errors import UserError
from bcnet.files import write_json
from bcnet.run import Run
from bcnet.search.scorer import Scorer
from bcnet.space.cost import CostTable
from bcnet.supernet.layers import Side

RIDGE_SIZES = (32, 128)


def compare(
    configs: dict[str, Config], truth: GroundTruth, num_seeds: int, out: Path, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train every method with every seed, score all networks of the truth, rank.

    All methods make as many forward-backward passes over batches as the first one does by its config: the epochs of the
    others are changed to that. Every training is a run directory ``OUT/METHOD/seedN``, so a stopped comparison goes on
    where it was.

    Args:
        configs: method name -> config.
        truth: ground truth of the configs' space.
        num_seeds: trainings per method, with seeds 0, 1, ...
        out: folder of the runs and of ``compare.json``.
        say: told about every training.

    Raises:
        UserError: the truth is of another space, or holds other costs than the model has.
    """
    methods: dict[str, Any] = {}
    passes = None
    for name, config in configs.items():
        first = Run(out / name / "seed0", config)
        check_costs(truth, first.costs)
        per_step = len(first.strategy.passes(0))
        if passes is None:
            passes = per_step * config.train.epochs
        epochs = passes / per_step
        equal = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
        results = []
        for seed in range(num_seeds):
            run = Run.create(out / name / f"seed{seed}", equal.model_copy(update={"seed": seed}), resume=True)
            results.append(_evaluate(run, truth))
            tau = results[-1]["kendall"]
            say(f"{name}, seed {seed}: tau {tau:.3f} after {results[-1]['passes']:,} passes in {results[-1]['train_seconds']:.1f} s")
        counts = run.trained.counts
        assert counts is not None
        together = np.mean([_standard(np.array(result["scores"])) for result in results], 0)
        methods[name] = {
            "strategy": config.train.strategy,
            "epochs": epochs,
            "per_seed": results,
            "kendall_of_mean_score": predictor_row(together, truth)["kendall"],
            "counts": counts.counts.tolist(),
        }
    found = {"num_networks": len(truth), "num_seeds": num_seeds, "methods": methods, "baselines": baselines(truth)}
    found["noise_ceiling"] = noise_ceiling(truth.acc)
    write_json(out / "compare.json", found)
    return found


def check_costs(truth: GroundTruth, costs: CostTable) -> None:
    """Check that a truth is of a space: every width is one of it and has the FLOPs and params that it has.

    Raises:
        UserError: naming the first offender and the count.
    """
    space = costs.space
    wrong = []
    for name, flops, params in zip(truth.names, truth.flops.tolist(), truth.params.tolist(), strict=True):
        try:
            widths = space.decode(name)
        except UserError as error:
            raise UserError(f"the truth is of another space: {error}") from error
        found = costs.one(widths, "flops"), costs.one(widths, "params")
        if found != (flops, params):
            wrong.append(f"{name!r} has {flops:,} FLOPs and {params:,} params in the truth, {found[0]:,} and {found[1]:,} in the model")
    if wrong:
        raise UserError(f"the truth is of another model: {wrong[0]} ({len(wrong)} of {len(truth)} differ)")


def _evaluate(run: Run, truth: GroundTruth) -> dict[str, Any]:
    trainer = run.train()
    widths = [run.space.decode(name) for name in truth.names]
    scorer = run.scorer_for(len(widths))
    found = scorer.score_many(widths, f"scoring {run.folder.parent.name}")
    scores = np.array([found[one] for one in widths])
    return predictor_row(scores, truth) | {
        "passes": trainer.history.passes,
        "train_seconds": trainer.history.seconds,
        "kendall_by_score": _by_score(scorer, truth),
        "scores": [float(score) for score in scores],
    }


def _by_score(scorer: Scorer, truth: GroundTruth) -> dict[str, float]:
    """Kendall tau of all metrics on every side and on their mean, from the same evaluations."""
    widths = [scorer.supernet.space.decode(name) for name in truth.names]
    choices: dict[str, Sequence[Side]] = {side: [side] for side in scorer.sides} | {"mean": scorer.sides}
    taus = {}
    for metric in METRIC_NAMES:
        for name, sides in choices.items():
            values = np.array(scorer.read(widths, metric=metric, sides=sides))
            taus[f"{metric}, {name}"] = correlate(values, truth.mean, resamples=0)["kendall"]["value"]
    return taus


def _standard(scores: Floats) -> Floats:
    """Scores of mean 0 and deviation 1, so that every supernet counts the same in a mean."""
    standard: Floats = (scores - scores.mean()) / max(float(scores.std()), 1e-12)
    return standard


def predictor_row(scores: Floats, truth: GroundTruth) -> dict[str, Any]:
    """Correlations and regrets of one predictor."""
    row: dict[str, Any] = {name: entry["value"] for name, entry in correlate(scores, truth.mean, resamples=0).items()}
    return row | {"regret": {budget: regret(scores, truth, budget)["regret"] for budget in DEFAULT_BUDGETS}}


def baselines(truth: GroundTruth, repeats: int = 20) -> dict[str, Any]:
    """What can be had without a supernet: costs, sum of widths, ridge regression on a few true accuracies.

    The ridge regression is fitted on one-hot width indices of ``n`` random networks and ranks all of them; mean over
    ``repeats`` draws.
    """
    indices = np.array([width_indices(name) for name in truth.names])
    rows = {
        "FLOPs": predictor_row(truth.flops.astype(np.float64), truth),
        "params": predictor_row(truth.params.astype(np.float64), truth),
        "sum of widths": predictor_row(indices.sum(1).astype(np.float64), truth),
    }
    one_hot = np.concatenate([indices == k for k in np.unique(indices)], axis=1).astype(np.float64)
    for size in RIDGE_SIZES:
        if 2 * size > len(truth):
            continue
        rng = np.random.default_rng(size)
        draws = []
        for _ in range(repeats):
            chosen = rng.choice(len(truth), size, replace=False)
            model = Ridge(alpha=1.0).fit(one_hot[chosen], truth.mean[chosen])
            draws.append(predictor_row(model.predict(one_hot), truth))
        rows[f"ridge on {size} true accuracies"] = mean_row(draws)
    return rows


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of several predictor rows."""
    mean: dict[str, Any] = {key: fmean(row[key] for row in rows) for key in ("kendall", "spearman", "pearson")}
    return mean | {"regret": {budget: fmean(row["regret"][budget] for row in rows) for budget in rows[0]["regret"]}}


def spread(values: Sequence[float]) -> float:
    """Standard deviation, 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0
