"""A found network as files: safetensors and JSON, loaded without the supernet and without tracing."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import nn

from bcnet.errors import UserError, first_line
from bcnet.files import read_json, write_atomic, write_json
from bcnet.models.factory import build_model
from bcnet.models.shortcut import drop_unused_bodies

FORMAT = "bcnet-network-1"
WEIGHTS, DESCRIPTION = "network.safetensors", "network.json"
_SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


def save_network(folder: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a plain network.

    Args:
        folder: made if absent.
        network: a plain module, such as `Supernet.extract` or `narrow` gives.
        description: must name the model it was made from under ``"model"`` (name, num_classes, args); anything else
            that is good to know beside it.
    """
    sizes = {
        name: {key: getattr(module, key) for key in _SIZES if isinstance(getattr(module, key, None), int)}
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm)
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(folder / WEIGHTS, lambda temporary: temporary.write_bytes(save(tensors)))
    write_json(folder / DESCRIPTION, {"format": FORMAT} | description | {"layers": sizes})


def load_network(folder: Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Read what `save_network` wrote.

    Args:
        folder: where it is.
        model: the full-size plain model, if it cannot be built from its name (a user's own module).

    Returns:
        The network in evaluation mode, and its description.

    Raises:
        UserError: files missing, damaged, or of another model.
    """
    description = read_json(folder / DESCRIPTION, "the description of an extracted network")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{folder / DESCRIPTION}: not the description of an extracted network (format {FORMAT!r})")
    if model is None:
        built = description["model"]
        model = build_model(built["name"], built["num_classes"], args=built["args"])
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own type, which it does not export to type checkers
        raise UserError(f"{folder / WEIGHTS}: missing or damaged ({first_line(error)})") from error
    for name, sizes in description["layers"].items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise UserError(f"{folder}: is of another model than {type(model).__name__}, which has no layer {name!r}") from error
        for key, value in sizes.items():
            setattr(module, key, value)
    drop_unused_bodies(model, description["layers"])
    wanted = set(model.state_dict())
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))
        raise UserError(f"{folder}: is of another model than {type(model).__name__}: {len(odd)} tensors differ, first {odd[0]!r}")
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            module.register_buffer(leaf, tensor)
    return model.eval(), description
