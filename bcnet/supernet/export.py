"""A found network for use without bcnet: a ``torch.export`` program and ONNX, each compared with the network it was made from."""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.files import write_atomic
from bcnet.models.outputs import logits_of

PROGRAM, ONNX = "network.pt2", "network.onnx"
FORMATS = {"torch": PROGRAM, "onnx": ONNX}
MOST_DIFFERENCE = 1e-4  # of logits, relative to the largest where that is above 1
_FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(images))


def onnx_is_installed() -> bool:
    """Whether what ONNX export needs is there (``pip install bcnet[export]``)."""
    return all(find_spec(name) is not None for name in _FOR_ONNX)


def export_network(folder: Path, network: nn.Module, input_shape: Sequence[int], form: str) -> Path:
    """Write a network so that it runs without bcnet, on any number of images; compare it with the network first.

    Args:
        folder: where to write.
        network: a plain module.
        input_shape: ``(C, H, W)`` of one image.
        form: ``torch`` (``network.pt2``, read by ``torch.export.load``) or ``onnx`` (``network.onnx``).

    Raises:
        UserError: the network cannot be exported so, or what was exported computes something else; nothing is written then.
    """
    if form == "onnx" and not onnx_is_installed():
        raise UserError(f"ONNX needs {', '.join(_FOR_ONNX)}: pip install 'bcnet[export]'")
    plain = _Logits(network).cpu().float().eval()
    images = torch.randn(3, *input_shape, generator=torch.Generator().manual_seed(0))
    path = folder / FORMATS[form]

    def write(temporary: Path) -> None:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                run = (_write_program if form == "torch" else _write_onnx)(plain, images, temporary)
        except OSError:
            raise
        except Exception as error:
            why = f"{first_line(_innermost(error))} (PyTorch {torch.__version__}; a newer one may know how)"
            raise UserError(f"{path}: {type(network).__name__} cannot be exported: {why}") from error
        with torch.no_grad():
            worst = max(_difference(plain, run, images[:number]) for number in (3, 1))
        if worst > MOST_DIFFERENCE:
            raise UserError(f"{path}: not written, for the exported network's logits differ from the network's by {worst:.2g}")

    write_atomic(path, write)
    return path


def _innermost(error: BaseException) -> BaseException:
    """What `torch.onnx` says first is how it went about it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _difference(plain: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    expected = plain(images)
    return float((run(images) - expected).abs().max() / expected.abs().max().clamp(min=1))


def _program(plain: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)


def _write_program(plain: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("wb") as file:
        torch.export.save(_program(plain, images), file)
    with path.open("rb") as file:
        return torch.export.load(file).module()  # type: ignore[no-any-return]


def _write_onnx(plain: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    program = torch.onnx.export(
        _program(plain, images),
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])
