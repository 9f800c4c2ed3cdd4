"""What commands find, as typed records that are written as JSON and read back checked."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from bcnet.errors import UserError
from bcnet.files import read_json, write_json
from bcnet.formatting import plural
from bcnet.former import read_former_search
from bcnet.seals import read_sealed, sealed_record


class Record(BaseModel):
    """A result; its fields are those of its JSON file, beside its seal. Numbers are finite, unless a record says otherwise."""

    model_config = ConfigDict(
        frozen=True, protected_namespaces=(), use_attribute_docstrings=True, ser_json_inf_nan="constants", allow_inf_nan=False
    )

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, sealed_record(self.model_dump(mode="json")))


class Correlation(Record):
    """A result with statistics that are NaN where one side is constant."""

    model_config = ConfigDict(allow_inf_nan=True)


R = TypeVar("R", bound=Record)
Accuracies = Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=1)]


def read_record(path: Path, kind: type[R], what: str) -> R:
    """Read a record.

    Raises:
        UserError: no such file, not JSON, not such a record (names the field), or damaged.
    """
    return check_record(path, read_json(path, what), kind, what)


def check_record(path: Path, tree: Any, kind: type[R], what: str) -> R:
    """A record out of the tree of its file; arguments and mistakes as in `read_record`."""
    try:
        return kind.model_validate_json(json.dumps(read_sealed(tree)), strict=True)  # of JSON: lists are tuples, true is no number
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{path}: not {what}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


class EvaluatedWidths(Record):
    """One width vector that a search evaluated. In JSON its costs stand beside its score."""

    widths: str
    """The width string."""
    score: float
    """Higher is better."""
    accuracy: float
    """In the supernet, in 0..1."""
    costs: dict[str, float | int]
    """By name."""

    @model_validator(mode="before")
    @classmethod
    def _gather_costs(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "costs" in value:
            return value
        own = {name: value[name] for name in ("widths", "score", "accuracy") if name in value}
        return own | {"costs": {name: cost for name, cost in value.items() if name not in own}}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        return {"widths": self.widths, "score": self.score, "accuracy": self.accuracy} | self.costs


class BudgetRecord(Record):
    """A budget as it was asked for and understood."""

    text: str
    """Such as ``flops=0.5``."""
    cost: str
    """Its cost's name."""
    limit: float | int
    """In the cost's unit."""


class SearchSettings(Record):
    """How was searched; settings of the algorithm stand beside these."""

    model_config = ConfigDict(extra="allow")
    algorithm: str
    """Its name."""
    evaluations: int
    """Width vectors that it might score."""
    budgets: list[BudgetRecord] = []
    """All of which hold."""
    cost: str = "flops"
    """What scores are weighed against, as the front does."""
    metric: str = "kl"
    """Name of the score's metric."""
    additive: int | None = None
    """Width vectors behind the additive model that predicted the scores, if one did."""
    anchors: int = 0
    """Networks whose true accuracies corrected that model; scores are accuracies in per cent then."""
    short_epochs: float = 0.0
    """Epochs of each short training, if there were any."""

    def of_algorithm(self, name: str, default: Any = None) -> Any:
        """A setting of the algorithm."""
        return (self.model_extra or {}).get(name, default)

    @property
    def accuracy_words(self) -> str:
        """What the accuracies of evaluated width vectors are called."""
        return "predicted accuracy in the supernet" if self.additive else "accuracy in the supernet"


class ShortTrained(Record):
    """Widths that a search trained for a short time."""

    widths: str
    """The width string."""
    proposed_by: str
    """``score``, ``uniform``, ``importance``, ``varied`` or ``corrected``: see `bcnet.search.short_training.ShortTraining`."""
    accuracy: float
    """On the images held out from training, in 0..1."""
    cross_entropy: float
    """On them, natural logarithm."""
    error: float
    """Standard error of it, as they are so many."""


class SearchRecord(Record):
    """``search.json``."""

    settings: SearchSettings
    """How was searched."""
    best: EvaluatedWidths
    """Of the highest score within all budgets; of the least expected cross-entropy after a short training, where there were any."""
    front: list[str]
    """Width strings that no other beats in both score and cost, cheapest first."""
    passed: dict[str, str] = {}
    """Budget as it was asked for -> width string of the highest score within it alone."""
    generations: list[int]
    """Number of evaluated width vectors after each generation."""
    evaluated: list[EvaluatedWidths]
    """In order of evaluation."""
    short: list[ShortTrained] = []
    """What was trained for a short time, in order."""
    meta: dict[str, Any] = {}
    """Config, training and environment."""

    @model_validator(mode="before")
    @classmethod
    def _of_former_versions(cls, value: Any) -> Any:
        return read_former_search(value)

    @model_validator(mode="after")
    def _fits_together(self) -> "SearchRecord":
        known = {row.widths: row for row in self.evaluated}
        for name in (self.best.widths, *self.front, *self.passed.values(), *(one.widths for one in self.short)):
            if name not in known:
                raise ValueError(f"{name!r} is named and was not evaluated")
        wanted = {"flops", "params", *(budget.cost for budget in self.settings.budgets)}
        if any(not wanted <= set(row.costs) for row in self.evaluated):
            raise ValueError(f"evaluated widths lack one of {', '.join(sorted(wanted))}")
        return self

    @property
    def short_sentence(self) -> str:
        """What the short trainings said, if there were any: the best, and what scores or a uniform width would have been."""
        if not self.short:
            return ""
        epochs = f"{self.settings.short_epochs:g} epoch{'s' * (self.settings.short_epochs != 1)}"
        names = {"score": "the best by score alone", "uniform": "uniform bins", "importance": "the most important channels"}
        best = next(one for one in self.short if one.widths == self.best.widths)
        by = "corrected scores" if best.proposed_by == "corrected" else names.get(best.proposed_by, "varied scores")
        rows = zip(self.short, self.rows([one.widths for one in self.short]), strict=True)
        others = [
            f"; {names[one.proposed_by]}, with {row.costs['flops'] / self.best.costs['flops']:.0%} of its FLOPs: {one.accuracy:.2%}"
            for one, row in rows
            if one.proposed_by in names and one is not best
        ]
        return (
            f"{len(self.short)} width vectors were trained for {epochs} each, from the supernet's weights. "
            f"Least cross-entropy on held-out images is expected of {best.widths}, proposed by {by}; its accuracy there is "
            f"{best.accuracy:.2%}{''.join(others)}"
        )

    def keeps_budgets(self, row: EvaluatedWidths) -> bool:
        """Whether evaluated widths are within all budgets."""
        return all(row.costs[budget.cost] <= budget.limit for budget in self.settings.budgets)

    def rows(self, names: Iterable[str]) -> list[EvaluatedWidths]:
        """What is known of evaluated width strings."""
        known = {row.widths: row for row in self.evaluated}
        return [known[name] for name in names]


class Speed(Record):
    """``speed.json``: how long a found network takes beside the model, measured turn by turn."""

    widths: str
    """Width string of the found network."""
    found_ms: float
    """Median milliseconds of a forward pass of it."""
    model_ms: float
    """The same of the model."""
    flops: float
    """FLOPs of the found network, relative to the model's."""
    batch_size: int
    """Images at once."""
    threads: int
    """CPU threads."""
    device: str
    """What it was measured on."""

    @property
    def sentence(self) -> str:
        """In words."""
        images, faster = "one image" if self.batch_size == 1 else f"{self.batch_size} images", self.model_ms / self.found_ms
        beside = f"{self.found_ms:.3g} ms for {images} where the model takes {self.model_ms:.3g} ms"
        where = f"{self.device}, {plural(self.threads, 'thread')}, PyTorch, not compiled"
        return f"{beside}: {faster:.2f} times the model's speed with {self.flops:.0%} of its FLOPs ({where})"


Start = Literal["scratch", "inherited"]


class RetrainedWidth(Record):
    """Networks of one width, trained on after the search."""

    channels: list[int]
    """Of every group."""
    acc: Accuracies
    """Test accuracy in per cent, one per seed."""
    seeds: list[int]
    """Of the trainings."""
    flops: int
    """Multiply-adds of one image."""
    params: int
    """Parameters."""
    widths: str | None = None
    """The width string, if the channels are choices."""


class RetrainRecord(Record):
    """``retrain/WIDTHS.json``: a found width beside the uniform one of its FLOPs."""

    found: RetrainedWidth
    """The width that was asked for."""
    uniform: RetrainedWidth
    """The uniform one."""
    full: RetrainedWidth | None = None
    """The full model, if it was asked for."""
    random: list[RetrainedWidth] = []
    """Random widths that use at least 95 % of the same FLOPs, one training each, if any were asked for."""
    start: Start = "scratch"
    """What both began with: fresh weights, or those that the supernet has for them."""
    recipe: str | None = None
    """Of what is trained like each other: a hash of recipe, precision and supernet; unset: of a version that did not note it."""


class TogetherRecord(Record):
    """``retrain/together.json``: width vectors trained in one network with batch norms of their own."""

    together: list[RetrainedWidth]
    """Each of them, split off and tested alone."""


class RetrainedNetwork(Record):
    """``result.json`` of one retraining."""

    identity: str
    """What ties it to the settings it was trained with."""
    accuracy: float
    """Test accuracy in per cent."""
    cross_entropy: float
    """On the test images."""


class FittedNetwork(Record):
    """``result.json`` of one plain training."""

    accuracy: float
    """Test accuracy in per cent."""
    cross_entropy: float
    """On the test images."""


class FitRecord(Record):
    """``fit.json``: a network as it is, trained with several seeds."""

    model: str
    """Its name."""
    acc: list[float]
    """Test accuracy in per cent, one per seed."""
    seeds: list[int]
    """Of the trainings."""
    flops: int
    """Multiply-adds of one image."""
    params: int
    """Parameters."""
    start: Literal["scratch", "trained"]
    """What the trainings began with."""


class ScoreFile(Record):
    """Scores of width vectors, such as ``scores.json``: written by ``bcnet score``, or by anybody else."""

    scores: dict[str, float]
    """Width string -> score, higher is better."""
    costs: dict[str, list[float | int]] = {}
    """Width string -> FLOPs and params, which tell a truth of another model from the right one."""
    meta: dict[str, Any] = {}
    """Config, training and environment."""


class Estimate(Correlation):
    """A correlation with its 95 % bootstrap interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Correlations(Record):
    """How well a predictor ranks."""

    kendall: Estimate
    """Kendall tau-b."""
    spearman: Estimate
    """Spearman's rho."""
    pearson: Estimate
    """Pearson's r."""


class Instead(Record):
    """What else could have been taken at a budget: accuracies in per cent."""

    uniform: float | None
    """Of the uniform width that costs just as much, between the two nearest ones; ``None`` without such widths."""
    random_mean: float
    """Mean of the networks that use at least 95 % of the budget."""
    random_best: float
    """Expected best of ten of these, had all ten been trained."""


class Regret(Record):
    """What picking the highest score under a budget loses."""

    budget: str
    """As it was asked for."""
    pick: str
    """Width string of the highest score under it."""
    ties: int = 1
    """So many have that score; the accuracy and the regret are their means."""
    pick_accuracy: float
    """In per cent."""
    best: str
    """Width string of the truly best under it."""
    best_accuracy: float
    """In per cent."""
    regret: float
    """The difference, in points."""
    instead: Instead | None = None
    """What else could have been taken; ``None`` where fewer than ten networks are near the budget."""

    @property
    def picked(self) -> str:
        """What is picked, in words."""
        return self.pick if self.ties == 1 else f"{self.pick} or {plural(self.ties - 1, 'other')} with the same score"


class Ranking(Correlation):
    """``ranking.json``: scores held against ground truth."""

    num_networks: int
    """Scored networks."""
    num_in_truth: int
    """Networks of the truth."""
    num_seeds: int
    """Trainings per network."""
    predictors: dict[str, Correlations]
    """``score`` and the baselines ``flops``, ``params``, ``sum_of_widths``."""
    noise_ceiling: float | None
    """Tau that a perfect predictor would reach; ``None`` with one seed."""
    top_k_precision: dict[str, float]
    """k -> share of the k best that are among the k highest scores."""
    regret: list[Regret]
    """One per budget."""
    truth: str = ""
    """Name of the truth's file."""


class PredictorRow(Correlation):
    """How one predictor ranks the networks of a truth."""

    kendall: float
    """Kendall tau-b."""
    spearman: float
    """Spearman's rho."""
    pearson: float
    """Pearson's r."""
    regret: dict[str, float]
    """Budget -> what picking by it loses, in points of accuracy."""


class ScoredSeed(PredictorRow):
    """What was trained or measured with one seed, and how it ranks."""

    passes: int
    """Forward and backward passes."""
    train_seconds: float
    """Of its training, or of all that was measured."""
    scores: list[float]
    """Of all networks, in the order of the truth."""


class MethodSeed(ScoredSeed):
    """One supernet of a method."""

    kendall_by_score: dict[str, float]
    """``METRIC, SIDE`` -> Kendall tau-b of that score from the same evaluations."""


class MethodResult(Correlation):
    """All supernets of a method."""

    strategy: str
    """Its name."""
    epochs: float
    """So many that all methods make equal passes."""
    per_seed: list[MethodSeed]
    """One per training."""
    kendall_of_mean_score: float
    """Of the mean of their standardised scores."""
    counts: list[list[int]]
    """For every group how often its bins were trained, last seed."""


class Comparison(Correlation):
    """``compare.json``: methods and baselines against one truth."""

    num_networks: int
    """Of the truth."""
    num_seeds: int
    """Trainings per method."""
    methods: dict[str, MethodResult]
    """By name of the config."""
    competitors: dict[str, list[ScoredSeed]] = {}
    """What else scores widths, one entry per seed."""
    baselines: dict[str, PredictorRow]
    """By name."""
    noise_ceiling: float | None
    """Tau that a perfect predictor would reach."""
