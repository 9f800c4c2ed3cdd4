import json

import numpy as np
import pytest

from bcnet.config import load_config, validate_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.truth.build import build_truth
from bcnet.truth.ground_truth import CHANNEL_BENCH_DIGITS, find_truth, load_ground_truth
from bcnet.truth.ranking import rank
from bcnet.truth.score_files import load_scores

GOOD = {"acc": [90.0, 91.0], "mean": 90.5, "std": 0.5, "params": 10, "flops": 20}


def write(tmp_path, tree):
    path = tmp_path / "truth.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def test_files_are_read_with_and_without_meta(tmp_path):
    for meta in ({}, {"meta": {"seeds": 2}}):
        truth = load_ground_truth(write(tmp_path, meta | {"12": GOOD, "21": GOOD | {"flops": 30}}))
        assert truth.names == ("12", "21")
        assert truth.mean.tolist() == [90.5, 90.5]
        assert truth.flops.tolist() == [20, 30]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"12": GOOD, "21": GOOD | {"acc": "high"}}, "'21': field 'acc' is 'high'"),
        ({"12": GOOD, "21": GOOD | {"acc": [90.0]}}, "'21': field 'acc' holds 1 seeds"),
        ({"12": GOOD, "21": GOOD | {"acc": [90.0, 190.0]}}, "'21': field 'acc'"),
        ({"12": GOOD, "21": GOOD | {"flops": 1.5}}, "'21': field 'flops' is 1.5"),
        ({"12": GOOD, "21": GOOD | {"mean": 80}}, "'21': field 'mean'"),
        ({"12": GOOD, "213": GOOD}, "'213': has 3 indices"),
        ({"12": GOOD, "a1": GOOD, "b1": GOOD}, r"'a1': is not a width string.*2 of 3 entries"),
        ({"12": {k: v for k, v in GOOD.items() if k != "params"}}, "'12': field 'params' is None"),
        ({"12": 3}, "'12'"),
        ({}, "holds no widths"),
        ("[1]", "expected an object"),
        ('{"12": ', "not a JSON file"),
        ('{"12": {"acc": [NaN]}}', "'12': field 'acc'"),
        ('{"12": {}, "12": {}}', "'12' stands there twice"),
    ],
)
def test_wrong_files_are_refused_naming_the_first_offender(tmp_path, tree, message):
    with pytest.raises(UserError, match=message):
        load_ground_truth(write(tmp_path, tree))


@pytest.mark.parametrize(
    ("names", "meta", "expected"),
    [
        (["12", "3", "10"], {}, [[12], [3], [10]]),  # a space of one group with 16 bins: names of one and two digits
        (["12", "10"], {}, [[12], [10]]),  # a zero is no index
        (["12", "13"], {"config": {"space": {"bins": 16}}}, [[12], [13]]),
        (["12", "13"], {}, [[1, 2], [1, 3]]),
        (["12", "13"], {"config": {"space": {"bins": 4}}}, [[1, 2], [1, 3]]),
        (["12-3", "10-10"], {}, [[12, 3], [10, 10]]),
    ],
)
def test_the_indices_of_a_space_of_one_group_with_many_bins_are_one_each(tmp_path, names, meta, expected):
    truth = load_ground_truth(write(tmp_path, {"meta": meta} | dict.fromkeys(names, GOOD)))
    assert truth.indices.tolist() == expected
    assert truth.subset(np.array([0])).indices.tolist() == expected[:1]  # also where the rest is not there to tell


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_ground_truth(tmp_path / "nothing.json")


@pytest.mark.parametrize("tree", [{}, {"scores": {}}, {"scores": {"12": "a"}}, {"scores": {"12": True}}, '{"scores": {"12": NaN}}', []])
def test_score_files_are_checked(tmp_path, tree):
    with pytest.raises(UserError):
        load_scores(write(tmp_path, tree))


def test_scores_are_read(tmp_path):
    assert load_scores(write(tmp_path, {"meta": {}, "scores": {"12": 1, "21": 0.5}})).scores == {"12": 1.0, "21": 0.5}


def test_the_embedded_benchmark_is_whole_and_of_the_model_it_names():
    """All widths, ten seeds each, costs of the model as it is now, the recipe of the shipped config; and it is not easy."""
    truth = load_ground_truth(find_truth(CHANNEL_BENCH_DIGITS))
    run = Experiment(load_config("digits/truth"))
    assert truth.in_space(run.costs).names == truth.names
    assert sorted(truth.names) == [run.space.encode(widths) for widths in run.space.enumerate()]
    assert truth.acc.shape == (1024, 10)
    recipe = validate_config(truth.meta["config"], "the truth's own config")
    assert all(getattr(recipe, key) == getattr(run.config, key) for key in ("data", "model", "space", "retrain"))
    ranking = rank({name: float(flops) for name, flops in zip(truth.names, truth.flops, strict=True)}, truth, resamples=0)
    assert ranking.noise_ceiling > 0.9
    assert ranking.predictors["flops"].kendall.value < 0.6


def test_one_network_of_the_embedded_benchmark_can_be_trained_again(tmp_path):
    """Rounding differs between machines and versions of torch, a network of two seeds by no more than a few points."""
    embedded = load_ground_truth(find_truth(CHANNEL_BENCH_DIGITS))
    build_truth(load_config("digits/truth"), tmp_path / "again.json", [(4, 2, 3, 4, 2)], 2)
    again = load_ground_truth(tmp_path / "again.json")
    assert again.acc[0] == pytest.approx(embedded.acc[embedded.names.index("42342"), :2], abs=4.0)


def test_accuracies_of_which_none_is_above_one_are_fractions(tmp_path):
    tree = {name: {"acc": [value], "params": 10, "flops": 100} for name, value in (("11", 0.5), ("12", 0.75), ("22", 1.0))}
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    assert load_ground_truth(tmp_path / "truth.json").mean.tolist() == [50, 75, 100]
    (tmp_path / "truth.json").write_text(json.dumps({"meta": {"accuracy": "last epoch, test images, per cent"}} | tree))
    assert load_ground_truth(tmp_path / "truth.json").mean.tolist() == [0.5, 0.75, 1.0]  # of networks that have learned nothing
