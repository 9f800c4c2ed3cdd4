"""Small grids for tests, and everything in them listed."""

import itertools

import torch

from bcnet.dense.architecture import Architecture
from bcnet.dense.config import GridConfig
from bcnet.dense.grid import Choice, Grid

TINY = {
    "stem_stride": 1,
    "widths": [4, 6, 8, 10],
    "maps": [8, 8, 4, 4],
    "stages": [0, 1, 1, 2],
    "depth": [0, 1, 2, 0],
    "adjoin": 3,
    "head": ["mbconv_k3_t1", "mbconv_k5_t3"],
    "stack": ["mbconv_k3_t3", "mbconv_k5_t1"],
    "last": 12,
}


def tiny(**changes) -> Grid:
    """Four blocks, three paths, two operations, one or two layers in two of the blocks."""
    return Grid(GridConfig(**(TINY | changes)))


def all_choices(grid):
    """Every network of a grid, by brute force."""
    heads, stacked = range(len(grid.head_names)), range(len(grid.stack_names))
    for path in grid.paths():
        layers = [itertools.product(stacked, repeat=grid.depth(block)) for block in path[1:]]
        for stacks in itertools.product(*layers):
            for chosen in itertools.product(heads, repeat=len(path) - 1):
                yield Choice(path, chosen, stacks)


def random_architecture(grid, seed=0, dtype=torch.float64) -> Architecture:
    architecture = Architecture(grid, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in architecture.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return architecture
