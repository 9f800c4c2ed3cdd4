"""Small grids for tests."""

from bcnet.dense.config import GridConfig
from bcnet.dense.grid import Grid


def tiny(**changes) -> Grid:
    """Four blocks, three paths, two operations, one layer in two of the blocks."""
    settings = {
        "stem_stride": 1,
        "widths": [4, 6, 8, 10],
        "maps": [8, 8, 4, 4],
        "stages": [0, 1, 1, 2],
        "depth": [0, 1, 1, 0],
        "adjoin": 3,
        "head": ["mbconv_k3_t1", "mbconv_k5_t3"],
        "stack": ["mbconv_k3_t3"],
        "last": 12,
    }
    return Grid(GridConfig(**(settings | changes)))
