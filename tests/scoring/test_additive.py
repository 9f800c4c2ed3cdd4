import json
import re
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import lsq_linear, minimize

from bcnet.commands.score import search_widths
from bcnet.errors import UserError
from bcnet.run import Run
from bcnet.scoring.additive import STIFFNESS, WidthEffects
from bcnet.space.sampling import balanced_sample
from bcnet.space.widths import Group, Space
from bcnet.truth.ground_truth import find_truth


def test_effects_are_those_of_an_additive_truth():
    """Whatever the unit, and for any width vectors that are enough; noise lowers the explained share alone."""
    rng = np.random.default_rng(0)
    worth = rng.normal(size=(3, 4))
    widths = np.unique(rng.integers(1, 5, (200, 3)), axis=0)
    exact = worth[np.arange(3), widths - 1].sum(1)
    for scale, shift in ((1, 0), (7, 100)):
        model = WidthEffects.fit(widths, scale * exact + shift)
        np.testing.assert_allclose(model.effects, scale * (worth - worth.mean(1, keepdims=True)), atol=1e-9)
        assert model.explained == pytest.approx(1)
        assert model.mean == pytest.approx(scale * worth.mean(1).sum() + shift)
        np.testing.assert_allclose(model.predict(widths), scale * exact + shift)
    assert WidthEffects.fit(widths, exact + rng.normal(0, exact.std(), len(widths))).explained < 0.8
    without_two = widths[:, 1] != 2
    model = WidthEffects.fit(widths[without_two], exact[without_two])
    assert np.argwhere(np.isnan(model.effects)).tolist() == [[1, 1]]
    np.testing.assert_allclose(model.predict(widths[without_two]), exact[without_two])
    assert WidthEffects.fit(widths[::4], exact[::4]) is None
    assert WidthEffects.fit(widths, np.ones(len(widths))) is None


def grown_space():
    counts = ((4, 8, 12, 16), (6, 12), tuple(range(4, 65, 4)))
    return Space(tuple(Group(f"g{n}", own, smallest=1 + (n == 0)) for n, own in enumerate(counts)))


def test_concave_effects_of_a_truth_that_is_concave_are_that_truth():
    """Of any number of choices per group, from fewer width vectors than there are choices."""
    space = grown_space()
    worth = [np.sqrt(np.log(group.counts)) for group in space.groups]
    sample = balanced_sample(space, 20, seed=0)
    values = [sum(own[k - 1] for own, k in zip(worth, widths, strict=True)) for widths in sample]
    model = WidthEffects.fit(sample, values, space.groups, "concave")
    assert model.explained == pytest.approx(1, abs=1e-6)
    wanted = list(space.enumerate())
    truth = np.array([sum(own[k - 1] for own, k in zip(worth, widths, strict=True)) for widths in wanted])
    assert np.abs(model.predict(wanted) - truth).max() < 0.03 * truth.std()  # between choices that were seen it is straight
    assert np.argwhere(np.isnan(model.effects[0])).tolist() == [[0], *([k] for k in range(4, 16))]  # below k_min, and beyond K


def test_concave_effects_are_the_nearest_that_rise_and_bend_down():
    """Against SciPy's general optimiser, on noise."""
    space = grown_space()
    rng = np.random.default_rng(0)
    sample = balanced_sample(space, 60, seed=1)
    values = rng.normal(size=60)
    model = WidthEffects.fit(sample, values, space.groups, "concave")
    for group, effects in zip(space.groups, model.effects, strict=True):
        own = effects[group.smallest - 1 : group.bins]
        slopes = np.diff(own) / np.diff(np.log(group.choices))
        assert (slopes > -1e-9).all() and (np.diff(slopes) < 1e-9).all()
        assert own.mean() == pytest.approx(0, abs=1e-12)
    levels = [len(group.choices) for group in space.groups]
    ends = np.cumsum(levels)

    def predicted(flat):
        return sum(flat[end - count + np.array(column) - group.smallest]
                   for end, count, column, group in zip(ends, levels, zip(*sample, strict=True), space.groups, strict=True))  # fmt: skip

    def bends(flat):
        slopes = [np.diff(part) / np.diff(np.log(g.choices)) for part, g in zip(np.split(flat, ends[:-1]), space.groups, strict=True)]
        return np.concatenate([np.append(-np.diff(own), own[-1]) for own in slopes])

    best = minimize(lambda flat: np.square(values - predicted(flat)).sum(), np.zeros(ends[-1]), method="SLSQP",
                    constraints={"type": "ineq", "fun": bends}, options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
    assert np.square(values - model.predict(sample)).sum() == pytest.approx(best.fun, rel=1e-5)


def test_smooth_effects_of_a_smooth_truth_are_that_truth():
    """With two unknowns per group, whatever the number of choices; what rises and bends down more slowly still is met nearly."""
    space = grown_space()
    wanted = list(space.enumerate())
    for power, count, miss in ((-1, 8, 1e-9), (0, 8, 1e-9), (-0.5, 40, 0.1)):
        sample = balanced_sample(space, count, seed=0)

        def worth(widths, power=power):
            logs = np.log(space.channels(widths))
            return (1, 2, 3) @ (logs if power == 0 else -np.exp(power * logs))

        values, truth = [worth(widths) for widths in sample], np.array([worth(widths) for widths in wanted])
        model = WidthEffects.fit(sample, values, space.groups)
        assert np.abs(model.predict(wanted) - truth).max() < miss * truth.std()
        again = model.corrected(wanted, 7 + 5 * truth, space.groups)
        assert again.shape == model.shape
        assert np.corrcoef(again.predict(wanted), truth)[0, 1] > 0.999


def test_smooth_effects_are_the_nearest_at_the_price_of_their_bends():
    """Against SciPy's bounded least squares, on noise; they rise and bend down."""
    space = grown_space()
    sample = balanced_sample(space, 60, seed=1)
    values = np.random.default_rng(0).normal(size=60)
    model = WidthEffects.fit(sample, values, space.groups)
    channels = np.array([space.channels(widths) for widths in sample], float)
    columns, prices = [np.ones(60), *np.log(channels).T, *(-1 / channels).T], 7 * [0.0]
    for g, group in enumerate(space.groups):
        for choice in group.choices[1:] if len(group.choices) > 2 else ():
            ramp = np.log(np.minimum(channels[:, g], choice) / group.choices[0]) / np.log(choice / group.choices[0])
            columns, prices = [*columns, ramp], [*prices, 60 * STIFFNESS * (len(group.choices) - 1)]
    system = np.vstack([np.column_stack(columns), np.diag(np.sqrt(prices))])
    best = lsq_linear(system, np.append(values, np.zeros(len(prices))), ([-np.inf] + (len(prices) - 1) * [0], np.inf), tol=1e-14)
    np.testing.assert_allclose(model.predict(sample), system[:60] @ best.x, atol=1e-4)
    for group, effects in zip(space.groups, model.effects, strict=True):
        slopes = np.diff(effects[group.smallest - 1 : group.bins]) / np.diff(np.log(group.choices))
        assert (slopes > -1e-9).all() and (np.diff(slopes) < 1e-9).all()


def test_a_group_of_one_choice_is_worth_nothing():
    space = Space((Group("whole", (8,), smallest=1), Group("free", (4, 8, 16), smallest=1)))
    widths = list(space.enumerate())
    for shape in ("smooth", "concave"):
        model = WidthEffects.fit(np.repeat(widths, 2, axis=0), [1, 1, 2, 2, 3, 3], space.groups, shape)
        np.testing.assert_allclose(model.predict(widths), [1, 2, 3])
        assert model.effects[0, 0] == 0


def test_a_few_true_values_correct_what_a_model_says_as_far_as_they_tell():
    """A model that is right is put on their scale; one that is wrong gives way as they become many."""
    space = grown_space()
    rng = np.random.default_rng(0)
    everything = list(space.enumerate())
    logs = np.log([space.channels(widths) for widths in everything])
    right, wrong = logs @ (1, 2, 3), logs @ (3, 0.1, 0.5)
    truth = 50 + 10 * right
    for values, counts, least in ((right, (10, 40), 0.999), (wrong, (40,), 0.97)):
        model = WidthEffects.fit(everything, values, space.groups)
        for count in counts:
            drawn = rng.permutation(len(everything))[:count]
            corrected = model.corrected(np.array(everything)[drawn], truth[drawn] + rng.normal(0, 0.05, count), space.groups)
            assert np.corrcoef(corrected.predict(everything), truth)[0, 1] > least
            assert np.abs(corrected.predict(everything) - truth).mean() < 0.25 * truth.std()
    with pytest.raises(UserError, match="9 anchors of 9 different accuracies: at least 10 are needed"):
        model.corrected(everything[:9], truth[:9], space.groups)


def test_anchors_of_a_file_correct_scores_and_searches(bcnet, run, tmp_path):
    truth = json.loads(find_truth("channel_bench_digits").read_text())
    some = {name: truth[name] for name in sorted(truth)[5:-1:60] if name != "meta"}
    (tmp_path / "anchors.json").write_text(json.dumps(some))
    out = tmp_path / "scores.json"
    given = "score.additive=60", "--anchors", tmp_path / "anchors.json"
    code, printed, err = bcnet("score", run.folder, "--widths", "all", *given, "--out", out)
    assert code == 0, err
    assert f"corrected by the true accuracies of {len(some)} networks" in printed
    scores = json.loads(out.read_text())["scores"]
    assert len(scores) == 1024
    assert np.mean([abs(scores[name] - np.mean(entry["acc"])) for name, entry in some.items()]) < 3  # per cent
    code, printed, err = bcnet("search", run.folder, "search.evaluations=40", *given)
    assert code == 0, err
    assert re.search(r"best of \d+ predicted from 60 scored: \d{5}, predicted true accuracy 1?\d\d\.\d\d %", printed)
    page = (run.folder / "index.html").read_text()
    assert re.search(r"params \(\d+%\), predicted true accuracy \[%\] 1?\d\d\.\d{4}, predicted accuracy in the supernet \d\d\.\d\d%", page)
    assert f"corrected by the true accuracies of {len(some)} networks: predicted true accuracy" in page
    assert "<th>predicted accuracy in the supernet" in page
    code, _, err = bcnet("score", run.folder, "--widths", "11111", "--anchors", tmp_path / "anchors.json", "--out", out)
    assert (code, "they want score.additive=N" in err) == (2, True)
    (tmp_path / "anchors.json").write_text(json.dumps({"1111": some[min(some)]}))
    code, _, err = bcnet("search", run.folder, *given)
    assert (code, "anchors.json: the truth is of another space: widths '1111' have 4 indices" in err) == (2, True)


def test_anchors_may_be_named_by_their_channel_counts(bcnet, run, tmp_path):
    names = [run.space.encode(widths) for widths in balanced_sample(run.space, 20, seed=0)]
    lists = ["-".join(map(str, run.space.channels(run.space.decode(name)))) for name in names]
    (tmp_path / "lists.csv").write_text("widths,accuracy\n" + "".join(f"{one},{80 + place}\n" for place, one in enumerate(lists)))
    tree = {name: {"acc": [80.0 + place], "flops": 1, "params": 1} for place, name in enumerate(names)}
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    found = []
    for anchors in ("lists.csv", "truth.json"):
        given = "score.additive=60", "--anchors", tmp_path / anchors, "--out", tmp_path / "scores.json"
        code, _, err = bcnet("score", run.folder, "--widths", "all", *given)
        assert code == 0, err
        found.append(json.loads((tmp_path / "scores.json").read_text())["scores"])
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [25, 200, 1023])
def test_a_sample_shows_every_width_about_equally_often(count):
    space = Space(tuple(Group.of_bins(f"g{n}", 10, bins=5, min_bins=2) for n in range(5)))
    sample = balanced_sample(space, count, seed=1)
    assert len(set(sample)) == len(sample) == count
    assert sample == sorted(sample)
    assert sample != balanced_sample(space, count, seed=2)
    assert sample == balanced_sample(space, count, seed=1)
    for column in zip(*sample, strict=True):
        often = Counter(column)
        assert set(often) == {2, 3, 4, 5}
        assert max(often.values()) - min(often.values()) <= max(1, 0.2 * count / 4)


def test_a_sample_as_large_as_the_space_is_the_space(run):
    assert balanced_sample(run.space, 1024, seed=0) == balanced_sample(run.space, 5000, seed=1) == list(run.space.enumerate())


@pytest.mark.parametrize("effects", ["smooth", "concave", "free"])
def test_additive_scores_are_the_model_of_the_samples_scores(run, effects):
    rules = run.space.groups, None if effects == "free" else effects
    chosen = Run.open(run.folder, ["score.additive=120", f"score.effects={effects}"])
    scorer = chosen.scorer
    wanted = list(run.space.enumerate())
    found = scorer.score_many(wanted)
    assert set(scorer.evaluations) == {run.space.encode(widths) for widths in scorer.sample}  # and nothing else was evaluated
    exact = run.scorer.score_many(scorer.sample)
    model = WidthEffects.fit(scorer.sample, [exact[widths] for widths in scorer.sample], *rules)
    np.testing.assert_allclose([found[widths] for widths in wanted], model.predict(wanted))
    accuracies = run.scorer.read(scorer.sample, metric="accuracy", sides=["left"])
    predicted = scorer.read(wanted, metric="accuracy", sides=["left"])
    np.testing.assert_allclose(predicted, WidthEffects.fit(scorer.sample, accuracies, *rules).predict(wanted))


def test_a_sample_too_small_for_its_unknowns_is_refused(run):
    for effects, least in (("free", 40), ("concave", 10), ("smooth", 10)):
        with pytest.raises(
            UserError, match=rf"score\.additive is {least - 1}: 5 groups of 4 widths each need at least {least} scored ones"
        ):
            _ = Run.open(run.folder, [f"score.additive={least - 1}", f"score.effects={effects}"]).scorer


def test_a_search_by_additive_scores_says_so_and_finds_their_best(run, capsys):
    run = Run.open(run.folder, ["score.additive=60", "search.evaluations=200"])
    record = search_widths(run, ["flops=0.5"], print)
    assert f"best of {len(record.evaluated)} predicted from 60 scored: {record.best.widths}" in capsys.readouterr().out
    assert len(run.scorer.evaluations) == 60
    allowed = [widths for widths in run.space.enumerate() if run.costs.one(widths, "flops") <= record.settings.budgets[0].limit]
    scores = run.scorer.score_many(allowed)
    assert record.best.score == pytest.approx(max(scores.values()))
