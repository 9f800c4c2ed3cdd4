import json

import pytest
import torch

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.latency.session import LatencySettings, measure_latency
from bcnet.latency.table import layer_times, load_latency
from bcnet.run import Run


def test_a_table_is_measured_and_a_budget_names_it(bcnet, tmp_path):
    table = tmp_path / "table.json"
    code, out, err = bcnet("latency", "digits/resnet", "--out", table, "--device", "cpu", "--repeats", 1, "--networks", 6)
    assert code == 0, err
    for words in ("noise: ", "6 networks layer by layer", "ms measured, ", "Spearman", str(table)):
        assert words in out
    written = json.loads(table.read_text())
    assert written["covered"] < 1  # the others are fitted
    assert len(written["held_out"]["predicted_ms"]) == len(written["held_out"]["measured_ms"]) == written["held_out"]["networks"]
    assert table.with_suffix(".png").is_file()
    space = Experiment(load_config("digits/bcnetv2")).space
    times = layer_times(table, space)
    assert list(times) == list(written["layers"])
    assert sum(times.values()) + written["overhead_ms"] == pytest.approx(load_latency(table, space).one(space.full))
    code, out, _ = bcnet("cost", "digits/resnet", "--widths", "44444", "--cost", table)
    assert code == 0
    assert " ms latency" in out
    experiment = Experiment(load_config("digits/bcnetv2", [f"costs=[{table}]"]))
    full = experiment.costs.range("latency")[1]
    (budget,) = experiment.parse_budgets([f"latency={2 * full!r}ms"])
    assert (budget.cost, budget.limit) == ("latency", pytest.approx(2 * full))
    with pytest.raises(UserError, match="latency is known for the choices of the groups only"):
        experiment.costs.of_channels([1, 2, 3, 4, 5], "latency")


def test_a_search_keeps_a_budget_in_milliseconds(run, tmp_path):
    """With the fixture's run, and a table whose times follow the widths."""
    table = tmp_path / "table.json"
    space = run.space
    settings = LatencySettings("digits/resnet", 10, (1, 8, 8), repeats=1, times=1, checks=4, most=6)
    measured = measure_latency(run.experiment.model, space, settings, device=torch.device("cpu"), out=table)
    layers = {name: layer.model_copy(update={"ms": {}, "fit": (0.1, 0.01, 0.01, 0.0)}) for name, layer in measured.layers.items()}
    measured.model_copy(update={"layers": layers, "overhead_ms": 0.5, "scale": 1.0}).write(table)
    opened = Run.open(run.folder, [f"costs=[{table}]"])
    low, high = opened.costs.range("latency")
    record = opened.search(f"latency={(low + high) / 2:.4f}ms")
    assert record.settings.budgets[0].limit == pytest.approx((low + high) / 2, abs=1e-4)
    assert len(record.evaluated) > 5
    assert all(low <= row.costs["latency"] <= record.settings.budgets[0].limit for row in record.evaluated)


def test_names_that_are_no_files_are_refused(bcnet, tmp_path):
    for out, words in ((tmp_path / "table.txt", "ends with .json"), (tmp_path, "ends with .json")):
        code, _, err = bcnet("latency", "digits/resnet", "--out", out)
        assert code == 2
        assert words in err
    (tmp_path / "folder.json").mkdir()
    code, _, err = bcnet("latency", "digits/resnet", "--out", tmp_path / "folder.json")
    assert (code, "is a folder" in err) == (2, True)
