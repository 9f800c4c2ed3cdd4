import json

import numpy as np
import pytest

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.models.digits import DigitsResNet
from bcnet.report.compare_page import compare_rows
from bcnet.report.plots import draw_comparison
from bcnet.results import Comparison, PredictorRow, ScoredSeed, read_record
from bcnet.scoring.zero_cost import PROXIES
from bcnet.space.cost import CostTable
from bcnet.space.trace import trace
from bcnet.truth.compare import baselines, compare
from bcnet.truth.ground_truth import GroundTruth, load_ground_truth

QUICK = ["train.epochs=2", "score.calibration_images=64", "score.max_images=100"]


@pytest.fixture(scope="module")
def costs():
    return CostTable(trace(DigitsResNet(), (1, 8, 8)))


@pytest.fixture
def truth(costs, tmp_path):
    """Accuracies that grow with the channels, with noise; costs are those of the model."""
    rng = np.random.default_rng(0)
    space = costs.space
    widths = [space.sample(rng) for _ in range(40)]
    tree = {}
    for w in widths:
        acc = [60 + sum(w) + float(rng.normal()) for _ in range(3)]
        tree[space.encode(w)] = {"acc": acc, "params": costs.one(w, "params"), "flops": costs.one(w, "flops")}
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    return load_ground_truth(tmp_path / "truth.json")


def test_methods_get_equal_passes_and_a_second_call_trains_nothing(tmp_path, truth, monkeypatch):
    configs = {name: load_config(f"digits/{name}", QUICK) for name in ("bcnetv2", "autoslim", "uniform")}
    found = compare(configs, truth, 2, tmp_path / "out", competitors=())
    assert {seed.passes for method in found.methods.values() for seed in method.per_seed} == {40}
    assert [method.epochs for method in found.methods.values()] == [2, 1, 4]
    assert len({seed.kendall for seed in found.methods["bcnetv2"].per_seed}) == 2
    monkeypatch.setattr("bcnet.training.trainer.Trainer._train_step", None)
    monkeypatch.setattr("bcnet.scoring.scorer.Scorer._evaluate", None)
    again = compare(configs, truth, 2, tmp_path / "out", competitors=())
    assert read_record(tmp_path / "out" / "compare.json", Comparison, "a comparison") == found == again


def test_competitors_make_equal_passes_and_a_second_call_measures_nothing(tmp_path, truth, monkeypatch):
    monkeypatch.setattr("bcnet.truth.competitors.ZERO_COST_WIDTHS", 12)
    monkeypatch.setattr("bcnet.truth.competitors.INITIALISATIONS", 1)
    configs = {"bcnetv2": load_config("digits/bcnetv2", QUICK)}
    found = compare(configs, truth, 1, tmp_path / "out")
    assert list(found.competitors) == [*PROXIES, "sensitivity", "20 trained alone"]
    assert found.methods["bcnetv2"].per_seed[0].passes == found.competitors["sensitivity"][0].passes == 40
    assert found.competitors["20 trained alone"][0].passes == 40
    for (one,) in found.competitors.values():
        assert one.kendall > 0.2  # the truth grows with the channels, and so do all of these
    monkeypatch.setattr("bcnet.training.trainer.Trainer._train_step", None)
    monkeypatch.setattr("bcnet.truth.competitors.zero_cost_scores", None)
    again = compare(configs, truth, 1, tmp_path / "out").competitors
    assert {name: one.scores for name, (one,) in again.items()} == {name: one.scores for name, (one,) in found.competitors.items()}


def test_a_competitor_that_does_not_exist_is_refused(tmp_path, truth):
    with pytest.raises(UserError, match=r"'magic' is none of zero_cost, sensitivity, trained_alone, or none"):
        compare({"bcnetv2": load_config("digits/bcnetv2", QUICK)}, truth, 1, tmp_path / "out", competitors=["magic"])


def test_a_truth_of_channel_counts_without_costs_is_compared_by_the_models_own(tmp_path, truth, costs):
    lines = (
        f"{'-'.join(map(str, costs.space.channels(costs.space.decode(name))))},{acc}"
        for name, acc in zip(truth.names, truth.mean, strict=True)
    )
    (tmp_path / "truth.csv").write_text("widths,accuracy\n" + "\n".join(lines))
    plain = load_ground_truth(tmp_path / "truth.csv")
    assert plain.unknown("flops") == len(plain)
    known = plain.in_space(costs)
    assert (known.names, known.flops.tolist(), known.params.tolist()) == (truth.names, truth.flops.tolist(), truth.params.tolist())
    assert known.full_cost("flops") == costs.of_model("flops") > known.flops.max()  # the full model is none of these
    means = GroundTruth(truth.names, truth.mean[:, None], truth.flops, truth.params, {})
    config = {"uniform": load_config("digits/uniform", QUICK)}
    found, again = (compare(config, one, 1, tmp_path / "out", competitors=()) for one in (plain, means))
    assert found == again
    assert found.methods["uniform"].per_seed[0].kendall > 0


def test_the_command_prints_a_table_and_a_page(tmp_path, truth, capsys):
    arguments = ["compare", "digits/bcnetv2", "digits/uniform", "--truth", str(tmp_path / "truth.json"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--seeds", "1", "--competitors", "none", *QUICK])
    assert not caught.value.code
    out = capsys.readouterr().out
    for word in ("bcnetv2", "uniform", "FLOPs", "sum of widths", "ceiling"):
        assert word in out
    assert (tmp_path / "out" / "index.html").read_text().count("data:image/png;base64,") == 3


def test_ridge_regression_on_a_few_truths_ranks_an_additive_truth(costs):
    widths = np.array(list(costs.space.enumerate()))
    mean = (widths**0.5) @ np.array([3.0, 1, 2, 1, 2])
    names = tuple(costs.space.encode(w) for w in widths.tolist())
    truth = GroundTruth(names, 60 + mean[:, None], costs.of_widths(widths, "flops"), costs.of_widths(widths, "params"), {})
    rows = baselines(truth, repeats=3)
    assert 0.85 < rows["ridge on 32 true accuracies"].kendall < rows["ridge on 128 true accuracies"].kendall <= 1
    assert rows["FLOPs"].kendall < rows["ridge on 32 true accuracies"].kendall


def test_a_truth_of_another_model_is_refused(truth, costs):
    assert truth.in_space(costs).names == truth.names
    flops = truth.flops.copy()
    flops[3] += 1
    wrong = GroundTruth(truth.names, truth.acc, flops, truth.params, {})
    with pytest.raises(UserError, match=rf"{truth.names[3]}.*\(1 of {len(truth)} differ\)"):
        wrong.in_space(costs)
    with pytest.raises(UserError, match="another space"):
        GroundTruth(("123",), truth.acc[:1], flops[:1], truth.params[:1], {}).in_space(costs)


def test_a_schedule_keeps_its_shape_when_epochs_are_made_equal(tmp_path, truth):
    shape = ["train.epochs=4", "train.warmup_epochs=3", "train.schedule=step", "train.step_epochs=2"]
    configs = {name: load_config(f"digits/{name}", [*QUICK, *shape]) for name in ("uniform", "autoslim")}
    compare(configs, truth, 1, tmp_path / "out", competitors=())
    recipe = load_config(tmp_path / "out" / "autoslim" / "seed0" / "config.yaml").train
    assert (recipe.epochs, recipe.warmup_epochs, recipe.step_epochs) == (1, 0.75, 0.5)
    compare(configs, truth, 1, tmp_path / "out", competitors=())  # goes on


def test_what_ranks_nothing_is_undefined_and_too_few_networks_are_refused_at_once(tmp_path, truth):
    nan = float("nan")
    row = PredictorRow(kendall=nan, spearman=nan, pearson=nan, regret={})
    seeds = [ScoredSeed(**row.model_dump(), passes=0, train_seconds=1.0, scores=[1.0]) for _ in range(2)]
    found = Comparison(num_networks=40, num_seeds=2, methods={}, competitors={"zen": seeds}, baselines={}, noise_ceiling=None)
    assert compare_rows(found)[0][:5] == ("zen", "undefined", "-", "undefined", "undefined")
    draw_comparison(tmp_path / "compare.png", found)
    with pytest.raises(UserError, match="2 networks in the truth cannot be ranked: at least 3"):
        compare({"bcnetv2": load_config("digits/bcnetv2", QUICK)}, truth.subset(np.arange(2)), 1, tmp_path / "out", competitors=())
    assert not (tmp_path / "out").exists()
