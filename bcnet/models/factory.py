"""Build a plain model from its name."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.files import read_text
from bcnet.models.channel_bench import MobileNet, ResNet
from bcnet.models.cifar import ResNet20
from bcnet.models.densenas import ChainNetwork
from bcnet.models.digits import DigitsResNet
from bcnet.models.padded import PaddedResNet
from bcnet.models.shake_shake import ShakeShake
from bcnet.models.stem import cifar_stem
from bcnet.plugins import import_object
from bcnet.progress import notice

OWN_MODELS: dict[str, Callable[..., nn.Module]] = {
    "channel_bench/mobilenet": MobileNet,
    "channel_bench/resnet": ResNet,
    "cifar/resnet20": ResNet20,
    "cifar/resnet20_padded": partial(PaddedResNet, depth=20),
    "cifar/resnet56_padded": partial(PaddedResNet, depth=56),
    "cifar/shake_shake26_2x32d": partial(ShakeShake, width=32),
    "cifar/shake_shake26_2x64d": partial(ShakeShake, width=64),
    "densenas/chain": ChainNetwork,
    "digits/resnet": DigitsResNet,
}
DEFAULT_INPUTS = {
    "channel_bench/mobilenet": (3, 32, 32),
    "channel_bench/resnet": (3, 32, 32),
    "cifar/resnet20": (3, 32, 32),
    "cifar/resnet20_padded": (3, 32, 32),
    "cifar/resnet56_padded": (3, 32, 32),
    "cifar/shake_shake26_2x32d": (3, 32, 32),
    "cifar/shake_shake26_2x64d": (3, 32, 32),
    "digits/resnet": (1, 8, 8),
}


def build_model(name: str, num_classes: int, *, seed: int = 0, pretrained: bool = False, args: dict[str, Any] | None = None) -> nn.Module:
    """Build a model with initial weights that depend on the seed alone; the global random state is left as it was.

    Args:
        name: one of our own, ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``.
        num_classes: number of logits, passed on as ``num_classes``.
        seed: of the initial weights.
        pretrained: load the weights that timm or torchvision publish, or those that a factory with an argument of that name loads.
        args: further keyword arguments of the factory. With ``cifar_stem`` among them, the stem is made for 32x32 images.

    Raises:
        UserError: unknown name, or the factory refused the arguments.
    """
    factory = _find_factory(name, pretrained)
    rest = dict(args or {})
    small = bool(rest.pop("cifar_stem", False))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = factory(num_classes=num_classes, **rest)
            if small and isinstance(model, nn.Module):
                model = cifar_stem(model)
                if pretrained:
                    notice(f"{name}: cifar_stem draws a first convolution larger than 3x3 anew, without its trained weights")
    except Exception as error:
        given = f"num_classes={num_classes}, {args or {}}"
        raise UserError(f"model {name!r} could not be built with {given}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} is not a torch.nn.Module but {type(model).__name__}")
    return model


def check_logits(model: nn.Module, shape: tuple[int, ...], num_classes: int, name: str) -> None:
    """See that a model makes a logit per class of images ``(C, H, W)``.

    Raises:
        UserError: it does not take them, or gives something else.
    """
    images, was_training = "x".join(map(str, shape)), model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model.eval()(torch.zeros(1, *shape))
    except Exception as error:
        raise UserError(f"model {name!r} cannot be run on one {images} image ({first_line(error)})") from error
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor):
        raise UserError(f"model {name!r} gives no tensor of logits but {type(logits).__name__}")
    if tuple(logits.shape) != (1, num_classes):
        wanted = f"(N, {num_classes}), a logit for each of the {num_classes} classes"
        raise UserError(f"model {name!r} gives {tuple(logits.shape)} for one {images} image; wanted is {wanted}")


def list_models(which: str) -> list[str]:
    """Names of models.

    Args:
        which: ``timm``, ``torchvision`` (its classifiers), or a file with a name per line; what follows a ``#`` is a comment.

    Raises:
        UserError: there is no such file, or no name in it.
    """
    if which == "timm":
        import timm

        return [f"timm/{name}" for name in timm.list_models()]
    if which == "torchvision":
        from torchvision import models

        return [f"torchvision/{name}" for name in models.list_models(module=models)]
    lines = read_text(Path(which), "timm, torchvision, or a file with a model's name per line").splitlines()
    names = dict.fromkeys(name for line in lines for name in line.partition("#")[0].split())
    if not names:
        raise UserError(f"{which}: no model's name in it")
    return list(names)


def default_input(name: str) -> tuple[int, int, int]:
    """``(C, H, W)`` a model is usually run on."""
    family, _, rest = name.partition("/")
    if family == "timm":
        import timm

        config = timm.get_pretrained_cfg(rest) if timm.is_model(rest) else None
        if config is not None and len(config.input_size) == 3:
            channels, height, width = config.input_size
            return channels, height, width
    if family == "torchvision":
        from torchvision import models

        if rest in models.list_models(module=models):
            weights = models.get_model_weights(rest)
            size = next((int(one.transforms().crop_size[0]) for one in weights), 224)
            return 3, size, size
    return DEFAULT_INPUTS.get(name, (3, 224, 224))


def default_divisor(name: str) -> int | None:
    """What channel counts of a model's narrower versions are best multiples of: 8 for networks that people deploy, as hardware wants."""
    return 8 if name.startswith(("timm/", "torchvision/")) else None


def _find_factory(name: str, pretrained: bool) -> Callable[..., nn.Module]:
    if name in OWN_MODELS:
        if pretrained:
            raise UserError(f"model {name!r} has no published weights: leave model.pretrained=false")
        return OWN_MODELS[name]
    family, _, rest = name.partition("/")
    if family == "timm" and rest:
        return _timm_factory(rest, pretrained)
    if family == "torchvision" and rest:
        return _torchvision_factory(rest, pretrained)
    if ":" in name:
        return _user_factory(name, pretrained)
    forms = f"{', '.join(OWN_MODELS)}, timm/NAME, torchvision/NAME or package.module:factory"
    raise UserError(f"unknown model {name!r}: use {forms}")


def _timm_factory(name: str, pretrained: bool) -> Callable[..., nn.Module]:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        raise UserError(f"timm has no model {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    return lambda **kwargs: timm.create_model(name, pretrained=pretrained, **kwargs)


def _torchvision_factory(name: str, pretrained: bool) -> Callable[..., nn.Module]:
    import difflib

    from torchvision import models

    if name not in models.list_models():
        near = difflib.get_close_matches(name, models.list_models(), 5)
        raise UserError(f"torchvision has no model {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    return lambda **kwargs: models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)


def _user_factory(name: str, pretrained: bool) -> Callable[..., nn.Module]:
    factory = import_object(name, "model")
    if not callable(factory):
        raise UserError(f"model {name!r} is not callable but {type(factory).__name__}")
    plain: Callable[..., nn.Module] = factory
    parameters = _parameters(plain)
    if not pretrained:  # also where the factory would load weights by itself
        return partial(plain, pretrained=False) if "pretrained" in parameters else plain
    if "pretrained" not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        raise UserError(f"model {name!r} takes no argument 'pretrained': leave model.pretrained=false, or let the factory load weights")
    return lambda **kwargs: factory(pretrained=True, **kwargs)


def _parameters(factory: Callable[..., nn.Module]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # of what is written in C
        return {}
