"""Networks as people write them: what is called proven slices, extracts and counts right, and nothing crashes."""

import copy

import numpy as np
import pytest
import torch
from handmade import CLASSES, IMAGE, MODELS

import bcnet
from bcnet.errors import UserError
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
