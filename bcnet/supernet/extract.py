"""A found network as files: safetensors and JSON, loaded without the supernet and without tracing.

The description stands inside the weights' file as well, so that the two can never be of different networks.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.files import read_json, write_atomic, write_json
from bcnet.models.factory import build_model
from bcnet.models.shortcut import drop_unused_bodies
from bcnet.supernet.export import FORMATS
from bcnet.supernet.layers import SIZE_NAMES

FORMAT = "bcnet-network-1"
WEIGHTS, DESCRIPTION = "network.safetensors", "network.json"
CARD = "README.md"
_KEY = "bcnet"


def save_network(folder: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a plain network.

    Args:
        folder: made if absent.
        network: a plain module, such as `Supernet.extract` or `narrow` gives.
        description: must name the model it was made from under ``"model"`` (name, num_classes, args); anything else
            that is good to know beside it.
    """
    sizes = {name: own for name, module in network.named_modules() if (own := _sizes(module))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    whole = {"format": FORMAT} | description | {"layers": sizes}
    for name in (*FORMATS.values(), CARD):  # of another network, if there is one
        (folder / name).unlink(missing_ok=True)
    write_atomic(folder / WEIGHTS, lambda temporary: temporary.write_bytes(save(tensors, {_KEY: json.dumps(whole)})))
    write_json(folder / DESCRIPTION, whole)


def _sizes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps of its sizes beside its parameters."""
    own = {name: module.__dict__[name] for name in SIZE_NAMES if name in module.__dict__}
    return {name: value for name, value in own.items() if isinstance(value, int) or (value and isinstance(value, tuple))}


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
    description, tensors = _read(folder)
    if model is None:
        built = description["model"]
        model = build_model(built["name"], built["num_classes"], args=built["args"])
    for name, sizes in description["layers"].items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise UserError(f"{folder}: is of another model than {type(model).__name__}, which has no layer {name!r}") from error
        for key, value in sizes.items():
            setattr(module, key, tuple(value) if isinstance(value, list) else value)
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


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            inside = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        description = None if inside is None else json.loads(inside)
    except Exception as error:  # safetensors raises its own type, which it does not export to type checkers
        raise UserError(f"{folder / WEIGHTS}: missing or damaged ({first_line(error)})") from error
    if description is None:  # as 0.1 wrote them
        description = read_json(folder / DESCRIPTION, "the description of an extracted network")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{folder}: holds no extracted network (format {FORMAT!r})")
    return description, tensors
