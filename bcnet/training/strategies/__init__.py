"""Which subnets one step trains, and with what weight; every method is a list of passes per step, nothing else."""

from bcnet.training.strategies.autoslim import AutoSlim
from bcnet.training.strategies.base import Pass, Strategy
from bcnet.training.strategies.bcnet import BCNet, BCNetV2
from bcnet.training.strategies.distilled import BCNetDistilled, BCNetV2Distilled
from bcnet.training.strategies.fair import Fair
from bcnet.training.strategies.uniform import Uniform

STRATEGIES: dict[str, type[Strategy]] = {
    "uniform": Uniform,
    "fair": Fair,
    "autoslim": AutoSlim,
    "bcnet": BCNet,
    "bcnetv2": BCNetV2,
    "bcnet_distilled": BCNetDistilled,
    "bcnetv2_distilled": BCNetV2Distilled,
}

__all__ = ["STRATEGIES", "Pass", "Strategy"]
