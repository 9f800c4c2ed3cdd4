"""How well scores rank networks: correlations with ground truth, beside what counting FLOPs would give."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from bcnet.errors import UserError
from bcnet.results import Correlations, Estimate, Instead, Ranking, Regret
from bcnet.space.cost import limit_of
from bcnet.truth.ground_truth import GroundTruth

Floats = npt.NDArray[np.float64]
LEAST_NETWORKS = 3
TOP_K = (10, 50, 100, 500)
DEFAULT_BUDGETS = ("flops=0.25", "flops=0.5", "flops=0.75")
COSTS = ("flops", "params")
NEAR = 0.95  # of a budget that a network uses at least to be one of its random alternatives
TRAINED = 10  # of them


def _kendall(x: Floats, y: Floats) -> float:
    return float(stats.kendalltau(x, y, variant="b").statistic)


def _spearman(x: Floats, y: Floats) -> float:
    return float(stats.spearmanr(x, y).statistic)


def _pearson(x: Floats, y: Floats) -> float:
    return float(stats.pearsonr(x, y).statistic)


CORRELATIONS: dict[str, Callable[[Floats, Floats], float]] = {"kendall": _kendall, "spearman": _spearman, "pearson": _pearson}


def correlate(scores: Floats, truth: Floats, *, resamples: int = 200, seed: int = 0) -> Correlations:
    """Kendall tau-b, Spearman and Pearson correlation (SciPy's, with ties), each with a 95 % bootstrap interval.

    Args:
        scores: predictions ``(N,)``.
        truth: ground truth ``(N,)``.
        resamples: bootstrap samples of the networks; 0: no interval.
        seed: of the bootstrap.

    Returns:
        NaN where one side is constant.
    """
    rng = np.random.default_rng(seed)
    samples = rng.integers(len(scores), size=(resamples, len(scores)))
    constant = bool(np.ptp(scores) == 0 or np.ptp(truth) == 0)
    estimates = {}
    for name, function in CORRELATIONS.items():
        value = float("nan") if constant else function(scores, truth)
        low = high = value
        if resamples and not constant:
            draws = [function(scores[rows], truth[rows]) for rows in samples if np.ptp(scores[rows]) and np.ptp(truth[rows])]
            low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
        estimates[name] = Estimate(value=value, low=low, high=high)
    return Correlations(**estimates)


def noise_ceiling(acc: Floats, seeds: int | None = None) -> float | None:
    """Kendall tau that a perfect predictor would reach against the mean of the seeds.

    The mean tau between two single seeds gives, through Greiner's relation ``rho = sin(pi tau / 2)``, the reliability of
    one seed; Spearman-Brown that of the mean of ``S`` seeds; its square root is the correlation of the mean with the
    noise-free accuracy, which goes back to tau. Exact for normal accuracies and noise.

    Args:
        acc: accuracies ``(N, S)``.
        seeds: how many seeds the mean is over; by default all ``S``.

    Returns:
        The ceiling, or ``None`` with fewer than two seeds, or where all networks have the same accuracy in one of them.
    """
    measured = acc.shape[1]
    if measured < 2 or not np.ptp(acc, axis=0).all():
        return None
    seeds = seeds or measured
    pairs = list(combinations(range(measured), 2))
    one = float(np.sin(np.pi / 2 * np.mean([_kendall(acc[:, a], acc[:, b]) for a, b in pairs])))
    one = max(one, 0.0)
    reliability = seeds * one / (1 + (seeds - 1) * one)
    return float(2 / np.pi * np.arcsin(np.sqrt(reliability)))


def top_k_precision(scores: Floats, truth: Floats, k: int) -> float:
    """Share of the ``k`` networks with the highest scores that are among the ``k`` truly best; the expected one where ties are drawn."""
    return float(_in_top(scores, k) @ _in_top(truth, k)) / k


def _in_top(values: Floats, k: int) -> Floats:
    """Probability of each to be among the ``k`` highest if those that tie for the last places are drawn."""
    last = np.sort(values)[-k]
    ties = values == last
    is_in: Floats = np.where(ties, (k - (values > last).sum()) / ties.sum(), values > last)
    return is_in


def regret(scores: Floats, truth: GroundTruth, budget: str) -> Regret:
    """What picking the highest score under a budget loses against the truly best network under it.

    Args:
        scores: predictions ``(N,)``, aligned with the truth; NaN for networks that were not scored.
        truth: ground truth.
        budget: ``flops=0.5`` (a fraction of the full model's), ``flops=150M``, ``params=...``.

    Returns:
        The pick among the scored networks, the best of all networks of the truth, their accuracies in per cent and the difference;
        what a uniform width or networks drawn at the same budget would have been. Of several with the highest score any may be
        picked: their mean counts, so that nothing depends on the order of a file.

    Raises:
        UserError: not a budget, no scored network keeps it, or what the networks cost is not known.
    """
    cost, _, value = budget.partition("=")
    if cost not in ("flops", "params") or not value:
        raise UserError(f"budget {budget!r} is not COST=VALUE, e.g. flops=150M or params=0.5")
    lacking = truth.unknown(cost)
    if lacking:
        raise UserError(
            f"budget {budget!r} cannot be applied: {cost} are not known for {lacking:,} of {len(truth):,} networks of the truth, "
            "neither from it nor from 'costs' of the score file"
        )
    costs = truth.cost(cost)
    limit = limit_of(value, truth.full_cost(cost), f"budget {budget!r}")
    is_scored = ~np.isnan(scores)
    allowed = np.flatnonzero(costs <= limit)
    candidates = allowed[is_scored[allowed]]
    if not len(candidates):
        reach = f"{costs[is_scored].min()} to {costs[is_scored].max()}"
        raise UserError(f"budget {budget!r} cannot be met: {cost} of the scored networks reach from {reach}")
    picks = candidates[scores[candidates] == scores[candidates].max()]
    accuracy = float(truth.mean[picks].mean())
    best = allowed[np.argmax(truth.mean[allowed])]
    return Regret(
        budget=budget,
        pick=min(truth.names[pick] for pick in picks),
        ties=len(picks),
        pick_accuracy=accuracy,
        best=truth.names[best],
        best_accuracy=float(truth.mean[best]),
        regret=float(truth.mean[best]) - accuracy,
        instead=_instead(truth, costs, limit),
    )


def _instead(truth: GroundTruth, costs: npt.NDArray[np.int64], limit: float) -> Instead | None:
    near = np.sort(truth.mean[(costs <= limit) & (costs >= NEAR * limit)])
    if len(near) < TRAINED:
        return None
    # Of ten drawn at random without repeats, the one at place k of N is the best with probability C(k, 9) / C(N, 10).
    is_best = special.binom(np.arange(len(near)), TRAINED - 1) / special.binom(len(near), TRAINED)
    return Instead(uniform=_uniform(truth, costs, limit), random_mean=float(near.mean()), random_best=float(is_best @ near))


def _uniform(truth: GroundTruth, costs: npt.NDArray[np.int64], limit: float) -> float | None:
    """Accuracy of the uniform width of a cost, linear between the uniform widths beside it: the same share of the choices everywhere."""
    if truth.has_channels or truth.has_own_choices:
        return None
    shares = truth.indices / np.maximum(truth.indices.max(0), 1)
    rows = np.flatnonzero((shares == shares[:, :1]).all(1))
    if not len(rows) or not costs[rows].min() <= limit <= costs[rows].max():
        return None
    rows = rows[np.argsort(costs[rows])]
    return float(np.interp(limit, costs[rows], truth.mean[rows]))


def payoff(scores: Floats, truth: GroundTruth, points: int = 60) -> dict[float, Regret]:
    """What the scores' picks are worth from the cheapest scored network to the dearest one of the truth.

    Args:
        scores: predictions ``(N,)``, aligned with the truth; NaN for networks that were not scored.
        truth: ground truth with FLOPs.
        points: budgets, spaced evenly.

    Returns:
        Share of the full model's FLOPs -> what is picked within it, and what else could have been.
    """
    cheapest, dearest = (flops / truth.full_cost("flops") for flops in (truth.flops[~np.isnan(scores)].min(), truth.flops.max()))
    shares = [float(share) for share in np.linspace(cheapest, dearest, points)]
    return {share: regret(scores, truth, f"flops={math.ceil(share * truth.full_cost('flops'))}") for share in shares}


def reachable_budgets(truth: GroundTruth, budgets: Sequence[str] = DEFAULT_BUDGETS) -> list[str]:
    """Those shares of the full model's FLOPs that any network keeps."""
    cheapest = truth.flops.min() / truth.full_cost("flops")
    return [budget for budget in budgets if float(budget.partition("=")[2]) >= cheapest]


def rank(
    scores: dict[str, float], truth: GroundTruth, *, budgets: Sequence[str] = (), resamples: int = 200, truth_name: str = ""
) -> Ranking:
    """Everything the scores can be held against: correlations, baselines, ceiling, top-k precision, regret.

    Baselines and default budgets of costs that are not known are left out; see `left_out`.

    Args:
        scores: score of each width string, higher is better.
        truth: ground truth that holds all of them.
        budgets: under which to compute the regret; by default those of 25, 50 and 75 % of the full model's FLOPs that any keeps.
        resamples: bootstrap samples.
        truth_name: of the truth's file.

    Raises:
        UserError: widths that are not in the truth, or fewer than three; a budget of costs that are not known.
    """
    if len(scores) < LEAST_NETWORKS:
        raise UserError(f"{len(scores)} scored widths cannot be ranked: at least {LEAST_NETWORKS} are needed")
    rows = truth.rows(list(scores), "scores")
    part = truth.subset(rows)
    of_all = np.full(len(truth), np.nan)
    of_all[rows] = list(scores.values())
    if not budgets and not truth.unknown("flops"):
        budgets = reachable_budgets(part)
    predictors = {
        "score": np.array(list(scores.values()), dtype=np.float64),
        **{cost: part.cost(cost).astype(np.float64) for cost in COSTS if not part.unknown(cost)},
        "sum_of_widths": part.indices.sum(1).astype(np.float64),
    }
    return Ranking(
        num_networks=len(part),
        num_in_truth=len(truth),
        num_seeds=int(part.acc.shape[1]),
        predictors={name: correlate(values, part.mean, resamples=resamples) for name, values in predictors.items()},
        noise_ceiling=noise_ceiling(part.acc),
        top_k_precision={str(k): top_k_precision(predictors["score"], part.mean, k) for k in TOP_K if 2 * k <= len(part)},
        regret=[regret(of_all, truth, budget) for budget in budgets],
        truth=truth_name,
    )


def left_out(scores: Iterable[str], truth: GroundTruth, ranking: Ranking) -> list[str]:
    """What a ranking lacks because neither the truth nor the score file states what the networks cost, a line each.

    Args:
        scores: the scored width strings.
        truth: that they were held against.
        ranking: the result.
    """
    part = truth.subset(truth.rows(list(scores), "scores"))
    missing = [cost for cost in COSTS if part.unknown(cost)]
    lines = []
    if missing:
        lacking = max(part.unknown(cost) for cost in missing)
        lines.append(f"no baseline {' and '.join(missing)}: not known for {lacking:,} of {len(part):,} scored networks")
    if truth.unknown("flops") and not ranking.regret:
        lines.append(
            f"no regret under default budgets: flops not known for {truth.unknown('flops'):,} of {len(truth):,} networks of the truth"
        )
    return lines
