from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy import stats

from bcnet.errors import UserError
from bcnet.report.compare_page import HEADER, compare_rows
from bcnet.report.truth_page import describe_truth
from bcnet.results import Comparison
from bcnet.truth.compare import predictor_row
from bcnet.truth.ground_truth import GroundTruth, load_ground_truth
from bcnet.truth.ranking import correlate, noise_ceiling, payoff, rank, regret, top_k_precision


def tied_data(seed, count=60):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, count).astype(float)
    return x, np.round(x + rng.normal(0, 3, count))


def truth_of(acc, flops=None):
    acc = np.asarray(acc, dtype=float)
    names = tuple(f"{n + 1000}" for n in range(len(acc)))
    flops = np.arange(len(acc)) + 100 if flops is None else np.asarray(flops)
    return GroundTruth(names, acc, flops, flops * 2, {})


@pytest.mark.parametrize("seed", range(5))
def test_tau_b_is_its_definition_with_ties(seed):
    x, y = tied_data(seed)
    concordant = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in combinations(range(len(x)), 2))
    pairs_x, pairs_y = (sum(v[i] != v[j] for i, j in combinations(range(len(v)), 2)) for v in (x, y))
    found = correlate(x, y, resamples=0)
    assert found.kendall.value == pytest.approx(concordant / np.sqrt(pairs_x * pairs_y))
    ranks = [stats.rankdata(v) for v in (x, y)]
    assert found.spearman.value == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.pearson.value == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_intervals_hold_the_value_and_shrink_with_more_networks():
    widths = []
    for count in (50, 800):
        tau = correlate(*tied_data(0, count), resamples=200).kendall
        assert tau.low <= tau.value <= tau.high
        widths.append(tau.high - tau.low)
    assert widths[1] < widths[0] / 2


def test_a_constant_score_ranks_nothing():
    assert np.isnan(correlate(np.ones(10), np.arange(10.0)).kendall.value)


@pytest.mark.parametrize(("noise", "seeds"), [(0.3, 3), (1.0, 3), (1.0, 10)])
def test_the_ceiling_is_what_the_noise_free_truth_reaches(noise, seeds):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=3000)
    acc = truth[:, None] + rng.normal(0, noise, (3000, seeds))
    assert noise_ceiling(acc) == pytest.approx(stats.kendalltau(truth, acc.mean(1)).statistic, abs=0.015)


def test_one_seed_has_no_ceiling():
    assert noise_ceiling(np.ones((5, 1))) is None


def test_top_k_and_regret_are_counted_by_hand():
    truth = truth_of([[90], [80], [70], [60]], flops=[400, 300, 200, 100])
    scores = np.array([0.1, 0.2, 0.4, 0.3])
    assert top_k_precision(scores, truth.mean, 1) == 0
    assert top_k_precision(scores, truth.mean, 2) == 0
    assert top_k_precision(scores, truth.mean, 3) == pytest.approx(2 / 3)
    found = regret(scores, truth, "flops=0.75")
    assert (found.pick, found.best, found.regret) == ("1002", "1001", 10)
    assert regret(scores, truth, "flops=150").regret == 0
    with pytest.raises(UserError, match="cannot be met"):
        regret(scores, truth, "flops=0.1")


def test_ties_are_drawn_so_that_nothing_depends_on_the_order_of_a_file():
    """Held against all orders of a small one."""
    scores, acc = np.array([3.0, 2, 2, 2, 1, 1]), np.array([[70.0], [90], [80], [80], [60], [60]])
    orders = list(permutations(range(6)))

    def top(values, order, k):
        return set(sorted(range(6), key=lambda n: (-values[n], order[n]))[:k])

    for k in range(1, 6):
        drawn = [len(top(scores, one, k) & top(acc[:, 0], other, k)) / k for one in orders[::7] for other in orders[::7]]
        assert top_k_precision(scores, acc[:, 0], k) == pytest.approx(np.mean(drawn), abs=0.02)
    flops, found = np.array([200, 90, 80, 70, 60, 50]), set()
    for order in map(list, orders[::11]):
        truth = GroundTruth(tuple(f"{1000 + n}" for n in order), acc[order], flops[order], flops[order], {})
        row = regret(scores[order], truth, "flops=0.5")
        assert row.picked == "1001 or 2 others with the same score"
        found.add((row.pick, row.ties, round(row.pick_accuracy, 6), row.best_accuracy, round(row.regret, 6)))
    assert found == {("1001", 3, round(250 / 3, 6), 90.0, round(90 - 250 / 3, 6))}


def test_the_uniform_width_has_the_same_share_of_every_group():
    """Where one group has two choices and the others four, ``1222`` is half of each and ``2222`` is not."""
    rng = np.random.default_rng(0)
    names = tuple("".join(map(str, one)) for one in product((1, 2), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)))
    flops = np.array([int(name[0]) * 20 + sum(map(int, name[1:])) * 10 for name in names])
    truth = GroundTruth(names, rng.normal(80, 5, (len(names), 2)), flops, flops, {})
    half = names.index("1222")
    assert regret(flops, truth, f"flops={flops[half]}").instead.uniform == truth.mean[half]
    own = replace(truth, meta={"config": {"space": {"groups": {"conv1": [1, 7]}}}})  # the first of which is no half
    assert regret(flops, own, f"flops={flops[half]}").instead.uniform is None


def test_a_seed_in_which_all_networks_are_equal_has_no_ceiling():
    assert noise_ceiling(np.array([[10.0, 20], [10, 30], [10, 40]])) is None
    assert noise_ceiling(np.array([[10.0, 20]])) is None


def test_odd_truths_can_be_shown_and_compared():
    """One network, a constant seed, none below a quarter of the FLOPs, a full model that is smaller than others (widened ones)."""
    one = describe_truth(truth_of([[90.0, 91.0]]))
    assert (one.noise_ceiling, [row.budget for row in one.best]) == ([], ["flops=1.0"])
    constant = truth_of([[10, 50], [10, 60], [10, 70], [10, 80]], flops=[80, 90, 100, 120])
    assert describe_truth(constant).noise_ceiling == []
    assert rank(dict(zip(constant.names, range(4), strict=True)), constant, resamples=0).noise_ceiling is None
    smaller = replace(constant, meta={"full": {"flops": 100, "params": 200}})
    assert [(row.budget, row.best) for row in describe_truth(smaller).best] == [("flops=1.0", "1002")]
    row = predictor_row(np.arange(4.0), smaller)
    assert row.regret == {}
    cells = compare_rows(Comparison.model_construct(methods={}, competitors={}, baselines={"FLOPs": row}, noise_ceiling=None))[0]
    assert (len(cells), cells[5:8]) == (len(HEADER), ("", "", ""))
    assert predictor_row(np.arange(4.0), replace(smaller, meta={"full": {"flops": 150, "params": 200}})).regret == {"flops=0.75": 0}


def test_what_else_a_budget_could_have_bought_is_counted_by_brute_force():
    rng = np.random.default_rng(0)
    names = tuple("".join(map(str, one)) for one in product((1, 2, 3), repeat=4))
    flops = np.array([sum(int(digit) ** 2 for digit in name) * 10 for name in names])
    truth = GroundTruth(names, rng.normal(80, 5, (len(names), 2)), flops, flops, {})
    found = regret(np.arange(len(names), dtype=float), truth, "flops=230").instead  # 2222 costs 160, 3333 costs 360
    two, three = (truth.mean[names.index(name)] for name in ("2222", "3333"))
    assert found.uniform == pytest.approx(two + (three - two) * (230 - 160) / (360 - 160))
    near = truth.mean[(flops <= 230) & (flops >= 218.5)]
    assert found.random_mean == pytest.approx(near.mean())
    assert found.random_best == pytest.approx(np.mean([max(ten) for ten in combinations(near, 10)]))
    assert regret(flops, truth, "flops=40").instead is None  # one network costs so little
    assert regret(flops, truth_of(truth.acc, flops), "flops=230").instead.uniform is None  # names without uniform widths


def test_what_a_pick_is_worth_is_known_from_the_cheapest_scored_network_to_the_full_model():
    truth = truth_of([[90], [95], [70], [60], [50]], flops=[100, 90, 50, 40, 10])
    picks = payoff(np.array([5, 4, 3, 2, np.nan]), truth, points=7)
    assert list(picks) == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert [row.pick_accuracy for row in picks.values()] == [60, 70, 70, 70, 70, 95, 90]
    part = truth.with_costs({}, {"flops": 200})  # as a score file says of its model: no network of the truth is that large
    assert list(payoff(np.array([5, 4, 3, 2, np.nan]), part, points=4)) == pytest.approx([0.2, 0.3, 0.4, 0.5])


def test_budgets_are_of_the_full_model_and_the_best_of_all_networks_whatever_was_scored():
    truth = truth_of([[90], [95], [70], [60], [50]], flops=[100, 90, 50, 40, 10])
    scores = {"1002": 3.0, "1003": 2.0, "1004": 1.0}  # the two largest were not scored
    ranking = rank(scores, truth, budgets=["flops=0.5", "flops=0.95"], resamples=0)
    assert [(row.pick, row.best, row.regret) for row in ranking.regret] == [("1002", "1002", 0), ("1002", "1001", 25)]
    stated = GroundTruth(truth.names, truth.acc, truth.flops, truth.params, {"full": {"flops": 200, "params": 400}})
    (row,) = rank(scores, stated, budgets=["flops=0.225"], resamples=0).regret  # 45 of 200
    assert (row.pick, row.best) == ("1003", "1003")
    assert stated.with_costs({}, {"flops": 150}).full_cost("flops") == 200  # what the truth states itself
    for odd in (None, {"flops": "many"}, {"flops": 0}, {"flops": -5}):  # as anybody's score file may have it
        assert truth.with_costs({}, odd).full_cost("flops") == 100
    with pytest.raises(UserError, match="of the scored networks reach from 10 to 50"):
        rank(scores, truth, budgets=["flops=0.05"], resamples=0)


def test_the_baselines_stand_beside_the_score():
    rng = np.random.default_rng(0)
    truth = truth_of(rng.normal(80, 5, (100, 3)), flops=np.arange(100) * 10 + 10)
    scores = dict(zip(truth.names, truth.mean, strict=True))
    found = rank(scores, truth, resamples=10)
    assert found.predictors["score"].kendall.value == pytest.approx(1)
    flops = stats.kendalltau(truth.flops, truth.mean).statistic
    assert found.predictors["flops"].kendall.value == pytest.approx(flops)
    assert [row.regret for row in found.regret] == [0, 0, 0]
    assert found.top_k_precision == {"10": 1.0, "50": 1.0}


def test_widths_that_are_not_in_the_truth_are_counted():
    truth = truth_of([[90], [80], [70]])
    with pytest.raises(UserError, match="2 of 4 widths are not in the truth, first '7777'"):
        rank({"1000": 1.0, "7777": 2.0, "1001": 3.0, "8888": 4.0}, truth)


def test_released_scores_get_the_published_values(benchmark_folder):
    """What the benchmark's authors' supernets reach, as the project's goals state it."""
    import json

    truth = load_ground_truth(benchmark_folder / "Results_MobileNet.json")
    released = json.loads((benchmark_folder / "official_supernet_scores_mobilenet.json").read_text())
    part = truth.subset(truth.rows(released["archs"], "released"))
    for name, expected in {"bcnet_1": 0.298, "bcnet_3": 0.539, "autoslim_3": 0.661}.items():
        tau = correlate(np.array(released[name], dtype=float), part.mean, resamples=0).kendall.value
        assert tau == pytest.approx(expected, abs=6e-4)
    assert correlate(part.flops.astype(float), part.mean, resamples=0).kendall.value == pytest.approx(0.546, abs=6e-4)
    assert noise_ceiling(part.acc) == pytest.approx(0.83, abs=0.005)
