import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bcnet.errors import UserError
from bcnet.models.digits import DigitsResNet
from bcnet.space.trace import trace
from bcnet.supernet.extract import load_network, save_network
from bcnet.supernet.supernet import Supernet

DESCRIPTION = {"model": {"name": "digits/resnet", "num_classes": 10, "args": {}}}


@pytest.fixture
def saved(tmp_path):
    space = trace(DigitsResNet(), (1, 8, 8))
    network = Supernet(DigitsResNet(), space).extract((1, 2, 3, 4, 2)).eval()
    save_network(tmp_path / "network", network, DESCRIPTION)
    return tmp_path / "network", network


def test_a_saved_network_loads_without_the_supernet(saved):
    folder, network = saved
    images = torch.randn(3, 1, 8, 8)
    for model in (None, DigitsResNet()):
        loaded, description = load_network(folder, model)
        torch.testing.assert_close(loaded(images), network(images))
        assert loaded.blocks[0].conv1[0].out_channels == 12
        assert description["model"] == DESCRIPTION["model"]


class Norms(nn.Module):
    """Layers that keep their sizes under many names."""

    def __init__(self):
        super().__init__()
        self.a, self.group = nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8)
        self.b, self.layer, self.slope = nn.Conv2d(8, 12, 3), nn.LayerNorm(12), nn.PReLU(12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.slope(self.b(self.group(self.a(x))))
        return self.head(self.layer(x.permute(0, 2, 3, 1)).mean((1, 2)))


def test_every_kind_of_layer_loads_with_its_size(tmp_path):
    space = trace(Norms(), (1, 8, 8))
    network = Supernet(Norms(), space).extract(space.narrowest).eval()
    save_network(tmp_path, network, DESCRIPTION)
    loaded, _ = load_network(tmp_path, Norms())
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(loaded(images), network(images))
    assert [str(module) for module in loaded.children()] == [str(module) for module in network.children()]
    assert loaded.layer.normalized_shape == (3,)


def test_a_model_of_other_kernels_is_refused(tmp_path):
    space = trace(Norms(), (1, 8, 8))
    save_network(tmp_path, Supernet(Norms(), space).extract(space.narrowest), DESCRIPTION)
    other = Norms()
    other.b = nn.Conv2d(8, 12, 5, padding=1)
    with pytest.raises(UserError, match=r"of another model than Norms: 'b\.weight' is 3x2x3x3 there and 12x8x5x5 in the model"):
        load_network(tmp_path, other)


def test_damaged_or_foreign_files_are_refused(saved):
    folder, _ = saved
    with pytest.raises(UserError, match="another model"):
        load_network(folder, torch.nn.Linear(3, 3))
    weights = folder / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="missing or damaged"):
        load_network(folder)
    save_file({"a": torch.zeros(2)}, weights)
    (folder / "network.json").write_text("{}")
    with pytest.raises(UserError, match="holds no extracted network"):
        load_network(folder)
