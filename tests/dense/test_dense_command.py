import json
import shutil
from pathlib import Path

import pytest
import yaml

from bcnet import load_network
from bcnet.config import load_as
from bcnet.dense.config import DenseConfig
from bcnet.dense.experiment import DenseExperiment
from bcnet.dense.results import DenseRecord
from bcnet.dense.run import DenseRun
from bcnet.models.net_config import read_net_config
from bcnet.report.dense_page import collapse_sentence
from bcnet.results import read_record
from bcnet.scoring.evaluate import evaluate

QUICK = ("weights.epochs=3", "architecture.start_epoch=1", "weights.batch_size=128", "architecture.batch_size=100", "retrain.epochs=1")
QUICK += ("derive.calibration_images=128",)
A = "[[8, 8], 'mbconv_k3_t1', [], 0, 1]|[[8, 16], 'mbconv_k3_t3', [], 0, 2]|[[16, 32], 'mbconv_k3_t3', [], 0, 2]|[[32, 48], 'conv1_1']"


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> Path:
    """A search of a few steps; tests read it and must not write to it."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    run = DenseRun.create(folder, load_as(DenseConfig, "dense/digits", [*QUICK, "cost.budget=flops=0.5"]))
    run.train()
    run.derive()
    return folder


@pytest.fixture
def folder(searched, tmp_path) -> Path:
    shutil.copytree(searched, tmp_path / "run")
    return tmp_path / "run"


def test_a_search_ends_with_a_network_that_keeps_the_budget_and_everything_written(bcnet, tmp_path):
    out = tmp_path / "run"
    code, text, err = bcnet("dense", "train", "dense/digits", *QUICK, "--budget", "flops=0.35", "--out", out)
    assert code == 0, err
    assert "budget flops=0.35: found " in text
    record = read_record(out / "search.json", DenseRecord, "a search")
    costs = DenseExperiment(load_as(DenseConfig, out / "config.yaml")).costs
    assert record.budget.limit == int(0.35 * costs.range("flops")[1])
    assert all(one.costs["flops"] <= record.budget.limit for one in record.candidates)
    assert record.best.val_accuracy == max(one.val_accuracy for one in record.candidates)
    assert len(record.epochs) == 3
    assert read_net_config((out / "net_config.txt").read_text()) == read_net_config(record.best.net_config)
    pictures = {f"{name}{form}.png" for name in ("course", "shares", "grid") for form in ("", "-narrow")}
    assert {file.name for file in out.glob("*.png")} == pictures
    assert (out / "index.html").read_text().count("max-width: 640px") >= 3  # each has its narrow form there
    assert record.best.net_config.split("|")[1] in (out / "index.html").read_text().replace("&#x27;", "'")
    network, description = load_network(out / "network")
    assert description["flops"] == record.best.costs["flops"]
    held_out = evaluate(network, DenseExperiment(load_as(DenseConfig, out / "config.yaml")).validation)["accuracy"]
    assert 100 * held_out == pytest.approx(record.best.val_accuracy)
    before = (out / "search.json").read_text()
    code, text, _ = bcnet("dense", "train", "dense/digits", *QUICK, "--budget", "flops=0.35", "--out", out, "--resume")
    assert code == 0
    assert json.loads(before)["best"] == json.loads((out / "search.json").read_text())["best"]


def test_a_search_may_be_derived_anew_for_another_budget(bcnet, folder):
    for budget in ("flops=0.3", "params=0.4"):
        code, _text, err = bcnet("dense", "derive", folder, "--budget", budget)
        assert code == 0, err
        record = DenseRun.open(folder).record()
        assert record.best.costs[record.budget.cost] <= record.budget.limit


def test_what_was_found_is_trained_from_scratch_beside_others(bcnet, folder):
    code, text, err = bcnet("dense", "retrain", folder, "--seeds", "0,1", "--net", f"mine={A}")
    assert code == 0, err
    assert "found: test accuracy" in text
    assert "mine: test accuracy" in text
    known = {one.name: one for one in DenseRun.open(folder).retrained()}
    assert [len(one.acc) for one in known.values()] == [2, 2]
    network, description = load_network(folder / "retrain" / "mine" / "seed1")
    tested = evaluate(network, DenseRun.open(folder).experiment.test)["accuracy"]
    assert 100 * tested == pytest.approx(known["mine"].acc[1]) == pytest.approx(description["test_accuracy"])
    assert "Trained from scratch" in (folder / "index.html").read_text()
    assert bcnet("dense", "retrain", folder, "--seeds", "0,1")[0] == 0
    assert {one.name: one for one in DenseRun.open(folder).retrained()} == known
    record = DenseRun.open(folder).record()
    less = (record.reachable["flops"][0] + record.best.costs["flops"]) // 2
    assert bcnet("dense", "derive", folder, "--budget", f"flops={less}")[0] == 0  # another network, which was not trained
    assert [one.name for one in DenseRun.open(folder).retrained()] == ["found before", "mine"]
    assert ">found before</td>" in (folder / "index.html").read_text()


@pytest.mark.parametrize("cost", ["flops", "params"])
def test_the_widths_of_what_was_found_are_searched_by_bcnet_itself(bcnet, folder, cost):
    """Within the same cost as the grid's search was."""
    assert bcnet("dense", "derive", folder, "--budget", f"{cost}=0.4")[0] == 0
    quick = ("train.epochs=1", "search.evaluations=12", "search.algorithm.population=6", "score.calibration_images=64")
    code, text, err = bcnet("dense", "refine", folder, *quick)
    assert code == 0, err
    record = json.loads((folder / "refined" / "search.json").read_text())
    assert record["best"][cost] <= DenseRun.open(folder).record().best.costs[cost]
    assert f"--budget {cost}={DenseRun.open(folder).record().best.costs[cost]}" in (folder / "refine.yaml").read_text()
    model = yaml.safe_load((folder / "refined" / "config.yaml").read_text())["model"]
    assert model["name"] == "densenas/chain"
    assert f"bcnet retrain {folder / 'refined'}" in text


def test_a_collapse_to_one_operation_is_said(searched):
    record = DenseRun.open(searched).record()
    assert collapse_sentence(record) == "No operation has taken over."
    names = list(record.epochs[0].shares)
    shares = {name: 0.9 if name == names[1] else 0.1 / (len(names) - 1) for name in names}
    collapsed = record.model_copy(update={"epochs": [*record.epochs[:-1], record.epochs[-1].model_copy(update={"shares": shares})]})
    assert f"has collapsed to {names[1]}: weights.sampling=fair" in collapse_sentence(collapsed)


def test_grids_and_networks_are_described(bcnet, tmp_path):
    code, text, _ = bcnet("dense", "space", "dense/mbv2")
    assert code == 0
    assert "15,456 paths" in text
    assert "flops: 94.1M to 1.519G" in text
    code, text, _ = bcnet("dense", "cost", A, "--input", "1x8x8", "--num-classes", "10", "--stem-stride", "1", "--json")
    first = json.loads(text)
    (tmp_path / "net.txt").write_text(A.replace("|", "|\n"))
    code, text, _ = bcnet("dense", "cost", tmp_path / "net.txt", "--input", "1x8x8", "--num-classes", "10", "--stem-stride", "1")
    assert f"{first['flops']:,} FLOPs  {first['params']:,} params" in text
    assert "with images 1x8x8, 10 classes and a stem of stride 1" in text
    assert json.loads(bcnet("dense", "cost", A, "--grid", "dense/digits", "--json")[1]) == first
    assert "with images 3x224x224, 1,000 classes and a stem of stride 2" in bcnet("dense", "cost", A)[1]


def test_a_latency_is_measured_searched_for_and_kept(bcnet, tmp_path):
    table = tmp_path / "table.json"
    code, text, err = bcnet("dense", "latency", "dense/digits", "--out", table, "--device", "cpu", "--threads", 1, "--repeats", 2)
    assert code == 0, err
    code, text, _ = bcnet("dense", "cost", A, "--latency", table, "--grid", "dense/digits", "--json")
    ms = json.loads(text)["latency"]
    out = tmp_path / "run"
    code, text, err = bcnet(
        "dense", "train", "dense/digits", *QUICK, f"cost.latency={table}", "--budget", f"latency={1.3 * ms}ms", "--out", out
    )
    assert code == 0, err
    record = read_record(out / "search.json", DenseRecord, "a search")
    assert 0 < record.best.costs["latency"] <= record.budget.limit == pytest.approx(1.3 * ms)
    assert " ms latency" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "dense/digits", "--budget", "flops=1k"), "cannot be met: flops of this space reach from 50.42k to"),
        (("train", "dense/digits", "--budget", "latency=1ms"), "a latency wants a table: cost.latency=FILE"),
        (("train", "dense/digits", "--budget", "speed=1"), "is not COST=VALUE with COST one of flops, params"),
        (("train", "dense/digits", "grid.stages=[0, 1, 3, 4, 5]"), "grid: no path from the first block to the end"),
        (("train", "dense/digits", "grid.maps=[8, 4]"), "maps has 2 entries for 5 widths"),
        (("train", "dense/digits", "grid.width=[8]"), "unknown key 'grid.width'; did you mean 'grid.widths'?"),
        (("train", "dense/digits", "grid.maps=[32, 16, 8, 4, 2]", "grid.stages=[0,1,2,3,4]"), "would halve a feature map of 1x1"),
        (("train", "dense/digits", "architecture.start_epoch=20"), "the architecture would never be learned"),
        (("train", "dense/digits", "data.num_val=0"), "data.num_val is 0"),
        (
            (
                "train",
                "dense/nothing",
            ),
            "no such file, and no shipped config",
        ),
        (
            (
                "train",
                "digits/bcnetv2",
            ),
            "bcnetv2.yaml: grid is missing",
        ),
        (("space", "dense/digits", "cost.latency=nowhere.json"), "no such file; expected a latency table of a grid"),
        (("cost", "[[8, 8], 'conv9', [], 0, 1]"), "net_config, block 1: unknown operation 'conv9'"),
        (("cost", A.replace("[16, 32]", "[17, 32]")), "net_config, block 3: reads 17 channels, and the block before it gives 16"),
        (("cost", "nowhere.txt"), "no such file; expected a net_config"),
        (("derive", "nowhere"), "not a run directory"),
        (("latency", "dense/digits", "--out", "table.txt"), "ends with .json"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(bcnet, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = bcnet("dense", *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_mistakes_on_a_run_are_one_line(bcnet, folder):
    before = (folder / "search.json").read_bytes()
    for arguments, words in (
        (("derive", folder, "--budget", "flops=1k"), "cannot be met"),
        (("derive", folder, "weights.lr=0.3"), "was searched with another weights.lr"),
        (("retrain", folder, "--net", f"found={A}"), "is not NAME=NET"),
        (("retrain", folder, "--seeds", "0,0"), "--seeds '0,0'"),
        (("refine", folder, "--budget", "flops=1k"), "cannot be met"),
    ):
        code, _, err = bcnet("dense", *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    assert (folder / "search.json").read_bytes() == before
    assert not (folder / "refined").exists()
