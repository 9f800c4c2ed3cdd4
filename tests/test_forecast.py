import sys

import numpy as np
import pytest
import torch

from bcnet.config import load_config
from bcnet.experiment import Experiment
from bcnet.forecast import _seconds_per_width, count_within, reach, work
from bcnet.models.factory import build_model
from bcnet.scoring.scorer import Scorer
from bcnet.space.cost import CostTable, parse_budgets
from bcnet.space.trace import Choices, trace


@pytest.fixture(scope="module")
def digits():
    return CostTable(trace(build_model("digits/resnet", 10), (1, 8, 8)))


def test_widths_within_a_budget_are_counted_in_a_small_space(digits):
    budgets = parse_budgets(["flops=0.5", "params=0.4"], digits)
    full = digits.space.full
    limits = {name: digits.one(full, name) * part for name, part in (("flops", 0.5), ("params", 0.4))}
    kept = [w for w in digits.space.enumerate() if all(digits.one(w, name) <= limit for name, limit in limits.items())]
    assert count_within(digits, budgets) == (len(kept), True)
    assert count_within(digits, ()) == (1024, True)


def test_of_a_large_space_random_widths_tell():
    costs = CostTable(trace(build_model("timm/resnet18", 10), (3, 32, 32), Choices(bins=3)))
    number, exact = count_within(costs, parse_budgets(["flops=0.5"], costs))
    rng = np.random.default_rng(7)
    drawn = [costs.one(costs.space.sample(rng), "flops") for _ in range(3000)]
    share = np.mean(np.array(drawn) <= 0.5 * costs.range("flops")[1])
    assert not exact
    assert number / costs.space.size == pytest.approx(share, abs=0.04)  # four standard deviations


def test_the_reach_of_costs(digits):
    every = np.array([digits.one(w, "flops") for w in digits.space.enumerate()])
    flops = reach(digits)[0]
    assert (flops.low, flops.high) == (every.min(), every.max())
    assert flops.typical == pytest.approx(np.median(every), rel=0.02)


def test_work_is_of_the_experiment_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(load_config("digits/bcnetv2", ["train.epochs=3", "search.evaluations=33", "score.calibration_images=64"]))
    found = work(experiment)
    trainer = experiment.make_trainer()
    assert (found.steps, found.passes) == (trainer.total_steps, len(trainer.passes(0)))
    assert (found.widths, found.device) == (33, "cpu")
    assert found.step_seconds > 0
    assert found.width_seconds > 0
    assert (found.gib is None) if sys.platform == "win32" else (0.1 < found.gib < 64)
    assert not list(tmp_path.iterdir())
    assert found.short_steps == 0


def test_scores_of_large_images_are_timed_on_few_of_them(monkeypatch):
    """With a clock by which an image takes a second, the first 32 + 32 are enough; by one that stands still all are taken."""
    experiment = Experiment(load_config("digits/bcnetv2", ["score.calibration_images=128"]))
    trainer = experiment.make_trainer()
    seen, now, per_image = [], [0.0], [1.0]

    def evaluate(scorer, block, tick):
        seen.append(len(scorer.calibration) + len(scorer.validation))
        now[0] += per_image[0] * seen[-1] * len(block)
        return [{side: dict.fromkeys(scorer.metrics, 0.5) for side in scorer.sides} for _ in block]

    monkeypatch.setattr(Scorer, "_evaluate", evaluate)
    monkeypatch.setattr("bcnet.forecast.time.perf_counter", lambda: now[0])
    assert _seconds_per_width(experiment, trainer.trained) == pytest.approx(128 + 300)
    assert set(seen) == {64}
    per_image[0] = 1e-6
    assert _seconds_per_width(experiment, trainer.trained) == pytest.approx(428e-6)
    assert set(seen) == {64, 128 + 256, 128 + 300}


def test_short_trainings_are_counted():
    shortly = ["search.short_trainings=3", "search.short_epochs=0.5", "score.additive=60", "score.calibration_images=64"]
    experiment = Experiment(load_config("digits/bcnetv2", ["train.epochs=1", *shortly]))
    found = work(experiment)
    assert found.short_steps == 3 * experiment.short_steps == 3 * round(0.5 * (697 // 64))
    assert found.short_step_seconds > 0


def test_noise_stands_in_for_images_of_any_size():
    overrides = ["data.source=bcnet.data.noise:Noise", "data.args={shape: [3, 16, 20], classes: 7, images: 1000}", "data.num_val=70"]
    data = Experiment(load_config("digits/bcnetv2", overrides)).data
    assert data.num_images("train") == 1000
    source = data.train_batches("train", 64, seed=0)
    assert source.steps_per_epoch == 15
    images, labels = source.batch(3)
    assert images.shape == (64, 3, 16, 20)
    assert labels.max() < 7
    assert torch.equal(images, source.batch(3)[0])
    held_out = list(data.eval_batches("val", 32))
    assert [len(labels) for _, labels in held_out] == [32, 32, 6]
