import shutil

import numpy as np
import pytest
import torch
from torch import nn

from bcnet.errors import UserError
from bcnet.models.digits import DigitsResNet
from bcnet.space.trace import trace
from bcnet.supernet.export import FORMATS, export_network
from bcnet.supernet.supernet import Supernet


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    space = trace(DigitsResNet(), (1, 8, 8))
    return Supernet(DigitsResNet(), space).extract((1, 2, 3, 4, 2)).eval()


def test_what_is_exported_runs_on_its_own_for_any_number_of_images(network, tmp_path):
    import onnxruntime

    images = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        expected = network(images)
    program = torch.export.load(str(export_network(tmp_path, network, (1, 8, 8), "torch"))).module()
    torch.testing.assert_close(program(images), expected)
    session = onnxruntime.InferenceSession(str(export_network(tmp_path, network, (1, 8, 8), "onnx")))
    for number in (1, 7):
        (logits,) = session.run(None, {"images": images[:number].numpy()})
        np.testing.assert_allclose(logits, expected[:number].numpy(), atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FORMATS.values())  # one file each


class Undecided(nn.Module):
    """Which layer runs depends on the images, which no program can hold."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x) if x.mean() > 0 else self.b(x)


@pytest.mark.parametrize("form", FORMATS)
def test_a_network_that_cannot_be_exported_is_one_line_and_no_file(tmp_path, form):
    with pytest.raises(UserError, match="Undecided cannot be exported") as caught:
        export_network(tmp_path, Undecided(), (4,), form)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Wandering(nn.Module):
    """Computes something else every time."""

    def forward(self, x):
        return x.flatten(1) + torch.rand(())


def test_an_export_that_computes_something_else_is_not_written(tmp_path):
    with pytest.raises(UserError, match="not written, for the exported network's logits differ"):
        export_network(tmp_path, Wandering(), (4,), "torch")
    assert not list(tmp_path.iterdir())


def test_weights_under_an_older_description_are_still_described_right(network, tmp_path):
    """Killed between weights and description: the weights carry their own."""
    from bcnet.supernet.extract import load_network, save_network

    about = {"model": {"name": "digits/resnet", "num_classes": 10, "args": {}}}
    space = trace(DigitsResNet(), (1, 8, 8))
    other = Supernet(DigitsResNet(), space).extract((2, 2, 2, 2, 2)).eval()
    save_network(tmp_path / "old", other, about | {"widths": "22222"})
    save_network(tmp_path / "new", network, about | {"widths": "12342"})
    shutil.copy(tmp_path / "new" / "network.safetensors", tmp_path / "old" / "network.safetensors")
    loaded, description = load_network(tmp_path / "old")
    assert description["widths"] == "12342"
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(loaded(images), network(images))
