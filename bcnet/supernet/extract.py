"""A found network as files: safetensors and JSON, loaded without the supernet and without tracing.

The description stands inside the weights' file as well, so that the two can never be of different networks.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bcnet.config import MOST
from bcnet.errors import UserError, first_line, shown
from bcnet.files import is_file, is_unused, read_json, write_atomic, write_json
from bcnet.models.factory import build_model
from bcnet.models.shortcut import drop_unused_bodies
from bcnet.plugins import named_code, refuse_untrusted
from bcnet.supernet.export import FORMATS
from bcnet.supernet.layers import SIZE_NAMES
from bcnet.tensors import refuse_not_finite
from bcnet.trees import parse_json

FORMAT = "bcnet-network-2"
FORMER_FORMAT = "bcnet-network-1"  # without a checksum
WEIGHTS, DESCRIPTION = "network.safetensors", "network.json"
CARD = "README.md"
_KEY, _DIGEST = "bcnet", "bcnet_sha256"


def refuse_other_folder(folder: Path) -> None:
    """See that a folder is free for a network, or holds one, which may be replaced.

    Raises:
        UserError: it holds something else.
    """
    if not is_unused(folder) and not any((folder / name).is_file() for name in (WEIGHTS, DESCRIPTION)):
        raise UserError(f"{folder} exists, is not empty and holds no network; choose another folder")


def save_network(folder: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a plain network.

    Args:
        folder: made if absent.
        network: a plain module, such as `Supernet.extract` or `narrow` gives.
        description: must name the model it was made from under ``"model"`` (name, num_classes, args); anything else
            that is good to know beside it.
    """
    refuse_not_finite(network, f"the network for {folder}")
    sizes = {name: own for name, module in network.named_modules() if (own := _sizes(module))}
    alone = torch.contiguous_format  # of each its own memory, also where layers share a parameter
    tensors = {name: tensor.detach().cpu().clone(memory_format=alone) for name, tensor in network.state_dict().items()}
    whole = {"format": FORMAT} | description | {"layers": sizes}
    for name in (*FORMATS.values(), CARD):  # of another network, if there is one
        (folder / name).unlink(missing_ok=True)
    text = json.dumps(whole)
    content = save(tensors, {_KEY: text, _DIGEST: _digest(text, tensors)})
    write_atomic(folder / WEIGHTS, lambda temporary: temporary.write_bytes(content))
    write_json(folder / DESCRIPTION, whole)


def trust_argument(description: Mapping[str, Any]) -> str:
    """What `load_network` must be told for a network of this description, as code."""
    return ", trust=True" if named_code(description) else ""


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A SHA-256 of a description and its tensors, names, types and shapes included."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _sizes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps of its sizes beside its parameters."""
    own = {name: module.__dict__[name] for name in SIZE_NAMES if name in module.__dict__}
    return {name: value for name, value in own.items() if isinstance(value, int) or (value and isinstance(value, tuple))}


def load_network(folder: Path, model: nn.Module | None = None, *, trust: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Read what `save_network` wrote.

    Args:
        folder: where it is.
        model: the full-size plain model, if it cannot be built from its name (a user's own module).
        trust: whether the code may be run that the description names, if the model is none of bcnet, timm or torchvision.

    Returns:
        The network in evaluation mode, and its description.

    Raises:
        UserError: files missing, damaged, of another model, or of one that is not trusted.
    """
    description, tensors = _read(folder)
    if model is None:
        refuse_untrusted(named_code(description), folder, trust)
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
        own = getattr(module, leaf)
        is_kernel = leaf == "weight" and isinstance(module, nn.modules.conv._ConvNd)
        if own.ndim != tensor.ndim or (is_kernel and own.shape[2:] != tensor.shape[2:]):  # channels differ from the model's, kernels do not
            there, here = ("x".join(map(str, one.shape)) or "a number" for one in (tensor, own))
            raise UserError(f"{folder}: is of another model than {type(model).__name__}: {name!r} is {there} there and {here} in the model")
        if leaf in module._parameters:
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            module.register_buffer(leaf, tensor)
    return model.eval(), description


class _Model(BaseModel):
    """What a network was made from."""

    name: str
    num_classes: int = Field(gt=0, le=MOST)
    args: dict[str, Any]


class _Description(BaseModel):
    """What loading wants of a description; there is more in it."""

    format: str
    model: _Model
    layers: dict[str, dict[Literal[SIZE_NAMES], int | list[int]]]  # type: ignore[valid-type]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path, what = folder / WEIGHTS, "the weights of an extracted network"
    if not is_file(path):
        raise UserError(f"{path}: missing or not a regular file; expected {what}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}  # which lies in the file, and Windows would keep it as it is
        inside = metadata.get(_KEY)
        description = None if inside is None else parse_json(inside)
    except Exception as error:  # safetensors raises its own type, which it does not export to type checkers
        raise UserError(f"{path}: missing or damaged ({first_line(error)})") from error
    if description is None:  # as 0.1 wrote them
        description = read_json(folder / DESCRIPTION, "the description of an extracted network")
    try:
        form = _Description.model_validate(description, strict=True).format
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{folder}: holds no extracted network: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if form not in (FORMAT, FORMER_FORMAT):
        raise UserError(f"{folder}: holds no extracted network of this version (format {shown(form)}, expected {FORMAT!r})")
    if (form == FORMAT or _DIGEST in metadata) and metadata.get(_DIGEST) != _digest(str(inside), tensors):
        raise UserError(f"{path}: damaged: its contents are not those that its checksum was made of")
    return description, tensors
