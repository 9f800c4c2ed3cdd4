import json

import numpy as np
import pytest
from scipy import stats

from bcnet.errors import UserError
from bcnet.results import Ranking, read_record
from bcnet.truth.ground_truth import load_ground_truth
from bcnet.truth.ranking import left_out, rank
from bcnet.truth.score_files import load_scores

ACCURACIES = {"16-4-12": 0.539, "16-8-12": 0.6, "16-8-4": 0.51, "8-8-4": 0.47, "8-16-4": 0.55, "12-4-8": 0.47, "4-4-4": 0.3}
SCORES = {"16-4-12": 3.0, "16-8-12": 2.5, "16-8-4": 2.0, "8-8-4": 2.0, "8-16-4": 1.0, "12-4-8": 0.5, "4-4-4": 0.25}
COSTS = {name: [1000 * sum(map(int, name.split("-"))), 10 + sum(map(int, name.split("-")))] for name in ACCURACIES}


def write(tmp_path, content, name="truth.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def csv_of(accuracies, costs=None):
    lines = [f"{name},{acc}" + (",{},{}".format(*costs[name]) if costs else "") for name, acc in accuracies.items()]
    return "\n".join(["widths,accuracy" + (",flops,params" if costs else ""), *lines]) + "\n"


def test_fractions_and_per_cent_in_json_and_csv_are_the_same_truth(tmp_path):
    per_cent = {name: round(100 * acc, 6) for name, acc in ACCURACIES.items()}
    files = [
        write(tmp_path, {"about": "a challenge", "acc": ACCURACIES}, "challenge.json"),
        write(tmp_path, ACCURACIES, "plain.json"),
        write(tmp_path, {"acc": per_cent}, "per_cent.json"),
        write(tmp_path, csv_of(ACCURACIES), "fractions.csv"),
        write(tmp_path, csv_of(per_cent), "per_cent.CSV"),
        write(
            tmp_path, "\ufeff" + csv_of(per_cent).replace(",", " , ").replace("widths", "Widths").replace("\n", "\r\n"), "spreadsheet.csv"
        ),
    ]
    for file in files:
        truth = load_ground_truth(file)
        assert truth.names == tuple(ACCURACIES)
        assert truth.mean == pytest.approx(list(per_cent.values()))
        assert truth.indices[0].tolist() == [16, 4, 12]
        assert ("fractions" in truth.meta["accuracy"]) == ("per_cent" not in file.name and "spreadsheet" not in file.name)
        assert truth.unknown("flops") == truth.unknown("params") == len(truth)
    assert load_ground_truth(files[0]).meta["about"] == "a challenge"


def test_one_accuracy_above_one_makes_all_of_them_per_cent(tmp_path):
    assert load_ground_truth(write(tmp_path, {"4-4": 0.5, "8-4": 1})).mean.tolist() == [50, 100]
    assert load_ground_truth(write(tmp_path, {"4-4": 0.5, "8-4": 1.5})).mean.tolist() == [0.5, 1.5]


def test_seeds_are_columns_or_lists(tmp_path):
    for stem in ("accuracy", "acc"):
        text = f"{stem}_0,widths,{stem}_1,flops,params\n90,64:8,92,2000,1e2\n80.5,8:64,81,3000,200\n"
        truth = load_ground_truth(write(tmp_path, text, "truth.csv"))
        assert truth.acc.tolist() == [[90, 92], [80.5, 81]]
        assert truth.indices.tolist() == [[64, 8], [8, 64]]
        assert (truth.flops.tolist(), truth.params.tolist()) == ([2000, 3000], [100, 200])
    assert load_ground_truth(write(tmp_path, {"64:8": [90, 92], "8:64": [80.5, 81]})).acc.tolist() == truth.acc.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"acc": ACCURACIES, "flop": {}}, "key 'flop' beside 'acc'"),
        ({"acc": {}}, "'acc' holds no widths"),
        ({"acc": {"16-4": 0.5, "16-x": 0.5, "16-y": 0.1}}, r"'16-x' is not a list of channel counts.*2 of 3 entries"),
        ({"16-4": 0.5, "16-0": 0.5}, "'16-0' is not a list"),
        ({"16-4": 0.5, "16-04": 0.5}, "'16-04' is not a list"),
        ({"64:64": 0.5, "64-32": 0.5}, "'64-32' is not a list of channel counts such as '16:4:12'"),
        ({"4432214": 0.5}, "'4432214' is not a list"),
        ({"16-4": 0.5, "16-4-8": 0.5}, "'16-4-8' has 3 channel counts, the first entry has 2"),
        ({"16-4": 0.5, "16-8": "high"}, "'16-8' has the accuracy 'high'"),
        ({"16-4": 0.5, "16-8": True}, "'16-8' has the accuracy True"),
        ({"16-4": 0.5, "16-8": None}, "'16-8' has the accuracy None"),
        ({"16-4": 0.5, "16-8": {"acc": [90]}}, "'16-8' has the accuracy {'acc'"),
        ({"16-4": 0.5, "16-8": -0.1}, "'16-8' has the accuracy -0.1"),
        ({"16-4": 50, "16-8": 101}, "'16-8' has the accuracy 101"),
        ({"16-4": [50, 51], "16-8": [50]}, "'16-8' has accuracies of 1 seeds, the first entry of 2"),
        ({"16-4": []}, "'16-4' has accuracies of 0 seeds"),
        ('{"acc": {"16-4": NaN}}', "'16-4' has the accuracy nan"),
        ('{"acc": {"16-4": 0.5, "16-4": 0.6}}', "'16-4' stands there twice"),
    ],
)
def test_wrong_json_is_refused_naming_the_first_offender(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        load_ground_truth(write(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("widths,accuracy\n", "holds no widths"),
        ("width,accuracy\n4-4,0.5\n", "column 'width' is not known"),
        ("widths;accuracy\n4-4;0.5\n", "column 'widths;accuracy' is not known"),
        ("widths,flops\n4-4,5\n", "no column 'accuracy'"),
        ("accuracy,flops\n0.5,5\n", "no column 'widths'"),
        ("widths,accuracy,accuracy\n4-4,0.5,0.5\n", "column 'accuracy' stands there twice"),
        ("widths,accuracy,accuracy_0\n4-4,0.5,0.5\n", "'accuracy' and 'accuracy_0': expected one"),
        ("widths,accuracy\n4-4,0.5\n\n4-8,0.5,3\n", "line 4: has 3 cells, the header has 2"),
        ("widths,accuracy\n4-4,0.5\n4-8,\n", "line 3: '4-8' has the accuracy ''"),
        ("widths,accuracy\n4-4,0.5\n4-8,0.6\n4-4,0.5\n", "line 4: '4-4' stands there twice"),
        ("widths,accuracy\n4-4,0.5\n4-8,inf\n", "line 3: '4-8' has the accuracy inf"),
        ("widths,accuracy,flops\n4-4,0.5,10\n4-8,0.6,\n", "line 3: '4-8' has the flops '': expected a positive integer"),
        ("widths,accuracy,params\n4-4,0.5,1.5\n", "line 2: '4-4' has the params 1.5"),
        ('widths,accuracy\n"4-4,0.5\n', "not a CSV file"),
    ],
)
def test_wrong_csv_is_refused_naming_the_first_offender(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_ground_truth(write(tmp_path, text, "truth.csv"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        load_ground_truth(tmp_path / "nothing.csv")


def test_the_statistics_are_scipys_and_baselines_without_costs_are_left_out(tmp_path):
    truth = load_ground_truth(write(tmp_path, {"acc": ACCURACIES}))
    for names in (list(ACCURACIES), list(ACCURACIES)[1:6]):  # all of them and some
        scores = {name: SCORES[name] for name in reversed(names)}
        ranking = rank(scores, truth, resamples=20)
        assert list(ranking.predictors) == ["score", "sum_of_widths"]
        accuracies = [ACCURACIES[name] for name in scores]
        for predictor, values in (("score", list(scores.values())), ("sum_of_widths", [sum(map(int, name.split("-"))) for name in scores])):
            found = ranking.predictors[predictor]
            assert found.kendall.value == pytest.approx(stats.kendalltau(values, accuracies).statistic)
            assert found.spearman.value == pytest.approx(stats.spearmanr(values, accuracies).statistic)
            assert found.pearson.value == pytest.approx(stats.pearsonr(values, accuracies).statistic)
            assert found.kendall.low <= found.kendall.value <= found.kendall.high
        assert (ranking.num_networks, ranking.num_in_truth, ranking.num_seeds) == (len(names), 7, 1)
        assert ranking.noise_ceiling is None
        assert ranking.regret == []
        baselines, regret = left_out(scores, truth, ranking)
        assert baselines == f"no baseline flops and params: not known for {len(names)} of {len(names)} scored networks"
        assert "7 of 7 networks of the truth" in regret
    for budget in ("flops=0.5", "params=20"):
        with pytest.raises(UserError, match=f"'{budget}' cannot be applied"):
            rank(SCORES, truth, budgets=[budget], resamples=0)
    with pytest.raises(UserError, match="first '4-4-8'; the truth holds widths such as '16-4-12'"):
        rank({**SCORES, "4-4-8": 1.0}, truth, resamples=0)


def test_costs_of_the_score_file_stand_in_for_those_the_truth_lacks(tmp_path):
    """The same numbers as from a truth that states them; for a part of the networks the baselines, but no regret."""
    lacking = load_ground_truth(write(tmp_path, {"acc": ACCURACIES}))
    stating = load_ground_truth(write(tmp_path, csv_of(ACCURACIES, COSTS), "truth.csv"))
    completed = lacking.with_costs(COSTS)
    expected = rank(SCORES, stating, resamples=10)
    assert rank(SCORES, completed, resamples=10) == expected
    assert left_out(SCORES, completed, expected) == []
    assert list(expected.predictors) == ["score", "flops", "params", "sum_of_widths"]
    flops = stats.kendalltau([COSTS[name][0] for name in ACCURACIES], list(ACCURACIES.values())).statistic
    assert expected.predictors["flops"].kendall.value == pytest.approx(flops)
    (row,) = rank(SCORES, completed, budgets=["flops=30000"], resamples=0).regret
    assert (row.pick, row.ties, row.best) == ("16-8-4", 2, "8-16-4")
    assert row.regret == pytest.approx(55 - (51 + 47) / 2)

    some = {name: SCORES[name] for name in list(SCORES)[:4]}
    partly = lacking.with_costs({name: COSTS[name] for name in some})
    ranking = rank(some, partly, resamples=10)
    assert ranking.predictors == rank(some, stating, resamples=10).predictors
    assert ranking.regret == []
    (line,) = left_out(some, partly, ranking)
    assert "3 of 7 networks of the truth" in line
    with pytest.raises(UserError, match="3 of 7 networks"):
        rank(some, partly, budgets=["flops=30000"], resamples=0)


def test_what_a_truth_states_is_not_overwritten(tmp_path):
    text = "widths,accuracy,flops\n" + "".join(f"{name},{acc},{COSTS[name][0]}\n" for name, acc in ACCURACIES.items())
    truth = load_ground_truth(write(tmp_path, text, "truth.csv")).with_costs({name: [1, 2] for name in ACCURACIES})
    assert truth.flops.tolist() == [flops for flops, _ in COSTS.values()]
    assert set(truth.params) == {2}


@pytest.mark.parametrize("costs", [{"4-4": ["a", 2]}, {"4-4": [0, 2]}, {"4-4": [10, 1.5]}, {"4-4": [True, 2]}])
def test_costs_of_a_score_file_are_positive_integers(tmp_path, costs):
    with pytest.raises(UserError, match=r"the costs of '4-4' are .*\(1 of 1 are wrong\)"):
        load_scores(write(tmp_path, {"scores": {"4-4": 1}, "costs": costs}))


def test_the_command_ranks_and_says_what_it_leaves_out(bcnet, tmp_path):
    truth, scores = write(tmp_path, {"acc": ACCURACIES}), write(tmp_path, {"scores": SCORES}, "scores.json")
    code, out, _ = bcnet("rank", scores, "--truth", truth)
    assert code == 0
    for words in ("7 networks", "sum_of_widths", "are fractions", "no baseline flops and params", "no regret"):
        assert words in out
    assert set(read_record(tmp_path / "ranking.json", Ranking, "a ranking").predictors) == {"score", "sum_of_widths"}
    page = (tmp_path / "ranking.html").read_text()
    assert "No baseline flops and params" in page
    assert "What picking by score would lose" not in page
    code, _, err = bcnet("rank", scores, "--truth", truth, "--budget", "flops=0.5")
    assert code == 2
    assert "budget 'flops=0.5' cannot be applied" in err
    code, out, _ = bcnet("truth", "show", truth, "--out", tmp_path)
    assert code == 0
    assert "7 networks, one training each" in out
    assert "accuracy 30.00 to 60.00 %" in out
    assert "does not say what its networks cost" in out
    assert "16-8-12, 60.00 %" in (tmp_path / "truth.html").read_text()


def test_the_command_takes_costs_from_either_file_and_refuses_two_that_differ(bcnet, tmp_path):
    with_costs = write(tmp_path, {"scores": SCORES, "costs": COSTS}, "scores.json")
    without = write(tmp_path, {"scores": SCORES}, "bare.json")
    stating = write(tmp_path, csv_of(ACCURACIES, COSTS), "truth.csv")
    found = []
    for number, (scores, truth) in enumerate([(with_costs, write(tmp_path, ACCURACIES)), (without, stating), (with_costs, stating)]):
        code, out, _ = bcnet("rank", scores, "--truth", truth, "--budget", "flops=30000", "--out", tmp_path / str(number))
        assert code == 0
        assert "no baseline" not in out
        found.append(read_record(tmp_path / str(number) / "ranking.json", Ranking, "a ranking").model_copy(update={"truth": ""}))
    assert found[0] == found[1] == found[2]
    assert list(found[0].predictors) == ["score", "flops", "params", "sum_of_widths"]
    assert bcnet("truth", "show", stating, "--out", tmp_path)[0] == 0
    flops_only = write(tmp_path, "widths,acc,flops\n" + "".join(f"{name},{acc},7\n" for name, acc in ACCURACIES.items()), "other.csv")
    code, _, err = bcnet("rank", with_costs, "--truth", flops_only)
    assert code == 2
    assert "'16-4-12' has 7 FLOPs and unknown params there, 32,000 and 42 here (7 of 7 differ)" in err


def test_a_page_with_effects_is_drawn_of_channel_counts(bcnet, tmp_path):
    rng = np.random.default_rng(0)
    names = ["-".join(map(str, row)) for row in {tuple(row) for row in rng.choice([64, 128, 512], (60, 3)).tolist()}]
    accuracies = {name: 50 + sum(map(int, name.split("-"))) / 100 for name in names}
    scores = {name: float(rng.random()) for name in names}
    truth = write(tmp_path, csv_of(accuracies), "truth.csv")
    assert bcnet("rank", write(tmp_path, {"scores": scores}, "scores.json"), "--truth", truth)[0] == 0
    assert "Index 1 is the narrowest width" in (tmp_path / "ranking.html").read_text()
    assert (tmp_path / "effects.png").stat().st_size > 1000
