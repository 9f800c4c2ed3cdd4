"""Tensors out of files that somebody else wrote, and whether they are numbers."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcnet.errors import UserError, first_line

_IS_FOLDER = 0x10  # PyTorch reads nothing of such an entry, and says nothing
_STATISTICS = ("running_mean", "running_var")


def load_tensors(path: Path, device: torch.device | str = "cpu", *, is_checked: bool = False) -> Any:
    """What ``torch.save`` wrote, if it holds tensors and plain values only; no code of the file is run.

    Args:
        path: of the file.
        device: where the tensors are wanted.
        is_checked: the file has a checksum of its own, which was compared; then the archive's are not.

    Raises:
        UserError: missing, damaged (its archive has checksums), or with Python objects in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if not is_checked and zipfile.is_zipfile(path):
            _check_archive(path)
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: damaged, or holds Python objects, which could run code and are not loaded; save model.state_dict() alone"
        ) from error
    except Exception as error:  # of a file that is damaged on purpose, any
        raise UserError(f"{path}: damaged or not a file of tensors ({first_line(error).split('. ')[0]})") from error


def _check_archive(path: Path) -> None:
    """Compare the checksums of an archive; ``torch.load`` does not."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & _IS_FOLDER for entry in archive.infolist()):
            raise ValueError("its entries are compressed or folders, which torch.save never writes")
        wrong = archive.testzip()
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong} is wrong")


def refuse_not_finite(network: nn.Module, where: str, why: str = "") -> None:
    """Refuse a network whose parameters or batch norm statistics are not all finite.

    Args:
        network: any.
        where: whose they are, for the message.
        why: what may be the cause.

    Raises:
        UserError: naming the first.
    """
    named = [*network.named_parameters(), *((n, b) for n, b in network.named_buffers() if n.rpartition(".")[2] in _STATISTICS)]
    with torch.no_grad():
        finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist() if named else []
    wrong = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} is not finite ({len(wrong)} of {len(named)} tensors){f': {why}' if why else ''}")
