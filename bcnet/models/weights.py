"""Trained weights of a user's own: read from the files that people have, and fitted to a model by their names."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.formatting import plural
from bcnet.progress import notice
from bcnet.tensors import load_tensors

State = dict[str, Tensor]

# Under these keys trainings keep the weights among other things; averaged ones first, as timm's loader has it.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_STATISTICS = (".running_mean", ".running_var")
_COUNTERS = ("num_batches_tracked", "n_averaged")
_SHOWN = 3


def load_weights(model: nn.Module, path: Path, name: str = "") -> None:
    """Put the weights of a file into a model.

    Names may carry the prefixes that wrappers leave (``module.``, ``_orig_mod.``, ``model.``), and others than the network's may be beside
    them, as of a loss or a metric in a Lightning module; counters of batches may be missing. A model with a method
    ``from_published(state)`` is asked whether it knows the names.

    Args:
        model: which gets them; it is left as it was if they do not fit.
        path: ``.safetensors``, or what ``torch.save`` wrote, in the old or the new format.
        name: of the model, for the message.

    Raises:
        UserError: no such file, not a file of tensors, or of another model: then it says which names are missing, unexpected or of
            another size, and what was tried; or values that are not finite.
    """
    wanted = {key: tensor.shape for key, tensor in model.state_dict().items()}
    misfits = []
    for how, state, left in _readings(read_weights(path), model):
        misfit = _Misfit(how, wanted, state)
        if misfit.count == 0:
            counted = {*dict(model.named_parameters()), *(key for key in state if key.endswith(_STATISTICS))}
            broken = [key for key, tensor in state.items() if key in counted and not bool(tensor.isfinite().all())]
            if broken:
                raise UserError(f"{path}: {_few(broken)}: not all values are finite (a training that diverged?); nothing was loaded")
            if left:
                notice(f"{path}: {plural(len(left), 'tensor')} beside the network's not used: {_few(left)}")
            model.load_state_dict(state, strict=False)
            return
        misfit.count += len(left)
        misfits.append(misfit)
    best = min(misfits, key=lambda one: one.count)
    tried = ", ".join(misfit.how for misfit in misfits)
    raise UserError(f"{path} does not fit {name or type(model).__name__}: {best.text}; tried: {tried}")


def read_weights(path: Path) -> State:
    """The tensors of a file by name, out of whatever a training wrapped around them; no code of the file is run.

    Raises:
        UserError: no such file, or not a file of tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected trained weights (.pth, .pt, .th or .safetensors)")
    if path.suffix != ".safetensors":
        return _unwrapped(load_tensors(path), path)
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own type, which it does not export to type checkers
        raise UserError(f"{path}: damaged or not a file of tensors ({first_line(error)})") from error


def _unwrapped(tree: Any, path: Path) -> State:
    while isinstance(tree, Mapping):
        inner = next((tree[key] for key in _CONTAINERS if _holds_tensors(tree.get(key))), None)
        if inner is None:
            break
        tree = inner
    tensors = {str(key): value for key, value in tree.items() if isinstance(value, Tensor)} if isinstance(tree, Mapping) else {}
    if not tensors:
        raise UserError(f"{path}: no tensors by name in it; expected what torch.save(model.state_dict(), file) writes")
    return tensors


def _holds_tensors(tree: Any) -> bool:
    return isinstance(tree, Mapping) and any(isinstance(value, Tensor) or _holds_tensors(value) for value in tree.values())


def _readings(state: State, model: nn.Module) -> Iterator[tuple[str, State, list[str]]]:
    """The state under the names that may be meant, each with what was done, and which of its tensors were left out."""
    yield from _under_prefixes({key: tensor for key, tensor in state.items() if key not in _COUNTERS}, model, "the names as they are", [])


def _under_prefixes(state: State, model: nn.Module, how: str, left: list[str]) -> Iterator[tuple[str, State, list[str]]]:
    yield how, state, left
    known = getattr(model, "from_published", None)
    converted = known(state) if known is not None else None
    if converted is not None:
        yield f"{how} as published ones", converted, left
    for prefix in _PREFIXES:
        inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        beside = [key for key in state if not key.startswith(prefix)]
        if inner:
            yield from _under_prefixes(inner, model, f"{'only' if beside else 'without'} {prefix!r}", left + beside)


class _Misfit:
    """How names and sizes of a state differ from those that a model wants."""

    def __init__(self, how: str, wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> None:
        self.how = how
        missing = [key for key in wanted if key not in state and key.rpartition(".")[2] not in _COUNTERS]
        unexpected = [key for key in state if key not in wanted]
        other = [
            f"{key} ({_sizes(state[key].shape)} in the file, {_sizes(wanted[key])} in the model)"
            for key in wanted
            if key in state and state[key].shape != wanted[key]
        ]
        self.count = len(missing) + len(unexpected) + len(other)
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another size", other))
        self.text = "; ".join(f"{plural(len(keys), 'tensor')} {kind}: {_few(keys)}" for kind, keys in kinds if keys)


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
