import copy
import json
from contextlib import suppress
from itertools import accumulate

import pytest
import torch

from bcnet.data.sources import ImageSet
from bcnet.errors import UserError
from bcnet.run import Run
from bcnet.scoring.cache import ScoreCache
from bcnet.scoring.evaluate import evaluate
from bcnet.scoring.metrics import METRICS
from bcnet.scoring.scorer import Scorer
from bcnet.seals import read_line
from bcnet.supernet.calibrate import calibrate


def test_a_score_is_the_mean_over_both_sides_of_extracted_networks(run):
    widths = (3, 2, 4, 1, 2)
    found = []
    for side in ("left", "right"):
        network = run.scorer.supernet.extract(widths, side)
        calibrate(network, run.experiment.calibration)
        found.append(evaluate(network, run.experiment.validation))
    by_loss = Run.open(run.folder, ["score.metric=neg_cross_entropy"]).scorer
    assert by_loss.score(widths) == pytest.approx(-sum(one["cross_entropy"] for one in found) / 2, abs=1e-6)
    by_accuracy = Run.open(run.folder, ["score.metric=accuracy"]).scorer
    assert (
        by_accuracy.score(widths)
        == by_loss.read([widths], metric="accuracy")[0]
        == pytest.approx(sum(one["accuracy"] for one in found) / 2)
    )


def test_evaluation_is_the_plain_definition(run):
    network = run.scorer.supernet.extract(run.space.full)
    calibrate(network, run.experiment.calibration)
    images = torch.cat([images for images, _ in run.experiment.validation])
    labels = torch.cat([labels for _, labels in run.experiment.validation])
    with torch.no_grad():
        logits = network(images)
    found = evaluate(network, run.experiment.validation)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found["cross_entropy"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    assert "kl" not in found
    other = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    kl = (other.exp() * (other - logits.log_softmax(1))).sum(1).mean().item()
    assert evaluate(network, run.experiment.validation, reference=other)["kl"] == pytest.approx(kl, abs=1e-6)


def test_on_one_side_nothing_is_nearer_to_the_full_width_than_itself(run):
    scorer = Scorer(run.scorer.supernet, run.experiment.calibration, run.experiment.validation, sides=["right"], metric=METRICS["kl"])
    found = scorer.score_many(run.space.enumerate())
    assert found.pop(run.space.full) == pytest.approx(0, abs=1e-6)
    assert max(found.values()) < -1e-4


def test_divergence_is_measured_from_what_the_full_width_predicts_on_both_sides_together(run):
    widths = (3, 2, 4, 1, 2)
    probabilities = {}
    for chosen in (run.space.full, widths):
        for side in ("left", "right"):
            network = run.scorer.supernet.extract(chosen, side)
            calibrate(network, run.experiment.calibration)
            with torch.no_grad():
                probabilities[chosen, side] = torch.cat([network(images).double().softmax(1) for images, _ in run.experiment.validation])
    full = (probabilities[run.space.full, "left"] + probabilities[run.space.full, "right"]) / 2
    expected = [(full * (full / probabilities[widths, side]).log()).sum(1).mean().item() for side in ("left", "right")]
    assert Run.open(run.folder, ["score.metric=neg_kl"]).scorer.score(widths) == pytest.approx(-sum(expected) / 2, abs=1e-6)


def test_an_evaluation_that_lacks_the_metric_is_made_again(run):
    score = run.scorer.score((1, 2, 3, 4, 1))
    path = run.scorer.cache.path
    entry = read_line(path.read_bytes().strip())
    del entry["left"]["kl"]
    path.write_text(json.dumps(entry) + "\n")
    assert "kl" not in ScoreCache(path).evaluations["12341"]["left"]
    assert Run.open(run.folder).scorer.score((1, 2, 3, 4, 1)) == score


def test_scoring_leaves_training_untouched(run):
    trainer = run.trained
    weights = copy.deepcopy(dict(trainer.model.named_parameters()))
    momentum = copy.deepcopy(trainer.optimizer.state_dict())
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    run.scorer.score_many([(1, 2, 3, 4, 1), (4, 4, 4, 4, 4)])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters())
    torch.testing.assert_close(trainer.optimizer.state_dict(), momentum, rtol=0, atol=0)


def test_training_goes_on_the_same_whether_scored_in_between_or_not(tmp_path, quick_config):
    plain = Run.create(tmp_path / "plain", quick_config).train()
    run = Run.create(tmp_path / "scored", quick_config)
    run.trainer.run(until_step=11)
    for widths in ((1, 1, 1, 1, 1), (2, 3, 4, 1, 2)):
        run.scorer.score(widths)
    run.trainer.model.train()
    run.trainer.run()
    for one, other in zip(plain.model.parameters(), run.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_scores_survive_and_a_half_written_line_is_dropped(run, monkeypatch):
    wanted = [(1, 2, 3, 4, 1), (4, 4, 4, 4, 4), (2, 2, 2, 2, 2)]
    scores = run.scorer.score_many(wanted)
    path = run.scorer.cache.path
    path.write_bytes(path.read_bytes()[:-20])
    again = Run.open(run.folder)
    computed = []
    original = again.scorer._evaluate
    monkeypatch.setattr(again.scorer, "_evaluate", lambda block, tick: computed.extend(block) or original(block, tick))
    assert again.scorer.score_many(wanted) == scores
    assert computed == [wanted[1]]  # the last in lexicographic order
    assert set(ScoreCache(path).evaluations) == {"12341", "44444", "22222"}


def test_other_settings_have_another_cache(run):
    other = Run.open(run.folder, ["score.calibration_images=64"])
    assert run.scorer.cache.path != other.scorer.cache.path
    accuracy = Run.open(run.folder, ["score.metric=accuracy"])
    assert run.scorer.cache.path == accuracy.scorer.cache.path  # all metrics come from one evaluation


def test_a_search_is_resumed_from_the_cache(run):
    first = run.search("flops=0.5")
    again = Run.open(run.folder)
    again.scorer._evaluate = None  # everything is known: nothing may be computed
    second = again.search("flops=0.5")
    assert first.evaluated == second.evaluated
    assert first.best == second.best
    assert run.search_record() == second


def test_an_impossible_budget_is_refused_before_any_work(run):
    run.scorer._evaluate = None
    with pytest.raises(UserError, match="cannot be met"):
        run.search("flops=0.001")
    assert not (run.folder / "search.json").exists()


def test_test_images_are_never_looked_at_before_retraining(tmp_path, quick_config, monkeypatch):
    seen = {"train": set(), "search": set()}
    phase = "train"
    original = ImageSet.get

    def get(self, index):
        seen[phase].update(self.index[index].tolist())
        return original(self, index)

    run = Run.create(tmp_path / "run", quick_config)
    monkeypatch.setattr(ImageSet, "get", get)
    run.train()
    phase = "search"
    run.search("flops=0.5")
    test, val, train = (set(part.index.tolist()) for part in map(run.experiment.data.parts.get, ("test", "val", "train")))
    assert not test & (train | val)
    assert not train & val
    assert seen["train"] <= train | val  # the latter by the looks at subnets, which change nothing
    assert seen["search"] <= train | val
    assert val <= seen["search"]


def test_one_width_has_one_score(run):
    """Whether it is asked for alone, in a search or with all others: one cache, one number."""
    alone = run.scorer.score((2, 3, 1, 4, 2))
    everything = Run.open(run.folder).scorer.score_many(list(run.space.enumerate()))
    assert everything[2, 3, 1, 4, 2] == alone
    record = Run.open(run.folder).search("flops=0.5")
    assert all(everything[run.space.decode(row.widths)] == row.score for row in record.evaluated)
    assert len(list((run.folder / "scores").iterdir())) == 1


@pytest.mark.parametrize(("alone", "apart"), [(1, 1), (3, 10), (13, 1), (13, 10), (50, 1)])
def test_a_stopped_scoring_loses_no_more_than_a_block_and_blocks_are_short(run, monkeypatch, alone, apart):
    """By a clock of multiply-adds, of which the full width takes so many seconds and neighbours share most, 20 are between two writes."""
    scorer, wanted = run.scorer, list(run.space.enumerate())[::apart][-100:]

    def seconds_of(block):
        return alone * sum(added for _, added in scorer.walker.multiply_adds(block)) / full

    ((full, _),) = scorer.walker.multiply_adds([run.space.full])
    clock, blocks = [0.0], []
    monkeypatch.setattr("bcnet.scoring.scorer.time.perf_counter", lambda: clock[0])
    original = scorer._evaluate

    def evaluate(block, tick):
        if len(blocks) == 6:
            raise KeyboardInterrupt
        blocks.append(len(block))
        clock[0] += seconds_of(block)
        return original(block, tick)

    monkeypatch.setattr(scorer, "_evaluate", evaluate)
    with suppress(KeyboardInterrupt):
        scorer.score_many(wanted)
    assert blocks[0] == 1
    assert len(ScoreCache(scorer.cache.path).evaluations) == sum(blocks)
    starts = list(accumulate(blocks, initial=0))
    for before, start, size in zip(blocks, starts[1:], blocks[1:], strict=False):
        block, longer = wanted[start : start + size], wanted[start : start + size + 1]
        assert size == 1 or (seconds_of(block) <= 20 and size <= 4 * before)
        assert size == min(4 * before, 100 - start) or seconds_of(longer) > 20  # one more would have been too many
    assert len(Run.open(run.folder).scorer.score_many(wanted)) == 100


def test_scores_by_the_statistics_of_the_batch_are_the_same_alone_and_together(run, monkeypatch):
    wanted = [(1, 2, 3, 4, 1), (2, 2, 2, 2, 2), (4, 4, 4, 4, 4)]
    together = Run.open(run.folder, ["score.statistics=batch"]).scorer
    # whose cache is another one
    alone = Run.open(run.folder, ["score.statistics=batch", "score.memory_gib=1e-9", "score.whole_layers=false"]).scorer
    found, expected = together.score_many(wanted), alone.score_many(wanted)
    assert [found[widths] for widths in wanted] == pytest.approx([expected[widths] for widths in wanted], rel=1e-4, abs=1e-6)
    assert found != run.scorer.score_many(wanted)
