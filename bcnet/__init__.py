"""Network width search: how many channels should every layer of a CNN have?

Trace a model, train one weight-sharing supernet, search a width under a budget, take the network out::

    space = bcnet.trace(model, (3, 32, 32))
    supernet = bcnet.Supernet(model, space, wide=True)
    network = supernet.extract(widths)
"""

import importlib
from typing import TYPE_CHECKING, Any

from bcnet.version import __version__

if TYPE_CHECKING:
    from bcnet.config import Config, load_config
    from bcnet.errors import UserError
    from bcnet.experiment import Experiment
    from bcnet.run import Run
    from bcnet.space.cost import Budget, CostTable
    from bcnet.space.widths import Space
    from bcnet.supernet.build import build_from_channels
    from bcnet.supernet.calibrate import calibrate
    from bcnet.supernet.extract import load_network, save_network
    from bcnet.supernet.proof import trace
    from bcnet.supernet.supernet import Supernet, narrow

_HOME = {
    "Budget": "bcnet.space.cost",
    "Config": "bcnet.config",
    "CostTable": "bcnet.space.cost",
    "Experiment": "bcnet.experiment",
    "Run": "bcnet.run",
    "Space": "bcnet.space.widths",
    "Supernet": "bcnet.supernet.supernet",
    "UserError": "bcnet.errors",
    "build_from_channels": "bcnet.supernet.build",
    "calibrate": "bcnet.supernet.calibrate",
    "load_config": "bcnet.config",
    "load_network": "bcnet.supernet.extract",
    "narrow": "bcnet.supernet.supernet",
    "save_network": "bcnet.supernet.extract",
    "trace": "bcnet.supernet.proof",
}

__all__ = [
    "Budget",
    "Config",
    "CostTable",
    "Experiment",
    "Run",
    "Space",
    "Supernet",
    "UserError",
    "__version__",
    "build_from_channels",
    "calibrate",
    "load_config",
    "load_network",
    "narrow",
    "save_network",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: ``import bcnet`` alone is quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'bcnet' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value
