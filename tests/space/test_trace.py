import pytest
import torch
from torch import nn

from bcnet.errors import UserError
from bcnet.models.digits import DigitsResNet
from bcnet.models.factory import build_model
from bcnet.space.trace import Choices, trace
from bcnet.supernet.proof import prove


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x):
        x = self.depthwise(self.stem(x).relu())
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 1)
        self.norm = nn.BatchNorm2d(20)
        self.last = nn.Conv2d(20, 7, 1)

    def forward(self, x):
        return self.last(self.norm(torch.cat([self.a(x), self.b(x)], 1))).mean((2, 3))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.last(self.b(left) + right).mean((2, 3))


def test_residual_streams_are_one_group_in_order_of_use():
    space = trace(DigitsResNet(), (1, 8, 8))
    assert [group.channels for group in space.groups] == [8, 24, 16, 16, 16]
    assert space.groups[0].layers == ("stem.0", "blocks.0.conv2.0")
    assert dict(space.fixed) == {"classifier": "the outputs of the model"}


def test_depthwise_squeeze_excite_and_flatten():
    model = SqueezeExcite()
    space = trace(model, (3, 8, 8))
    assert [(g.name, g.channels) for g in space.groups] == [("stem", 16), ("squeeze", 8)]
    assert set(space.groups[0].layers) == {"stem", "depthwise", "excite"}
    head = next(layer for layer in space.layers if layer.name == "head")
    assert [(s.group, s.repeat) for s in head.inputs] == [(0, 16)]
    prove(model, space, (3, 8, 8))


def test_concatenation_keeps_the_groups_apart():
    model = Concat()
    space = trace(model, (3, 8, 8))
    norm = next(layer for layer in space.layers if layer.name == "norm")
    assert [(s.group, s.channels) for s in norm.outputs] == [(0, 8), (1, 12)]
    prove(model, space, (3, 8, 8))


def test_halves_of_a_split_shrink_together():
    model = Halves()
    space = trace(model, (3, 8, 8))
    split = next(layer for layer in space.layers if layer.name == "a")
    assert [(segment.group, segment.channels) for segment in split.outputs] == [(0, 8), (0, 8)]
    prove(model, space, (3, 8, 8))


def test_grouped_convolutions_set_the_unit():
    space = trace(build_model("timm/resnext26ts", 10), (3, 64, 64))
    grouped = [group for group in space.groups if group.unit > 1]
    assert grouped
    assert all(count % group.unit == 0 for group in grouped for count in group.choices)


def test_the_divisor_holds_where_it_divides():
    space = trace(build_model("timm/resnet18", 10), (3, 64, 64), Choices(bins=10, divisor=8))
    assert all(count % 8 == 0 for group in space.groups for count in group.choices)


SMALL_DENSENET = {"block_config": (2, 2, 2, 2)}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("timm/resnet18", {}),
        ("timm/resnext26ts", {}),
        ("timm/mobilenetv2_050", {}),
        ("timm/mobilenetv3_small_050", {}),
        ("timm/regnety_002", {}),
        ("timm/convnext_atto", {}),
        ("timm/densenet121", SMALL_DENSENET),
        ("torchvision/squeezenet1_1", {}),
    ],
)
def test_sliced_equals_extracted(name, args):
    model = build_model(name, 10, args=args)
    space = trace(model, (3, 64, 64))
    assert len(space.groups) >= 7
    assert prove(model, space, (3, 64, 64), num_random=1) <= 1e-4


def test_a_model_that_cannot_be_sliced_is_refused_with_the_reason():
    class FixedShape(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
            self.scale = torch.ones(1, 8, 1, 1)

        def forward(self, x):
            return self.last(self.stem(x) * self.scale).mean((2, 3))

    with pytest.raises(UserError, match="its channels meet a tensor of fixed size"):
        trace(FixedShape(), (3, 8, 8))


def test_an_input_the_model_cannot_take_is_refused():
    with pytest.raises(UserError, match="cannot be run on one 3x8x8 image"):
        trace(DigitsResNet(), (3, 8, 8))


class Tokens(nn.Module):
    """Convolutions, then a norm over the channels of tokens that have an embedding each: the tokens are a dimension of a parameter too."""

    def __init__(self):
        super().__init__()
        self.stem, self.embedding = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(1, 16, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.stem(x).flatten(2).transpose(1, 2) + self.embedding).mean(1))


def test_a_norm_over_the_channels_of_tokens_is_not_one_over_the_tokens():
    model = Tokens()
    space = trace(model, (3, 4, 4))
    assert [group.layers[0] for group in space.groups] == ["stem"]
    assert next(layer for layer in space.layers if layer.name == "norm").across == (2, 2)
    assert prove(model, space, (3, 4, 4)) <= 1e-4


class Branches(nn.Module):
    """Runs one layer or the other, by what it sees."""

    def __init__(self, threshold):
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.threshold = threshold

    def forward(self, x):
        x = self.stem(x)
        return self.head((self.a(x) if x.mean() > self.threshold else self.b(x)).mean((2, 3)))


def test_branches_that_images_decide_are_seen_or_the_model_is_refused():
    torch.manual_seed(0)  # with these weights the images of a trace run both
    space = trace(Branches(0.0), (3, 8, 8))
    assert [sorted(group.layers) for group in space.groups] == [["a", "b"]]  # whichever ran first
    with pytest.raises(UserError, match="decides by its images which layers to run; 1 never ran here, first a"):
        trace(Branches(1e9), (3, 8, 8))


def test_models_that_cannot_be_looked_into_are_refused_in_one_line():
    plain = Concat()
    with pytest.raises(UserError, match="compiled or scripted"):
        trace(torch.jit.trace(plain, torch.zeros(1, 3, 8, 8)), (3, 8, 8))
    with pytest.raises(UserError, match="compiled or scripted"):
        trace(torch.compile(plain), (3, 8, 8))
    with pytest.raises(UserError, match="lazy layers"):
        trace(nn.Sequential(nn.LazyConv2d(8, 1), nn.ReLU()), (3, 8, 8))


def test_a_trace_leaves_the_model_and_the_random_state_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 5, 1))
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    trace(model, (3, 8, 8))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
