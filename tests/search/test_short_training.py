import shutil
from pathlib import Path

import numpy as np
import pytest

from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.run import Run
from bcnet.scoring.additive import LEAST_ANCHORS, WidthEffects
from bcnet.search.short_training import ShortTraining, choose, most_important, search_by_training, vary
from bcnet.space.widths import Group, Space

GROUPS = tuple(Group.of_bins(name, 32, bins=8) for name in "abcd")
SPACE = Space(GROUPS)
LIMIT = 20  # bins in all


def effects_of(worth):
    """An additive model in which a group's worth grows with the logarithm of its channels."""
    logs = np.log(np.arange(1, 9) / 8)
    return WidthEffects(0.0, np.array(worth)[:, None] * (logs - logs.mean()), 1.0)


def best_of(model):
    widths = np.array([w for w in SPACE.enumerate() if sum(w) <= LIMIT])
    return tuple(widths[model.predict(widths).argmax()].tolist())


class Truth:
    """Trainings whose cross-entropy follows another model than the scores."""

    def __init__(self, worth, noise=0.0):
        self.model, self.rng, self.noise, self.asked = effects_of(worth), np.random.default_rng(1), noise, []

    def __call__(self, widths):
        self.asked.append(widths)
        value = float(self.model.predict([widths])[0]) + self.noise * self.rng.standard_normal()
        return {"cross_entropy": 2.0 - value, "accuracy": 0.5 + value / 10, "error": self.noise}


def search(scores, truth, count, seed=0):
    first = [("score", best_of(scores)), ("uniform", SPACE.uniform(0.625))]
    rng = np.random.default_rng(seed)
    return search_by_training(scores, GROUPS, first=first, best_of=best_of, train=truth, count=count, rng=rng)


@pytest.mark.parametrize("seed", range(4))
def test_trainings_correct_scores_that_mislead(seed):
    scores, truth = effects_of([4, 3, 0.3, 0.3]), Truth([0.3, 0.5, 3, 4], noise=0.02)
    by_score = truth(best_of(scores))["cross_entropy"]
    done = search(scores, truth, 20, seed)
    found = min(done, key=lambda one: one.cross_entropy)
    truly = truth(best_of(truth.model))["cross_entropy"]
    assert found.proposed_by == "corrected"
    assert found.cross_entropy - truly < 0.1 * (by_score - truly)


def test_every_training_is_another_width_within_the_budget_and_the_first_are_named():
    truth = Truth([1, 2, 3, 4])
    done = search(effects_of([4, 3, 2, 1]), truth, 18)
    assert len(done) == 18
    assert len(set(truth.asked)) == 18
    assert [one.widths for one in done] == truth.asked
    assert all(sum(one.widths) <= LIMIT for one in done)
    assert [one.proposed_by for one in done[:2]] == ["score", "uniform"]
    assert {one.proposed_by for one in done[2:LEAST_ANCHORS]} == {"varied"}
    assert {one.proposed_by for one in done[LEAST_ANCHORS:]} == {"corrected"}


def test_the_same_search_asks_for_the_same():
    asked = []
    for _ in range(2):
        truth = Truth([1, 2, 3, 4], noise=0.1)
        search(effects_of([4, 3, 2, 1]), truth, 14)
        asked.append(truth.asked)
    assert asked[0] == asked[1]


def test_it_ends_where_nothing_new_is_proposed():
    done = search_by_training(
        effects_of([1, 1, 1, 1]),
        GROUPS,
        first=[],
        best_of=lambda model: SPACE.narrowest,
        train=Truth([1, 1, 1, 1]),
        count=5,
        rng=np.random.default_rng(0),
    )
    assert [one.widths for one in done] == [SPACE.narrowest]


def regret_of_choices(noise, by_choice):
    """What is lost on average by choosing among 24 measured widths: by `choose`, or by the measurement alone."""
    worth, lost = [1.0, 0.8, 0.6, 0.9], []
    model, rng = effects_of(worth), np.random.default_rng(5)
    for _ in range(60):
        widths = [tuple(row) for row in rng.integers(3, 9, (24, 4)).tolist()]
        truth = model.predict(widths) + 0.05 * rng.standard_normal(24)  # more than the model knows
        measured = truth + noise * rng.standard_normal(24)
        trained = [ShortTraining(one, "varied", 0.5, 2.0 - value, noise) for one, value in zip(widths, measured, strict=True)]
        chosen = choose(effects_of([1, 1, 1, 1]), GROUPS, trained) if by_choice else min(trained, key=lambda one: one.cross_entropy)
        lost.append(truth.max() - truth[trained.index(chosen)])
    return float(np.mean(lost))


def test_noisy_measurements_are_not_believed_and_exact_ones_are():
    assert regret_of_choices(0.5, True) < 0.6 * regret_of_choices(0.5, False)
    assert regret_of_choices(1e-6, True) < 0.005


def test_varied_scores_keep_what_grows_growing():
    varied = vary(effects_of([1, 2, 3, 4]), np.random.default_rng(0), 1.0)
    assert (np.diff(varied.effects, axis=1) > 0).all()


def test_the_most_important_channels_of_all_groups():
    rng = np.random.default_rng(0)
    importance = [rng.random(32) ** power for power in (0.1, 1, 3, 9)]
    assert most_important(SPACE, importance, 0.0) == SPACE.narrowest
    assert most_important(SPACE, importance, 1.0) == SPACE.full
    relative = np.concatenate([values / values.mean() for values in importance])
    for count in (20, 64, 100):  # by brute force: sort all channels of all groups
        kept = np.sort(np.argsort(-relative, kind="stable")[:count])
        channels = [int(((kept >= 32 * g) & (kept < 32 * (g + 1))).sum()) for g in range(4)]
        assert most_important(SPACE, importance, count / 128) == tuple(max(1, own // 4) for own in channels)


SETTINGS = ["train.epochs=4", "score.additive=60", "search.evaluations=60", "search.algorithm.population=10", "retrain.epochs=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = Run.create(tmp_path_factory.mktemp("short") / "run", load_config("digits/bcnetv2_distilled", SETTINGS))
    run.train()
    return run.folder


def test_a_run_finds_the_best_of_what_it_trained_and_goes_on_where_it_was(trained, monkeypatch):
    settings = ["search.short_trainings=13", "search.short_epochs=0.5"]
    run = Run.open(trained, settings)
    trained_before = []
    shortly = type(run.experiment).train_shortly

    def until_the_sixth(self, supernet, widths, **options):
        if len(trained_before) == 6:
            raise KeyboardInterrupt
        trained_before.append(widths)
        return shortly(self, supernet, widths, **options)

    monkeypatch.setattr(type(run.experiment), "train_shortly", until_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run.search("flops=0.5")
    monkeypatch.undo()
    run, asked = Run.open(trained, settings), []
    monkeypatch.setattr(type(run.experiment), "train_shortly", lambda self, s, w, **o: asked.append(w) or shortly(self, s, w, **o))
    record = run.search("flops=0.5")
    assert len(record.short) == len(trained_before) + len(asked) == 13
    assert not set(asked) & set(trained_before)
    names = [run.space.encode(widths) for widths in trained_before + asked]
    assert [one.widths for one in record.short] == names
    (best,) = [one for one in record.short if one.widths == record.best.widths]
    assert best.cross_entropy - best.error <= min(one.cross_entropy + one.error for one in record.short) + 0.2
    assert all(run.costs.one(run.space.decode(one.widths), "flops") <= record.settings.budgets[0].limit for one in record.short)
    assert record.short[0].proposed_by == "score"
    assert best.widths in record.short_sentence
    again = Run.open(trained, settings).search("flops=0.5")
    assert again.short == record.short
    assert not list((trained / "scores").glob("*.pt"))


@pytest.mark.parametrize(
    ("settings", "budgets", "words"),
    [
        (["score.additive=null"], ["flops=0.5"], "they want score.additive=N and score.effects=smooth"),
        (["score.effects=free"], ["flops=0.5"], "they want score.additive=N and score.effects=smooth"),
        ([], [], "want a budget"),
        (["search.algorithm=greedy"], ["flops=0.5", "flops=0.3"], "budgets that hold together"),
    ],
)
def test_trainings_that_could_correct_nothing_are_refused_before_any_work(trained, settings, budgets, words):
    run = Run.open(trained, ["search.short_trainings=3", *settings])
    with pytest.raises(UserError, match=words) as caught:
        run.search(*budgets)
    assert "\n" not in str(caught.value)


def test_two_processes_train_the_same_widths(trained, tmp_path, two_processes):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("short-*", "search.json"))
    script = Path(__file__).parents[2] / "tools" / "search.py"
    result = two_processes(script, folder, "--budget", "flops=0.5", "--short-trainings", "12", "search.short_epochs=0.5")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("12 width vectors were trained for 0.5 epochs each") == 1
    record = Run.open(folder).search_record()
    assert len({one.widths for one in record.short}) == 12
    assert {path.suffix for path in (folder / "scores").iterdir()} == {".jsonl"}
