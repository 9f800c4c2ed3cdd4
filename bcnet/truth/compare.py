"""Compare training methods: equal passes over the images, the same ground truth, several seeds, one table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from sklearn.linear_model import Ridge

from bcnet.config import Config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.results import Comparison, MethodResult, MethodSeed, PredictorRow, ScoredSeed
from bcnet.run import Run
from bcnet.scoring.scorer import Scorer
from bcnet.space.widths import Side
from bcnet.truth.competitors import COMPETITORS, Scored
from bcnet.truth.ground_truth import Floats, GroundTruth
from bcnet.truth.ranking import LEAST_NETWORKS, correlate, noise_ceiling, reachable_budgets, regret

RIDGE_SIZES = (32, 128)


def compare(
    configs: dict[str, Config],
    truth: GroundTruth,
    num_seeds: int,
    out: Path,
    say: Callable[[str], None] = lambda text: None,
    *,
    competitors: Sequence[str] = tuple(COMPETITORS),
) -> Comparison:
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
        competitors: what stands beside them, of `bcnet.truth.competitors`; all that train make as many passes, by the first config.

    Raises:
        UserError: no such competitor; the truth has too few networks, is of another space, or holds other costs than the model has.
    """
    unknown = [name for name in competitors if name not in COMPETITORS]
    if unknown:
        raise UserError(f"--competitors: {unknown[0]!r} is none of {', '.join(COMPETITORS)}, or none")
    if len(truth) < LEAST_NETWORKS:
        raise UserError(f"{len(truth)} networks in the truth cannot be ranked: at least {LEAST_NETWORKS} are needed")
    methods: dict[str, MethodResult] = {}
    passes = None
    for name, config in configs.items():
        experiment = Experiment(config)
        truth = truth.in_space(experiment.costs)
        per_step = _passes_per_step(experiment)
        if passes is None:
            passes = per_step * config.train.epochs
        epochs = passes / per_step
        equal = config.model_copy(update={"train": config.train.lasting(epochs)})
        results = []
        for seed in range(num_seeds):
            run = Run.create(out / name / f"seed{seed}", equal.model_copy(update={"seed": seed}), resume=True)
            results.append(_evaluate(run, truth))
            work = f"{results[-1].passes:,} passes in {results[-1].train_seconds:.1f} s"
            say(f"{name}, seed {seed}: tau {results[-1].kendall:.3f} after {work}")
        counts = run.trained.counts
        assert counts is not None
        together = np.mean([_standard(np.array(result.scores)) for result in results], 0)
        methods[name] = MethodResult(
            strategy=config.train.strategy.name,
            epochs=epochs,
            per_seed=results,
            kendall_of_mean_score=predictor_row(together, truth).kendall,
            counts=[own.tolist() for own in counts.counts],
        )
    others: dict[str, list[ScoredSeed]] = {}
    for name in competitors:
        for seed in range(num_seeds):
            config = next(iter(configs.values())).model_copy(update={"seed": seed})
            scored = COMPETITORS[name](config, passes or 0.0, out / "competitors" / name / f"seed{seed}")
            for label, one in scored.items():
                others.setdefault(label, []).append(_scored_seed(one, truth))
                say(f"{label}, seed {seed}: tau {others[label][-1].kendall:.3f} after {one.seconds:.1f} s")
    comparison = Comparison(
        num_networks=len(truth),
        num_seeds=num_seeds,
        methods=methods,
        competitors=others,
        baselines=baselines(truth),
        noise_ceiling=noise_ceiling(truth.acc),
    )
    comparison.write(out / "compare.json")
    return comparison


def _passes_per_step(experiment: Experiment, steps: int = 100) -> float:
    """Mean over some steps, for a strategy may make more passes in one step than in another."""
    return fmean(len(experiment.strategy.passes(step)) for step in range(steps))


def _evaluate(run: Run, truth: GroundTruth) -> MethodSeed:
    trainer = run.train()
    widths = truth.widths_in(run.space)
    by_widths = run.scorer.score_many(widths, f"scoring {run.folder.parent.name}")
    scores = np.array([by_widths[one] for one in widths])
    return MethodSeed(
        **predictor_row(scores, truth).model_dump(),
        passes=trainer.history.passes,
        train_seconds=trainer.history.seconds,
        kendall_by_score=_by_score(run.scorer, truth),
        scores=[float(score) for score in scores],
    )


def _scored_seed(scored: Scored, truth: GroundTruth) -> ScoredSeed:
    scores = scored.effects.predict(truth.indices)
    row = predictor_row(scores, truth).model_dump()
    return ScoredSeed(**row, passes=scored.passes, train_seconds=scored.seconds, scores=[float(score) for score in scores])


def _by_score(scorer: Scorer, truth: GroundTruth) -> dict[str, float]:
    """Kendall tau of all metrics on every side and on their mean, from the same evaluations."""
    widths = truth.widths_in(scorer.supernet.space)
    choices: dict[str, Sequence[Side]] = {side: [side] for side in scorer.sides} | {"mean": scorer.sides}
    taus = {}
    for metric in scorer.metrics:
        for name, sides in choices.items():
            values = np.array(scorer.read(widths, metric=metric, sides=sides))
            taus[f"{metric}, {name}"] = correlate(values, truth.mean, resamples=0).kendall.value
    return taus


def _standard(scores: Floats) -> Floats:
    """Scores of mean 0 and deviation 1, so that every supernet counts the same in a mean."""
    standard: Floats = (scores - scores.mean()) / max(float(scores.std()), 1e-12)
    return standard


def predictor_row(scores: Floats, truth: GroundTruth) -> PredictorRow:
    """Correlations and regrets of one predictor."""
    correlations = correlate(scores, truth.mean, resamples=0)
    return PredictorRow(
        kendall=correlations.kendall.value,
        spearman=correlations.spearman.value,
        pearson=correlations.pearson.value,
        regret={budget: regret(scores, truth, budget).regret for budget in reachable_budgets(truth)},
    )


def baselines(truth: GroundTruth, repeats: int = 20) -> dict[str, PredictorRow]:
    """What can be had without a supernet: costs, sums of widths, ridge regression on a few true accuracies.

    The ridge regression is fitted on one-hot width indices of ``n`` random networks and ranks all of them; mean over
    ``repeats`` draws.
    """
    indices = truth.indices
    rows = {
        "FLOPs": predictor_row(truth.flops.astype(np.float64), truth),
        "params": predictor_row(truth.params.astype(np.float64), truth),
        "sum of widths": predictor_row(indices.sum(1).astype(np.float64), truth),
        "sum of their logarithms": predictor_row(np.log(indices).sum(1), truth),
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


def mean_row(rows: Sequence[PredictorRow]) -> PredictorRow:
    """Mean of several predictor rows."""
    return PredictorRow(
        kendall=fmean(row.kendall for row in rows),
        spearman=fmean(row.spearman for row in rows),
        pearson=fmean(row.pearson for row in rows),
        regret={budget: fmean(row.regret[budget] for row in rows) for budget in rows[0].regret},
    )
