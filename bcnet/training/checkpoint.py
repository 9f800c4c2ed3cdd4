"""Checkpoints: written whole or not at all, sealed, read with ``weights_only``."""

import io
from pathlib import Path
from typing import Any

import torch

from bcnet.errors import UserError, shown
from bcnet.files import write_atomic
from bcnet.seals import LENGTH, check_seal, seal
from bcnet.tensors import load_tensors

FORMAT = "bcnet-checkpoint-2"
FORMER_FORMAT = "bcnet-checkpoint-1"  # without a seal; its archive's own checksums must do


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values.

    Raises:
        UserError: the file cannot be written; an earlier checkpoint stays.
    """
    buffer = io.BytesIO()  # torch's own file writer hides a full disk behind errors of its own
    torch.save({"format": FORMAT} | state, buffer)
    buffer.seek(-2, io.SEEK_END)  # the length of the archive's comment: the seal is one, and torch.load passes over it
    buffer.write(LENGTH.to_bytes(2, "little"))
    seal(buffer)
    write_atomic(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        UserError: missing, damaged, or not a checkpoint of bcnet.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    is_sealed = check_seal(path)
    try:
        state = load_tensors(path, device, is_checked=is_sealed)
    except UserError as error:
        raise UserError(f"{error}; expected a checkpoint of bcnet") from error
    form = state.get("format") if isinstance(state, dict) else None
    if form == FORMAT and not is_sealed:
        raise UserError(f"{path}: damaged: its checksum is missing")
    if form not in (FORMAT, FORMER_FORMAT):
        raise UserError(f"{path}: not a checkpoint of this version of bcnet (format {shown(form)}, expected {FORMAT!r})")
    return dict(state)
