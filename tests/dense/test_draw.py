import numpy as np
import pytest
from grids import all_choices, tiny

from bcnet.dense.costs import count_grid
from bcnet.dense.draw import _tilt, _Tilted, draw_networks
from bcnet.errors import UserError

GRID = tiny()
FLOPS = count_grid(GRID, (3, 8, 8), 5).costs["flops"]


def chance(choice):
    """Of a draw that takes every edge and operation of a place with the same probability."""
    value = 1.0
    for block, head in zip(choice.path, (*choice.heads, None), strict=True):
        value /= len(GRID.outgoing[block]) * (1 if head is None else len(GRID.head_names))
        value /= len(GRID.stack_names) ** GRID.depth(block)
    return value


@pytest.mark.parametrize("t", [-2e-4, 0.0, 1e-4])
def test_tilted_draws_have_the_probabilities_of_enumeration(t):
    choices = list(all_choices(GRID))
    weights = np.array([chance(choice) * np.exp(-t * FLOPS.of(choice)) for choice in choices])
    if t == 0:
        assert weights.sum() == pytest.approx(1)
    weights /= weights.sum()
    tilted, rng = _Tilted(GRID, FLOPS, t), np.random.default_rng(0)
    assert tilted.mean() == pytest.approx(sum(w * FLOPS.of(c) for w, c in zip(weights, choices, strict=True)))
    places = {choice: place for place, choice in enumerate(choices)}
    counts = np.bincount([places[tilted.draw(rng)] for _ in range(3000)], minlength=len(choices)) / 3000
    assert np.abs(counts - weights).max() < 0.03


def test_networks_are_different_and_cost_what_is_wanted():
    costs = sorted(FLOPS.of(choice) for choice in all_choices(GRID))
    for low, high in ((costs[0], costs[60]), (costs[100], costs[140]), (costs[-40], costs[-1])):
        found = draw_networks(GRID, FLOPS, low, high, 8, np.random.default_rng(1))
        assert len({str(GRID.net_config(choice)) for choice in found}) == 8
        assert all(low <= FLOPS.of(choice) <= high for choice in found)
        assert found == draw_networks(GRID, FLOPS, low, high, 8, np.random.default_rng(1))
    assert _tilt(GRID, FLOPS, 60_000).mean() == pytest.approx(60_000, rel=1e-3)
    with pytest.raises(UserError, match="only 1 random networks"):
        draw_networks(GRID, FLOPS, costs[0], costs[0], 3, np.random.default_rng(1))
