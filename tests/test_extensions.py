"""The seams: one thing of every kind is added from outside, by its name in a config or on the command line."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from extensions import build
from torch.utils.flop_counter import FlopCounterMode

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.run import Run
from bcnet.space.cost import CostTable
from bcnet.space.trace import trace
from bcnet.supernet.extract import load_network
from bcnet.supernet.proof import prove
from bcnet.supernet.supernet import Supernet

QUICK = ["train.epochs=2", "score.calibration_images=128", "search.evaluations=20", "retrain.epochs=1"]


def train(folder, *settings):
    run = Run.create(folder, load_config("digits/bcnetv2", [*QUICK, *settings]))
    run.train()
    return run


def test_a_strategy_brings_its_settings_and_steps_of_different_lengths(tmp_path):
    run = train(tmp_path / "run", "train.strategy=extensions:WarmUp", "train.strategy.steps=7")
    assert run.trained.history.passes == 7 + 13 * 3
    assert "steps: 7" in (tmp_path / "run" / "config.yaml").read_text()
    assert "steps: 10" in (train(tmp_path / "plain", "train.strategy=extensions:WarmUp").folder / "config.yaml").read_text()
    for settings, message in (
        (["train.strategy=extensions:WarmUp", "train.strategy.step=7"], r"train\.strategy\.step: extensions:WarmUp has no such setting"),
        (["train.strategy=extensions:WarmUp", "train.strategy.steps=many"], r"train\.strategy\.steps: 'many' is wrong"),
        (["train.strategy=extensions:margin"], "is not a Strategy of bcnet"),
        (["train.strategy=extensions:Gone"], "expected package.module:name"),
    ):
        with pytest.raises(UserError, match=message):
            Experiment(load_config("digits/bcnetv2", settings))


def test_a_strategy_whose_steps_differ_in_length_is_resumed_bit_for_bit(tmp_path):
    settings = ["train.strategy=extensions:WarmUp", "train.strategy.steps=7"]
    whole = train(tmp_path / "whole", *settings)
    config = load_config("digits/bcnetv2", [*QUICK, *settings])
    for until in (3, 11, None):
        parts = Run.create(tmp_path / "parts", config, resume=True)
        parts.trainer.resume()
        parts.trainer.run(until_step=until)
    for one, other in zip(whole.trainer.model.parameters(), parts.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_metric_is_a_row(tmp_path):
    folder = train(tmp_path / "run").folder
    by_kl = Run.open(folder)
    by_kl.scorer.score((1, 2, 3, 4, 1))  # evaluated without it before
    run = Run.open(folder, ["score.metric=extensions:margin"])
    score = run.scorer.score((1, 2, 3, 4, 1))
    expected = []
    for side in ("left", "right"):
        run.scorer._activate((1, 2, 3, 4, 1), side)
        with torch.no_grad():
            pairs = [(run.scorer.supernet(images), labels) for images, labels in run.experiment.validation]
        logits, labels = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        others = logits.clone()
        others[torch.arange(len(labels)), labels] = -torch.inf
        expected.append(float((logits[torch.arange(len(labels)), labels] - others.max(1).values).mean()))
    assert score == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert run.search("flops=0.5").settings.metric == "margin"


def test_a_search_algorithm_is_a_class_with_settings(tmp_path, monkeypatch):
    folder = train(tmp_path / "run").folder
    monkeypatch.chdir(Path(__file__).parent)
    arguments = ["search", str(folder), "--budget", "flops=0.5", "--algorithm", "extensions:HillClimb", "search.algorithm.step=1"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code
    record = Run.open(folder).search_record()
    assert record.settings.algorithm == "extensions:HillClimb"
    assert record.settings.of_algorithm("step") == 1
    costs = Run.open(folder).costs
    for row in record.evaluated:
        assert row.costs["flops"] <= costs.range("flops")[1] // 2


def test_a_measured_cost_is_a_table_that_budgets_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path / "run")
    rng = np.random.default_rng(0)
    pairs = [{"a": a, "b": b, "ms": np.cumsum(np.cumsum(rng.random((5, 5)), 0), 1).tolist()} for a, b in ((0, 1), (1, 2), (3, 4))]
    (tmp_path / "latency.json").write_text(json.dumps({"overhead_ms": 0.5, "pairs": pairs}))
    run = Run.open(run.folder, ["costs=[extensions:latency]"])
    assert run.costs.names == ("flops", "params", "latency")
    everything = list(run.space.enumerate())
    measured = [0.5 + sum(one["ms"][w[one["a"]]][w[one["b"]]] for one in pairs) for w in everything]
    np.testing.assert_allclose(run.costs.of_widths(everything, "latency"), measured)
    p = [np.concatenate([[0.0], rng.dirichlet(np.ones(4))]) for _ in range(5)]
    weight = [np.prod([p[g][k] for g, k in enumerate(w)]) for w in everything]
    assert run.costs.costs["latency"].expectation(p) == pytest.approx(np.dot(weight, measured))
    record = run.search("latency=0.6", "params=0.5")
    limits = {budget.cost: budget.limit for budget in record.settings.budgets}
    assert all(row.costs[cost] <= limit for row in record.evaluated for cost, limit in limits.items())
    assert record.settings.cost == "latency"
    from bcnet.report.run_page import write_run_page

    assert "latency" in write_run_page(run).read_text()


def test_groups_of_different_choices_train_search_and_cost(tmp_path):
    """4, 8 and 16 choices together, one group excluded: every bin is trained equally often, and nothing is off the lists."""
    lists = {"stem": [2, 4, 6, 8], "blocks.0.conv1": list(range(3, 25, 3)), "blocks.[12].conv1": list(range(1, 17))}
    run = train(tmp_path / "run", f"space.groups={json.dumps(lists)}", "space.exclude=[blocks.1.conv2]", "score.additive=100")
    assert [len(group.choices) for group in run.space.groups] == [4, 8, 16, 16]
    assert ("blocks.1.conv2.0", "excluded") in run.space.fixed
    assert run.trained.counts.deviation == 0
    assert run.space.full == (4, 8, 16, 16)
    assert run.space.encode(run.space.full) == "4-8-16-16"
    record = run.search("flops=0.5")
    widths = run.space.decode(record.best.widths)
    _, description = run.extract(widths, tmp_path / "network")
    network, _ = load_network(tmp_path / "network")
    assert sum(p.numel() for p in network.parameters()) == description["params"] == record.best.costs["params"]
    assert network.blocks[0].conv1[0].out_channels in (3, 6, 9, 12, 15, 18, 21, 24)


def test_a_model_may_have_layers_that_depend_on_the_active_channels(tmp_path):
    """The projection is there only where input and output differ: in costs, in the supernet, in what is extracted."""
    model = build(10)
    space = trace(model, (1, 8, 8))
    costs, supernet = CostTable(space), Supernet(model, space, wide=True)
    assert prove(model, space, (1, 8, 8), num_random=6) <= 1e-4
    shortcuts = [layer.skipped_if_equal for layer in space.layers if layer.kind == "conv" and "shortcut" in layer.name]
    assert len(shortcuts) == 2
    seen = set()
    for widths in list(product(range(1, 5), repeat=len(space.groups)))[::7]:
        network = supernet.extract(widths).eval()
        channels = space.channels(widths)
        projections = [isinstance(block.shortcut, torch.nn.Identity) for block in network[1]]
        seen |= set(projections)
        assert projections == [channels[a.group] == channels[b.group] for a, b in shortcuts]
        counted = FlopCounterMode(display=False)
        with counted:
            network(torch.zeros(1, 1, 8, 8))
        assert 2 * costs.one(widths, "flops") == counted.get_total_flops()
        assert costs.one(widths, "params") == sum(p.numel() for p in network.parameters()) == costs.of_channels(channels, "params")
    assert seen == {True, False}
    run = train(tmp_path / "run", "model.name=extensions:build", "score.max_images=64")
    best = run.space.decode(run.search("flops=0.6").best.widths)
    for widths in (best, run.space.full, (1, 2, 3, 2, 3)[: len(run.space.groups)]):
        run.extract(widths, tmp_path / "network")
        loaded, description = load_network(tmp_path / "network", trust=True)
        assert sum(p.numel() for p in loaded.parameters()) == description["params"]
        with torch.no_grad():
            run.scorer._activate(widths, "left")
            images = next(iter(run.experiment.validation))[0]
            torch.testing.assert_close(loaded(images), run.scorer.supernet(images), rtol=1e-4, atol=1e-4)
    assert run.retrain(best, [0]).found.params == run.costs.one(best, "params")


def test_a_data_source_gives_its_own_batches(tmp_path):
    run = train(tmp_path / "run", "data.source=extensions:Stripes", "data.args={images: 512}", "train.epochs=4", "score.metric=accuracy")
    assert run.trained.total_steps == 4 * 512 // 64
    assert run.scorer.score(run.space.full) > 0.7  # chance is 0.5
    record = run.retrain((2, 2, 2, 2, 2), [0])
    assert record.found.acc[0] > 70
    with pytest.raises(UserError, match="could not be loaded with"):
        _ = Experiment(load_config("digits/bcnetv2", ["data.source=extensions:_margin"])).data


def test_published_weights_are_the_supernets_start_and_retraining_is_from_scratch():
    """A factory with an argument ``pretrained`` loads them; one without is told."""
    experiment = Experiment(load_config("digits/bcnetv2", ["model.name=extensions:pretrained_build", "model.pretrained=true"]))
    assert all((p == 0.25).all() for p in experiment.model.parameters())
    assert not any((p == 0.25).all() for p in experiment.build_model(3).parameters() if p.ndim > 1)
    (network,) = experiment.train_width([8] * len(experiment.space.groups), [0])
    assert not any((p == 0.25).all() for p in network.parameters())
    with pytest.raises(UserError, match="takes no argument 'pretrained'"):
        _ = Experiment(load_config("digits/bcnetv2", ["model.name=extensions:build", "model.pretrained=true"])).model


def test_contributing_shows_this_very_code():
    """Every block of CONTRIBUTING.md that extends bcnet stands in tests/extensions.py, line by line."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    shown = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    code = (Path(__file__).parent / "extensions.py").read_text()
    assert len(shown) >= 6
    for block in shown:
        assert block.strip() in code, block


def test_the_next_command_can_be_given_as_it_stands(bcnet, tmp_path):
    """Also for code from outside bcnet, which it must be told to trust."""
    command = ["train", "digits/bcnetv2", *QUICK, "model.name=extensions:build", "--out", str(tmp_path / "run")]
    for begins in ("bcnet search", "bcnet extract"):
        code, out, err = bcnet(*command)
        assert code == 0, err
        (following,) = [line for line in out.splitlines() if line.startswith("next: ")]
        assert following.startswith(f"next: {begins}")
        command = (
            following.removeprefix("next: bcnet ")
            .partition(", or bcnet ")[0]
            .replace("--out network", f"--out {tmp_path / 'network'}")
            .split()
        )
    code, _, err = bcnet(*command)
    if code and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        pytest.skip("ONNX export of older versions cannot do it")
    assert code == 0, err
    advised = bcnet("doctor", tmp_path / "run")[1].splitlines()[-1]
    assert advised == f"next: bcnet retrain {tmp_path / 'run'} --widths best --trust"
