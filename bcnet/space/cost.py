"""FLOPs and params of width vectors from a table built once: no forward pass, vectorised.

FLOPs are multiply-adds of convolutions and linear layers for one image (the field's convention; BN, activations and
pooling are not counted). Both costs are polynomials of degree two in the channels of the groups,
``const + linear . c + c . pairs . c``: a convolution costs (its inputs) x (its outputs), a grouped one is linear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcnet.errors import UserError
from bcnet.space.widths import Layer, Segment, Space

COSTS = ("flops", "params")


@dataclass(frozen=True)
class Polynomial:
    """``const + linear . c + c . pairs . c`` over channels ``c``, exact in 64-bit integers.

    Attributes:
        const: term without channels.
        linear: ``(groups,)``.
        pairs: ``(groups, groups)``.
    """

    const: int
    linear: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]

    def __call__(self, channels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Evaluate at channels ``(..., groups)``; returns ``(...)``."""
        value: npt.NDArray[np.int64] = self.const + channels @ self.linear + ((channels @ self.pairs) * channels).sum(-1)
        return value

    def expectation(self, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
        """Exact expectation under independent groups with moments ``E[c]`` and ``E[c * c]``, each ``(groups,)``."""
        pairs = self.pairs.astype(np.float64)
        off_diagonal = first @ pairs @ first - (first * first) @ np.diag(pairs)
        return float(self.const + self.linear @ first + off_diagonal + second @ np.diag(pairs))


class CostTable:
    """FLOPs and params of every width vector of a space.

    Args:
        space: a traced space, with its layers.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.table = space.channel_table()
        self.polynomials = {
            "flops": _polynomial(space, [_flops_terms(layer) for layer in space.layers], 0),
            "params": _polynomial(space, [_params_terms(layer) for layer in space.layers], space.fixed_params),
        }
        self._tables = {cost: _tables(polynomial, self.table) for cost, polynomial in self.polynomials.items()}
        self._lists = {cost: (const, [(a, b, table.tolist()) for a, b, table in parts]) for cost, (const, parts) in self._tables.items()}

    def of_channels(self, channels: Sequence[int] | npt.NDArray[np.int64], cost: str) -> npt.NDArray[np.int64]:
        """``flops`` or ``params`` of channel vectors ``(..., groups)``."""
        return self.polynomials[cost](np.asarray(channels, dtype=np.int64))

    def of_widths(self, widths: Sequence[Sequence[int]] | npt.NDArray[np.int64], cost: str) -> npt.NDArray[np.int64]:
        """``flops`` or ``params`` of width vectors ``(N, groups)``; returns ``(N,)``."""
        index = np.ascontiguousarray(np.asarray(widths, dtype=np.int64).reshape(-1, len(self.space.groups)).T)
        const, parts = self._tables[cost]
        total = np.full(index.shape[1], const, dtype=np.int64)
        for a, b, table in parts:
            total += table[index[a], index[b]]
        return total

    def one(self, widths: Sequence[int], cost: str) -> int:
        """``flops`` or ``params`` of one width vector, by table look-ups alone (less than a microsecond)."""
        if len(widths) != len(self.space.groups):
            raise ValueError(f"{len(widths)} indices for {len(self.space.groups)} groups")
        total, parts = self._lists[cost]
        for a, b, table in parts:
            total += table[widths[a]][widths[b]]
        return total

    def range(self, cost: str) -> tuple[int, int]:
        """Cost of the narrowest and of the full width vector: the reachable range."""
        return self.one(self.space.narrowest, cost), self.one(self.space.full, cost)


@dataclass(frozen=True)
class Budget:
    """An upper limit on one cost.

    Attributes:
        cost: ``flops`` or ``params``.
        limit: largest allowed value (multiply-adds of one image, or parameters).
    """

    cost: str
    limit: int

    def __str__(self) -> str:
        return f"{self.cost} <= {human(self.limit)}"

    @staticmethod
    def parse(text: str, costs: CostTable) -> "Budget":
        """Read ``flops=150M``, ``params=2.5M`` or ``flops=0.5`` (a fraction of the full model).

        Raises:
            UserError: unknown cost, no number, or a limit that no width vector can keep.
        """
        name, _, value = text.partition("=")
        name = name.strip()
        if name not in COSTS or not value:
            raise UserError(f"budget {text!r} is not COST=VALUE with COST one of {', '.join(COSTS)}, e.g. flops=150M or flops=0.5")
        low, high = costs.range(name)
        limit = parse_number(value.strip(), f"budget {text!r}")
        if limit <= 1 and not value.strip().isdigit():
            limit *= high
        if limit < low:
            reach = f"{human(low)} to {human(high)} ({low / high:.3f} to 1 of the full model)"
            raise UserError(f"budget {text!r} cannot be met: {name} of this space reach from {reach}")
        return Budget(name, int(limit))


def parse_number(text: str, where: str) -> float:
    """Read ``150M``, ``2.5G``, ``0.5`` or ``1e6``; a unit is one of k, M, G, T.

    Raises:
        UserError: not a positive number.
    """
    scale = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}.get(text[-1:].lower(), 0.0)
    try:
        number = float(text[:-1] if scale else text) * (scale or 1.0)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise UserError(f"{where}: {text!r} is not a positive number such as 150M, 2.5G or 0.5")
    return number


def human(value: float) -> str:
    """A count with a unit: ``122.9M``."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


# A term is (coefficient, group or None, group or None): the coefficient times the channels of the groups it names.
_Term = tuple[int, int | None, int | None]


def _product(coefficient: int, left: Segment, right: Segment) -> _Term:
    for segment in (left, right):
        coefficient *= segment.repeat * (segment.channels if segment.group is None else 1)
    return coefficient, left.group, right.group


def _flops_terms(layer: Layer) -> list[_Term]:
    return [] if layer.kind == "norm" else _weight_terms(layer, layer.positions)


def _params_terms(layer: Layer) -> list[_Term]:
    vectors = layer.vectors if layer.kind == "norm" else int(layer.bias)
    terms = [] if layer.kind == "norm" else _weight_terms(layer, 1)
    return terms + [_product(vectors, _ONE, segment) for segment in layer.outputs]


def _weight_terms(layer: Layer, times: int) -> list[_Term]:
    times *= layer.kernel
    if layer.channels_per_group:
        return [_product(times * layer.channels_per_group, _ONE, segment) for segment in layer.outputs]
    return [_product(times, source, target) for source in layer.inputs for target in layer.outputs]


_ONE = Segment(None, 1)


def _polynomial(space: Space, terms_of_layers: list[list[_Term]], const: int) -> Polynomial:
    linear = np.zeros(len(space.groups), dtype=np.int64)
    pairs = np.zeros((len(space.groups),) * 2, dtype=np.int64)
    for coefficient, left, right in (term for terms in terms_of_layers for term in terms):
        if left is not None and right is not None:
            pairs[left, right] += coefficient
        elif left is None and right is None:
            const += coefficient
        else:
            linear[left if right is None else right] += coefficient
    return Polynomial(const, linear, pairs)


_Tables = tuple[int, list[tuple[int, int, npt.NDArray[np.int64]]]]


def _tables(polynomial: Polynomial, channels: npt.NDArray[np.int64]) -> _Tables:
    """The constant, and a table of costs ``(K, K)`` for pairs of groups; what one group costs alone stands in one of its pairs."""
    both = polynomial.pairs + polynomial.pairs.T
    squares = np.diag(polynomial.pairs)
    alone = polynomial.linear[:, None] * channels + squares[:, None] * channels**2
    tables = {(int(a), int(b)): both[a, b] * np.outer(channels[a], channels[b]) for a, b in np.argwhere(np.triu(both, 1))}
    for group, costs in enumerate(alone):
        pair = next((pair for pair in tables if group in pair), (group, (group + 1) % len(alone)))
        table = tables.setdefault(pair, np.zeros((channels.shape[1],) * 2, dtype=np.int64))
        table += costs[:, None] if pair[0] == group else costs
    return polynomial.const, [(a, b, table) for (a, b), table in tables.items()]
