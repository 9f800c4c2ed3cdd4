import pytest
import torch
from test_timing import FakeClock

from bcnet.errors import UserError
from bcnet.latency.backends import check_backend, deploy
from bcnet.latency.session import LatencySettings, measure_latency
from bcnet.latency.table import load_latency
from bcnet.latency.timing import random_images
from bcnet.models.digits import DigitsResNet
from bcnet.supernet.export import onnx_is_installed
from bcnet.supernet.proof import trace

needs_onnx = pytest.mark.skipif(not onnx_is_installed(), reason="needs bcnet[export]")


@needs_onnx
def test_onnx_runtime_runs_the_same_network():
    network = DigitsResNet().eval()
    images = random_images((1, 8, 8), 5, torch.device("cpu"))
    (logits,) = deploy(network, images, "onnxruntime")(images)
    torch.testing.assert_close(torch.from_numpy(logits), network(images).detach(), rtol=1e-4, atol=1e-4)


@needs_onnx
def test_a_table_for_onnx_runtime_has_the_level_of_its_whole_passes(tmp_path):
    """By a clock that moves at every stamp: a pass in PyTorch has one for every layer, a pass in ONNX Runtime takes 1 ms as a whole."""
    model, out = DigitsResNet(), tmp_path / "table.json"
    space = trace(model, (1, 8, 8), bins=2, proof=False)
    settings = LatencySettings("digits/resnet", 10, (1, 8, 8), repeats=1, times=1, checks=3, most=4, backend="onnxruntime")
    table = measure_latency(model, space, settings, device=torch.device("cpu"), out=out, clock=FakeClock())
    assert table.meta.backend == "onnxruntime"
    assert table.full_ms == table.narrowest_ms == 1
    assert sum(sum(layer.ms.values()) / max(1, len(layer.ms)) for layer in table.layers.values()) > 5  # PyTorch's level
    cost = load_latency(out, space)
    assert cost.one(space.narrowest) == pytest.approx(1)
    assert cost.one(space.full) == pytest.approx(1)


def test_what_onnx_runtime_cannot_measure_is_refused_before_any_work(monkeypatch):
    if onnx_is_installed():
        with pytest.raises(UserError, match=r"measures on the CPU in fp32, and here are --device cuda:0 and --amp off"):
            check_backend("onnxruntime", torch.device("cuda:0"), "off")
        with pytest.raises(UserError, match="--amp bf16"):
            check_backend("onnxruntime", torch.device("cpu"), "bf16")
    monkeypatch.setattr("bcnet.latency.backends.onnx_is_installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'bcnet\[export\]'"):
        check_backend("onnxruntime", torch.device("cpu"), "off")
    check_backend("eager", torch.device("cuda:0"), "bf16")


def test_a_network_that_cannot_be_compiled_is_one_line(monkeypatch):
    def compile(*arguments, **options):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda network, **options: compile)
    with pytest.raises(UserError, match=r"DigitsResNet cannot be compiled: no compiler$"):
        deploy(DigitsResNet(), random_images((1, 8, 8), 1, torch.device("cpu")), "compiled")
