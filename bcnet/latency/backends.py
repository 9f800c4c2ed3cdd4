"""What runs a network where it is deployed: PyTorch as it is, compiled by it, or ONNX Runtime."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bcnet.errors import UserError, first_line
from bcnet.supernet.export import export_network, onnx_is_installed

Backend = Literal["eager", "compiled", "onnxruntime"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def check_backend(backend: str, device: torch.device, amp: str) -> None:
    """Refuse what cannot be measured, before any work.

    Raises:
        UserError: ONNX Runtime is not installed, or was asked for on a GPU or for anything but fp32.
    """
    if backend != "onnxruntime":
        return
    if not onnx_is_installed():
        raise UserError("--backend onnxruntime needs onnx, onnxscript and onnxruntime: pip install 'bcnet[export]'")
    if device.type != "cpu" or amp != "off":
        raise UserError(f"--backend onnxruntime measures on the CPU in fp32, and here are --device {device} and --amp {amp}")


def deploy(network: nn.Module, images: Tensor, backend: Backend) -> Callable[[Tensor], Any]:
    """What makes a forward pass in the way of a backend.

    Args:
        network: plain, in evaluation mode, on its device.
        images: ``(N, C, H, W)`` on that device: what it will be run on; ONNX Runtime runs on a copy of these, taken now.
        backend: who runs it.

    Raises:
        UserError: the network cannot be compiled or exported.
    """
    if backend == "eager":
        return network
    if backend == "compiled":
        return _compiled(network, images)
    return _onnx_session(network, images)


def _compiled(network: nn.Module, images: Tensor) -> Callable[[Tensor], Any]:
    torch._dynamo.reset()  # no more than some networks are kept, and each of them is another one
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(images)
    except Exception as error:
        raise UserError(f"{type(network).__name__} cannot be compiled: {first_line(error)}") from error
    return compiled


def _onnx_session(network: nn.Module, images: Tensor) -> Callable[[Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = export_network(Path(folder), network, tuple(images.shape[1:]), "onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.contiguous().numpy()}
    return lambda _: session.run(None, inputs)
