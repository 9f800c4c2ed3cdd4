"""Networks as people write them: what is called proven slices, extracts and counts right, and nothing crashes."""

import copy

import numpy as np
import pytest
import torch
from handmade import CLASSES, IMAGE, MODELS
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

import bcnet
from bcnet.errors import UserError
from bcnet.models.factory import build_model
from bcnet.models.layout import fit_layout, to_device
from bcnet.space.cost import CostTable
from bcnet.space.widths import SIDES
from bcnet.supernet.supernet import Supernet
from bcnet.supernet.survey import count_flops


@pytest.mark.parametrize("name", MODELS)
def test_what_is_called_proven_is_right(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    try:
        space = bcnet.trace(model, IMAGE)
    except UserError as error:
        assert "\n" not in str(error)
        pytest.skip(str(error))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())
    fit_layout(model, IMAGE)
    costs, rng = CostTable(space), np.random.default_rng(1)
    images = torch.randn(4, *IMAGE)
    for widths in (space.narrowest, space.sample(rng), space.full):
        for side in SIDES:
            for wide in (False, True):
                supernet = to_device(Supernet(model, space, wide=wide), torch.device("cpu")).eval()
                network = supernet.extract(widths, side).eval()
                supernet.set_active_subnet(widths, side)
                with torch.no_grad():
                    logits = network(images)
                    assert logits.shape == (4, CLASSES)
                    assert torch.allclose(supernet(images), logits, atol=1e-4)
            assert count_flops(network, IMAGE) == costs.one(widths, "flops")
            assert sum(p.numel() for p in network.parameters()) == costs.one(widths, "params")
    with torch.no_grad():
        assert torch.allclose(Supernet(model, space).extract(space.full).eval()(images), model.eval()(images), atol=1e-5)


class Noisy(nn.Module):
    """As large as what it sees, by its shape."""

    def forward(self, x):
        return x + 0.1 * torch.randn(x.shape) * torch.rand(len(x), 1, 1, 1) if self.training else x


class Positions(nn.Module):
    """A window over the image that is a buffer, a position's parameter, and coordinates of every image."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(16)[:, None] + 0.5)
        self.place = nn.Parameter(torch.randn(1, 1, 16, 16))

    def forward(self, x):
        rows = torch.linspace(-1, 1, 16).view(1, 1, 16, 1).expand(len(x), 1, 16, 16)
        return x * self.window + self.place + rows


MASKS = {
    "Dropout2d": lambda: nn.Dropout2d(0.3),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.3),
    "StochasticDepth": lambda: StochasticDepth(0.3, "row"),
    "DropPath": lambda: DropPath(0.3),
    "noise": Noisy,
    "positions": Positions,
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_drawn_for_every_image_or_belongs_to_positions_changes_no_group(name):
    def network(layer):
        one, other = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()), nn.Conv2d(12, 20, 3, padding=1)
        return nn.Sequential(
            one, layer, other, nn.BatchNorm2d(20), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, CLASSES)
        )

    plain, masked = (bcnet.trace(network(layer), (3, 16, 16)) for layer in (nn.Identity(), MASKS[name]()))
    assert masked.groups == plain.groups
    assert not any(layer.across for layer in masked.layers)


@pytest.mark.parametrize("name", ["torchvision/efficientnet_b0", "timm/test_efficientnet"])
def test_stochastic_depth_changes_no_group(name):
    shape = (3, 32, 32)
    if name.startswith("timm"):
        models = [build_model(name, CLASSES, args={"drop_path_rate": rate}) for rate in (0.0, 0.2)]
    else:
        models = [build_model(name, CLASSES, args={"stochastic_depth_prob": rate}) for rate in (0.0, 0.2)]
    plain, masked = (bcnet.trace(model, shape, proof=False) for model in models)
    assert masked.groups == plain.groups
    assert len(plain.groups) > 5


def test_attention_and_recurrent_layers_count():
    """By their formulas: PyTorch runs them as single operations without one where no gradient is asked for."""

    class Heads(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.stem, self.layer, self.head = nn.Conv2d(3, 16, 4, stride=4), layer, nn.Linear(16, CLASSES)

        def forward(self, x):
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(
                (self.layer(tokens, tokens, tokens) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(tokens))[0].mean(1)
            )

    around = 16 * 3 * 16 * 16 + 16 * CLASSES
    for layer, own in (
        (nn.MultiheadAttention(16, 2, batch_first=True), 4 * 16 * 16 * 16 + 2 * 16 * 16 * 16),
        (nn.LSTM(16, 16, batch_first=True), 16 * 4 * 16 * (16 + 16)),
    ):
        model = Heads(layer)
        assert count_flops(model, (3, 16, 16)) == around + own
        space = bcnet.trace(model, (3, 16, 16), proof=False)
        assert CostTable(space).one(space.full, "flops") == around + own
