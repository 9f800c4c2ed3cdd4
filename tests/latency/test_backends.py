import pytest
import torch

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
def test_a_table_for_onnx_runtime_says_so_and_has_its_level(tmp_path):
    model, out = DigitsResNet(), tmp_path / "table.json"
    space = trace(model, (1, 8, 8), bins=2, proof=False)
    settings = LatencySettings("digits/resnet", 10, (1, 8, 8), repeats=3, times=1, checks=3, most=4, backend="onnxruntime")
    table = measure_latency(model, space, settings, device=torch.device("cpu"), out=out)
    assert table.meta.backend == "onnxruntime"
    cost = load_latency(out, space)
    for widths, measured in ((space.narrowest, table.narrowest_ms), (space.full, table.full_ms)):  # which of them is faster is chance here
        assert measured / 20 < cost.one(widths) < 20 * measured


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
