"""Checkpoints: written whole or not at all, read with ``weights_only``."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from bcnet.errors import UserError
from bcnet.files import write_atomic

FORMAT = "bcnet-checkpoint-1"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values.

    Raises:
        UserError: the file cannot be written; an earlier checkpoint stays.
    """
    buffer = io.BytesIO()  # torch's own file writer hides a full disk behind errors of its own
    torch.save({"format": FORMAT} | state, buffer)
    write_atomic(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        UserError: missing, truncated, or not a checkpoint of bcnet.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: truncated or not a checkpoint of bcnet ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of bcnet; expected format {FORMAT!r}")
    return state
