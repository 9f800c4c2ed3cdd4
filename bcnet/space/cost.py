"""Costs of width vectors from tables built once: no forward pass, vectorised, exact.

A cost is a constant plus, for pairs of groups, a table over the widths of the two: a convolution costs (its inputs) x (its
outputs), a measured latency whatever was measured for a pair. So a cost is looked up, and its expectation under independent
groups is a sum of ``p_a . T . p_b``.

FLOPs are multiply-adds of convolutions, linear layers and other matrix products for one image (the field's convention; BN,
activations and pooling are not counted).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bcnet.errors import UserError
from bcnet.formatting import human, parse_number
from bcnet.space.widths import Layer, Segment, Space, Widths

Table = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """What width vectors cost, as tables over pairs of groups.

    Attributes:
        name: such as ``flops``; what a budget names.
        unit: what is counted, such as ``multiply-adds of one image``.
        const: what every network costs.
        tables: (group a, group b) -> costs ``(K_a + 1, K_b + 1)`` at indices ``[k_a, k_b]``; a group may stand beside itself.
        of_channels: the cost of channel counts ``(..., groups)`` that need not be choices; ``None`` where only choices were measured.
    """

    name: str
    unit: str
    const: float
    tables: Mapping[tuple[int, int], Table]
    of_channels: Callable[[npt.NDArray[np.int64]], Table] | None = None

    @property
    def symbol(self) -> str:
        """What stands behind a number: the unit where it is a short one, such as ``ms``."""
        return self.unit if len(self.unit) <= 3 else ""

    @cached_property
    def _lists(self) -> list[tuple[int, int, list[list[Any]]]]:
        return [(a, b, table.tolist()) for (a, b), table in self.tables.items()]

    def one(self, widths: Sequence[int]) -> Any:
        """The cost of one width vector, by look-ups alone (less than a microsecond for a small network)."""
        total = self.const
        for a, b, table in self._lists:
            total += table[widths[a]][widths[b]]
        return total

    def of_widths(self, index: npt.NDArray[np.int64]) -> Table:
        """Costs ``(N,)`` of width vectors ``(groups, N)``."""
        total = np.full(index.shape[1], self.const)
        for (a, b), table in self.tables.items():
            total += table[index[a], index[b]]
        return total

    def expectation(self, probabilities: Sequence[Floats]) -> float:
        """Exact expectation under independent groups.

        Args:
            probabilities: for every group those of its indices ``0..K``.
        """
        total = float(self.const)
        for (a, b), table in self.tables.items():
            p = probabilities[a]
            total += float(p @ np.diag(table)) if a == b else float(p @ table @ probabilities[b])
        return total

    def slopes(self, probabilities: Sequence[Floats]) -> list[Floats]:
        """Derivative of the expectation by every probability, for every group an array ``(K + 1,)``."""
        slopes = [np.zeros(len(p)) for p in probabilities]
        for (a, b), table in self.tables.items():
            if a == b:
                slopes[a] += np.diag(table)
            else:
                slopes[a] += table @ probabilities[b]
                slopes[b] += probabilities[a] @ table
        return slopes


class CostTable:
    """All costs of every width vector of a space, by name.

    Args:
        space: a traced space, with its layers.
        more: costs beside FLOPs and params.
        model: the space of the model as it was before it was widened; unset: the full width vector is the model.

    Raises:
        UserError: two costs of one name.
    """

    def __init__(self, space: Space, more: Sequence[Cost] = (), model: Space | None = None) -> None:
        self.space = space
        self.model = model
        self.costs = {cost.name: cost for cost in (flops(space), params(space), *more)}
        if len(self.costs) < 2 + len(more):
            raise UserError(f"two costs have the same name: {', '.join(['flops', 'params', *(cost.name for cost in more)])}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the costs; ``flops`` and ``params`` are the first two."""
        return tuple(self.costs)

    def of_channels(self, channels: Sequence[int] | npt.NDArray[np.int64], cost: str) -> Table:
        """A cost of channel vectors ``(..., groups)``, which need not be choices.

        Raises:
            UserError: the cost is known for choices only.
        """
        count = self.costs[cost].of_channels
        if count is None:
            raise UserError(f"{cost} is known for the choices of the groups only, not for channels {list(channels)}")
        return count(np.asarray(channels, dtype=np.int64))

    def of_widths(self, widths: Sequence[Sequence[int]] | npt.NDArray[np.int64], cost: str) -> Table:
        """A cost of width vectors ``(N, groups)``; returns ``(N,)``."""
        index = np.ascontiguousarray(np.asarray(widths, dtype=np.int64).reshape(-1, len(self.space.groups)).T)
        return self.costs[cost].of_widths(index)

    def one(self, widths: Sequence[int], cost: str) -> Any:
        """A cost of one width vector."""
        if len(widths) != len(self.space.groups):
            raise ValueError(f"{len(widths)} indices for {len(self.space.groups)} groups")
        return self.costs[cost].one(widths)

    def all_of(self, widths: Sequence[int]) -> dict[str, Any]:
        """Every cost of one width vector, by name."""
        return {name: self.one(widths, name) for name in self.costs}

    def symbol(self, cost: str) -> str:
        """What stands behind a number of a cost, such as ``ms``."""
        return self.costs[cost].symbol

    def written(self, cost: str, value: float) -> str:
        """A value of a cost as people read it: ``122.9M``, ``3.5 ms``."""
        return f"{human(value)} {self.costs[cost].symbol}".rstrip()

    def range(self, cost: str) -> tuple[Any, Any]:
        """Cost of the narrowest and of the full width vector: the reachable range."""
        return self.one(self.space.narrowest, cost), self.one(self.space.full, cost)

    @cached_property
    def model_channels(self) -> tuple[int, ...]:
        """Channels of every group in the model, before it was widened."""
        own = {layer: group.channels for group in self.model.groups for layer in group.layers} if self.model else {}
        return tuple(own.get(group.name, group.channels) for group in self.space.groups)

    def of_model(self, cost: str) -> Any:
        """What the model costs, which fractions refer to; ``None`` where it was widened and only choices were measured."""
        if self.model is None:
            return self.one(self.space.full, cost)
        if cost in ("flops", "params"):
            return (flops if cost == "flops" else params)(self.model).one(self.model.full)
        return self.of_channels(self.model_channels, cost).item() if self.costs[cost].of_channels else None

    @property
    def model_name(self) -> str:
        """How prints call the network that fractions refer to."""
        return "the full model" if self.model is None else "the model"


class Priced(Protocol):
    """What a budget asks of the costs of a space; `CostTable` is that of width vectors."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the costs."""

    @property
    def model_name(self) -> str:
        """How prints call the network that fractions refer to."""

    def symbol(self, cost: str) -> str:
        """What stands behind a number of it, such as ``ms``."""

    def range(self, cost: str) -> tuple[Any, Any]:
        """The cheapest and the dearest."""

    def of_model(self, cost: str) -> Any:
        """What fractions refer to."""

    def written(self, cost: str, value: float) -> str:
        """A value of a cost as people read it."""


@dataclass(frozen=True)
class Budget:
    """An upper limit on one cost.

    Attributes:
        cost: its name, such as ``flops``.
        limit: largest allowed value, in the cost's unit.
        text: as it was asked for.
    """

    cost: str
    limit: float
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.cost} <= {human(self.limit)}"

    @staticmethod
    def parse(text: str, costs: Priced) -> "Budget":
        """Read ``flops=150M``, ``params=2.5M``, ``latency=3.5ms`` or ``flops=0.5`` (a fraction of the model's, before it was widened).

        Raises:
            UserError: unknown cost, no number, or a limit that no width vector can keep.
        """
        name, _, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if name not in costs.names or not value:
            raise UserError(f"budget {text!r} is not COST=VALUE with COST one of {', '.join(costs.names)}, e.g. flops=150M or flops=0.5")
        low, high = costs.range(name)
        whole = costs.of_model(name)
        limit = limit_of(value, whole, f"budget {text!r}", costs.symbol(name))
        if limit < low:
            reach = f"{human(low)} to {costs.written(name, high)}"
            if whole is not None:
                reach += f" ({low / whole:.3f} to {round(high / whole, 3):g} of {costs.model_name})"
            what = f"{name} of this space reach" if isinstance(high, int) else f"from the narrowest network to the full one, {name} goes"
            raise UserError(f"budget {text!r} cannot be met: {what} from {reach}")
        return Budget(name, int(limit) if isinstance(high, int) else limit, text)


def uniform_widths(costs: CostTable, text: str) -> Widths:
    """The widest width vector within a budget in which every group has about the same share of its channels.

    Args:
        costs: of the space.
        text: of the budget, such as ``flops=0.5``.

    Raises:
        UserError: the budget cannot be read or met.
    """
    return widest(costs, [Budget.parse(text, costs)], costs.space.uniform)


def limit_of(value: str, full: float | None, where: str, symbol: str = "") -> float:
    """The number that a budget's value means: itself, or a fraction of the model's cost where it is written as one.

    With the unit's symbol behind it (``0.5ms``) it is never a fraction.

    Raises:
        UserError: not a positive number, or a fraction of what is not known.
    """
    if symbol and value.endswith(symbol):
        return parse_number(value.removesuffix(symbol).rstrip(), where)
    limit = parse_number(value, where)
    if limit > 1 or value.isdigit():
        return limit
    if full is None:
        raise UserError(f"{where}: what the model itself costs is not known, for it was widened; give a number in the cost's unit")
    return limit * full


def parse_budgets(texts: Sequence[str], costs: CostTable, *, passed: bool = False) -> tuple[Budget, ...]:
    """Budgets that must hold together.

    Args:
        texts: such as ``flops=0.5``.
        costs: of the space.
        passed: they are passed one after the other, so several may be of one cost.

    Raises:
        UserError: one cannot be read or met, or two are of one cost.
    """
    budgets = tuple(Budget.parse(text, costs) for text in texts)
    if not passed and len({budget.cost for budget in budgets}) < len(budgets):
        raise UserError(f"two budgets of one cost: {', '.join(texts)}; give each cost one limit, or search with --algorithm greedy")
    return budgets


def keeps(costs: CostTable, budgets: Sequence[Budget], widths: Sequence[int]) -> bool:
    """Whether a width vector keeps all budgets."""
    return all(costs.one(widths, budget.cost) <= budget.limit for budget in budgets)


def widest(costs: CostTable, budgets: Sequence[Budget], at: Callable[[float], Widths]) -> Widths:
    """The widest that keeps all budgets, of a family of width vectors that grow with a number from 0, the narrowest, to 1."""
    low, high = 0.0, 1.0
    if keeps(costs, budgets, at(high)):
        return at(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(costs, budgets, at(middle)) else (low, middle)
    return at(low)


def shrink_to_budgets(costs: CostTable, budgets: Sequence[Budget], widths: Sequence[int], rng: np.random.Generator) -> Widths:
    """Take one bin after another from random groups until the widths keep the budgets, as the narrowest do."""
    smallest, current = costs.space.narrowest, list(widths)
    while not keeps(costs, budgets, current):
        current[rng.choice([place for place, k in enumerate(current) if k > smallest[place]])] -= 1
    return tuple(current)


# FLOPs and params ------------------------------------------------------------------------------------------------------


def flops(space: Space) -> Cost:
    """Multiply-adds of convolutions and matrix products for one image."""
    terms = [(layer, _flops_terms(layer)) for layer in space.layers]
    return _counted("flops", "multiply-adds of one image", space, terms, space.fixed_flops)


def params(space: Space) -> Cost:
    """Parameters of the plain network."""
    return _counted("params", "parameters", space, [(layer, _params_terms(layer)) for layer in space.layers], space.fixed_params)


# A term is (coefficient, group or None, group or None): the coefficient times the channels of the groups it names.
_Term = tuple[int, int | None, int | None]


def _product(coefficient: int, left: Segment, right: Segment) -> _Term:
    for segment in (left, right):
        coefficient *= segment.repeat * (segment.channels if segment.group is None else 1)
    return coefficient, left.group, right.group


def _flops_terms(layer: Layer) -> list[_Term]:
    times = layer.positions * layer.kernel
    if layer.along:
        inputs = layer.channels_per_group or _fixed_entries(layer.inputs)
        return [_product(times * inputs * _fixed_entries(layer.outputs), _ONE, segment) for segment in layer.along]
    if layer.channels_per_group:
        return [_product(times * layer.channels_per_group, _ONE, segment) for segment in layer.outputs]
    return [_product(times, source, target) for source in layer.inputs for target in layer.outputs]


def _params_terms(layer: Layer) -> list[_Term]:
    terms = []
    for tensor in layer.tensors:
        if tensor.learned:
            searched = [dim for dim in tensor.dims if any(segment.group is not None for segment in dim)]
            coefficient = prod(_fixed_entries(dim) for dim in tensor.dims if dim not in searched)
            first, second = (*searched, (_ONE,), (_ONE,))[:2]
            terms += [_product(coefficient, left, right) for left in first for right in second]
    return terms


def _fixed_entries(segments: Sequence[Segment]) -> int:
    return sum(segment.entries(()) for segment in segments)


_ONE = Segment(None, 1)


@dataclass(frozen=True)
class _Polynomial:
    """``const + linear . c + c . pairs . c`` over channels ``c``, exact in 64-bit integers."""

    const: int
    linear: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]

    @classmethod
    def of_terms(cls, groups: int, terms: Sequence[_Term], const: int = 0) -> "_Polynomial":
        linear, pairs = np.zeros(groups, dtype=np.int64), np.zeros((groups, groups), dtype=np.int64)
        for coefficient, left, right in terms:
            if left is not None and right is not None:
                pairs[left, right] += coefficient
            elif left is None and right is None:
                const += coefficient
            else:
                linear[left if right is None else right] += coefficient
        return cls(const, linear, pairs)

    def __call__(self, channels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        value: npt.NDArray[np.int64] = self.const + channels @ self.linear + ((channels @ self.pairs) * channels).sum(-1)
        return value

    def tables(self, counts: Sequence[npt.NDArray[np.int64]]) -> dict[tuple[int, int], npt.NDArray[np.int64]]:
        """Tables for pairs of groups; what a group costs alone stands in one of its pairs."""
        both = self.pairs + self.pairs.T
        tables = {(int(a), int(b)): both[a, b] * np.outer(counts[a], counts[b]) for a, b in np.argwhere(np.triu(both, 1))}
        for group, own in enumerate(counts):
            alone = self.linear[group] * own + self.pairs[group, group] * own**2
            pair = next((pair for pair in tables if group in pair), (group, group))
            table = tables.setdefault(pair, np.zeros((len(own), len(own)), dtype=np.int64))
            table += alone[:, None] if pair[0] == group else alone
        return tables


def _counted(name: str, unit: str, space: Space, terms_of_layers: Sequence[tuple[Layer, list[_Term]]], const: int) -> Cost:
    """A cost from the terms of every layer; layers that are skipped at equal widths count where they are not."""
    number = len(space.groups)
    counts = [np.array(row, dtype=np.int64) for row in space.channel_table()]
    always = _Polynomial.of_terms(number, [term for layer, terms in terms_of_layers for term in terms if not layer.skipped_if_equal], const)
    optional = [(layer.skipped_if_equal, _Polynomial.of_terms(number, terms)) for layer, terms in terms_of_layers if layer.skipped_if_equal]

    def of_channels(channels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        value = always(channels)
        for (inputs, outputs), polynomial in optional:
            value = value + np.where(_entries(inputs, channels) != _entries(outputs, channels), polynomial(channels), 0)
        return value

    tables = always.tables(counts)
    fixed = always.const
    for (inputs, outputs), polynomial in optional:
        touched = sorted({segment.group for segment in (inputs, outputs) if segment.group is not None})
        if touched:
            a, b = touched[0], touched[-1]
            table = tables.setdefault((a, b), np.zeros((len(counts[a]), len(counts[b])), dtype=np.int64))
            channels = np.zeros((*table.shape, number), dtype=np.int64)
            channels[..., b] = counts[b]
            channels[..., a] = counts[a][:, None]
            table += np.where(_entries(inputs, channels) != _entries(outputs, channels), polynomial(channels), 0)
        elif inputs.entries(()) != outputs.entries(()):
            fixed += polynomial.const
    return Cost(name, unit, fixed, tables, of_channels)


def _entries(segment: Segment, channels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    own = np.full(channels.shape[:-1], segment.channels) if segment.group is None else channels[..., segment.group]
    return own * segment.repeat
