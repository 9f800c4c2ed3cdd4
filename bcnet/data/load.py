"""The data set that a config names."""

from typing import Any

import torch

from bcnet.config import DataConfig
from bcnet.data.interfaces import DataSet
from bcnet.data.resident import ResidentData
from bcnet.errors import UserError, first_line
from bcnet.plugins import import_object


def load_data(config: DataConfig, seed: int, device: torch.device) -> DataSet:
    """Load, split and place the images.

    A data source of your own is called as ``source(config, seed, device)`` and returns a `DataSet`.

    Raises:
        UserError: the files are not where the config says, are not images, or are too few; or it is no such source.
    """
    if ":" not in config.source:
        return ResidentData(config, seed, device)
    source = import_object(config.source, "data.source")
    try:
        data: Any = source(config, seed, device)
    except Exception as error:
        raise UserError(f"data.source {config.source!r} could not be loaded with (config, seed, device): {first_line(error)}") from error
    parts = ("classes", "input_shape", "mean", "std", "num_images", "train_batches", "eval_batches")
    missing = [name for name in parts if not hasattr(data, name)]
    if missing:
        raise UserError(f"data.source {config.source!r} gives no bcnet.data.interfaces.DataSet: it has no {missing[0]!r}")
    data_set: DataSet = data
    return data_set
