import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bcnet.commands.app import read_named_widths, read_widths
from bcnet.config import load_config
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.models.cifar import RESNET20_CHANNELS, RESNET20_CHOICES, ResNet20, read_resnet20_list, write_resnet20_list
from bcnet.models.factory import build_model, default_input
from bcnet.models.shortcut import drop_unused_bodies
from bcnet.space.cost import CostTable
from bcnet.supernet.proof import trace
from bcnet.supernet.supernet import Supernet, narrow

SHAPE = (3, 32, 32)
FULL = "-".join(map(str, (*RESNET20_CHANNELS, 64)))
STRIDED = (3, 6)  # blocks, counted from 0


def random_lists(number):
    rng = np.random.default_rng(0)
    return [[int(rng.choice(choices)) for choices in RESNET20_CHOICES] for _ in range(number)]


def as_text(numbers):
    return "-".join(map(str, numbers))


def blocks_of(network):
    return [*network.stage1, *network.stage2, *network.stage3]


def has_projection(channels, block):
    return block in STRIDED or channels[2 * block] != channels[2 * block + 2]


def by_hand(channels, num_classes):
    """FLOPs and parameters of the plain network, layer by layer."""
    layers = [(9, 3, channels[0], 32)]  # kernel positions, inputs, outputs, side of the image
    for block in range(9):
        size = 32 // 2 ** (block // 3)
        first, hidden, last = channels[2 * block : 2 * block + 3]
        layers += [(9, first, hidden, size), (9, hidden, last, size)]
        layers += [(1, first, last, size)] if has_projection(channels, block) else []
    flops = sum(kernel * inputs * outputs * size**2 for kernel, inputs, outputs, size in layers) + channels[18] * num_classes
    params = sum(kernel * inputs * outputs + 2 * outputs for kernel, inputs, outputs, _ in layers) + (channels[18] + 1) * num_classes
    return flops, params


def built(channels, num_classes):
    """FLOPs and parameters of the plain network, by running it."""
    with torch.device("meta"), torch.no_grad():
        network = ResNet20(num_classes, channels).eval()
        drop_unused_bodies(network)
        with FlopCounterMode(display=False) as counted:
            network(torch.empty(1, *SHAPE))
    return counted.get_total_flops() // 2, sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def config():
    return load_config("cifar/resnet20")


@pytest.fixture(scope="module")
def model(config):
    return build_model(config.model.name, 100)


@pytest.fixture(scope="module")
def space(config, model):
    """As the shipped config says, and proven."""
    return trace(model, default_input("cifar/resnet20"), choices=config.space.groups)


@pytest.fixture(scope="module")
def supernet(model, space):
    """With norms of which no two channels are alike."""
    supernet = Supernet(model, space, wide=True).eval()
    generator = torch.Generator().manual_seed(0)
    for norm in (one for one in supernet.modules() if isinstance(one, torch.nn.BatchNorm2d)):
        for name, tensor in [*norm._parameters.items(), *norm._buffers.items()]:
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.data.copy_(drawn + 0.5 if name in ("weight", "running_var") else 0.4 * drawn - 0.2)
    return supernet


def test_every_position_of_the_list_is_a_group_in_its_order(space):
    assert len(space.groups) == 19
    assert [group.choices for group in space.groups] == list(RESNET20_CHOICES[:-1])
    assert sorted({len(group.choices) for group in space.groups}) == [4, 8, 16]
    convolutions = [f"stage{s}.{b}.conv{c}.0" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)]
    assert [group.name for group in space.groups] == ["stem.0", *convolutions]
    assert dict(space.fixed) == {"classifier": "the outputs of the model"}
    assert space.size == 4**7 * 8**6 * 16**6
    assert space.encode(space.full) == as_text([4] * 7 + [8] * 6 + [16] * 6)


def test_the_projection_of_every_unstrided_block_may_be_left_out(space):
    """All but those of the two strided blocks read one group, give another, and are there only where the two differ."""
    found = {layer.name: layer.skipped_if_equal for layer in space.layers if layer.kind == "conv" and "shortcut" in layer.name}
    blocks = [f"stage{s}.{b}.shortcut.body.0" for s in (1, 2, 3) for b in (0, 1, 2)]
    assert list(found) == blocks
    for number, name in enumerate(blocks):
        ends = None if number in STRIDED else (2 * number, 2 * number + 2)
        assert (None if found[name] is None else tuple(end.group for end in found[name])) == ends


def test_costs_are_those_of_the_plain_networks(space):
    """Three counts of 1,000 random networks: tables, a sum over layers, and the network as it runs."""
    costs = CostTable(space)
    for number, numbers in enumerate([[*RESNET20_CHANNELS, 64], *random_lists(1000)]):
        widths = read_resnet20_list(as_text(numbers))
        found = costs.one(widths, "flops"), costs.one(widths, "params")
        assert found == by_hand(numbers[:19], 100), as_text(numbers)
        if number < 60:
            assert found == built(numbers[:19], 100), as_text(numbers)


def test_a_slice_equals_the_plain_network_of_its_list(supernet, space):
    """On both sides; the weights of the slice are put into a network that is built from the list alone."""
    lists = [[*RESNET20_CHANNELS, 64], [4] * 20, *random_lists(4)]
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for numbers in lists:
        widths = read_resnet20_list(as_text(numbers))
        assert space.channels(widths) == tuple(numbers[:19])
        results = []
        for side in ("left", "right"):
            extracted = supernet.extract(widths, side).eval()
            plain = ResNet20(channels=numbers[:19]).eval()
            drop_unused_bodies(plain)
            plain.load_state_dict(extracted.state_dict(), strict=True)
            supernet.set_active_subnet(widths, side)
            with torch.no_grad():
                sliced = supernet(images)
                torch.testing.assert_close(sliced, extracted(images), rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(sliced, plain(images), rtol=1e-5, atol=1e-5)
            results.append(sliced)
        assert not torch.allclose(*results, rtol=1e-2, atol=1e-2)  # so neither side is blind to its images or weights


def test_shortcuts_are_projections_where_the_widths_differ(supernet, model, space):
    seen = set()
    for numbers in [[*RESNET20_CHANNELS, 64], [4] * 20, *random_lists(20)]:
        widths = read_resnet20_list(as_text(numbers))
        expected = [has_projection(numbers, block) for block in range(9)]
        for network in (supernet.extract(widths), narrow(model, space, numbers[:19])):
            assert [not isinstance(block.shortcut, torch.nn.Identity) for block in blocks_of(network)] == expected
        seen |= set(enumerate(expected))
    assert len(seen) == 2 * 9 - len(STRIDED)  # every block was seen with and without, the strided ones with


def test_the_plain_model_has_the_identity_at_equal_widths():
    plain = blocks_of(ResNet20())
    assert [block.shortcut.is_identity for block in plain] == [block not in STRIDED for block in range(9)]
    other = blocks_of(ResNet20(channels=[8, *RESNET20_CHANNELS[1:]]))
    assert [block.shortcut.is_identity for block in other] == [block not in (0, *STRIDED) for block in range(9)]


def test_lists_are_read_and_written():
    assert read_resnet20_list(FULL) == (4,) * 7 + (8,) * 6 + (16,) * 6
    assert read_resnet20_list(f" {as_text([4] * 20)}\n") == (1,) * 19
    for numbers in random_lists(50):
        assert write_resnet20_list(read_resnet20_list(as_text(numbers)), numbers[19]) == as_text(numbers)
    assert write_resnet20_list((1,) * 19) == as_text([4] * 19 + [64])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (as_text([4] * 19), r"has 19 numbers: it takes 20"),
        (as_text([4] * 21), r"has 21 numbers: it takes 20"),
        ("", r"has 1 numbers"),
        (as_text([20, *[4] * 19]), r"'20' at place 1 is not one of its choices 4, 8, 12, 16$"),
        (as_text([*[4] * 7, 36, *[4] * 12]), r"'36' at place 8 is not one of its choices 4, 8, .*, 32$"),
        (as_text([*[4] * 19, 68]), r"'68' at place 20 is not one of its choices 4, 8, .*, 64$"),
        (as_text([*[4] * 10, 6, *[4] * 9]), r"'6' at place 11"),
        (as_text([*[4] * 10, "x", *[4] * 9]), r"'x' at place 11"),
        (as_text([*[4] * 10, "04", *[4] * 9]), r"'04' at place 11"),
    ],
)
def test_lists_that_are_no_networks_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        read_resnet20_list(text)


def test_widths_that_are_no_networks_are_refused():
    for widths, last, message in (
        ((1,) * 20, 64, "20 width indices: a ResNet20 takes 19"),
        ((1,) * 6 + (5,) + (1,) * 12, 64, r"width index 5 at place 7 is not one of 1\.\.4 \(of 4, 8, 12, 16 channels\)"),
        ((0,) + (1,) * 18, 64, "width index 0 at place 1"),
        ((1,) * 19, 6, "the number 6 for place 20"),
    ):
        with pytest.raises(UserError, match=message):
            write_resnet20_list(widths, last)
    with pytest.raises(UserError, match=r"could not be built with .*: 20 channel counts: a ResNet20 has 19"):
        build_model("cifar/resnet20", 100, args={"channels": [4] * 20})


def test_the_shipped_config_wants_the_folder_of_the_images(config):
    with pytest.raises(UserError, match=r"data\.source=cifar100 wants data\.root"):
        _ = Experiment(config).data


def test_commands_take_lists_of_the_challenge(space, tmp_path):
    (tmp_path / "lists.txt").write_text(f"{FULL}\n# the narrowest\n{'-'.join(['4'] * 20)}\n")
    assert read_widths(str(tmp_path / "lists.txt"), space) == [space.full, space.narrowest]
    assert read_widths(FULL, space) == read_widths("full", space) == [space.full]
    other = FULL.removesuffix("64") + "4"  # the 20th number is not used
    (tmp_path / "lists.txt").write_text(f"{FULL}\n{other}\n{space.encode(space.full)}\n")
    assert read_named_widths(str(tmp_path / "lists.txt"), space) == dict.fromkeys((FULL, other, space.encode(space.full)), space.full)
    with pytest.raises(UserError, match="'5' at place 1 is not one of its choices"):
        read_widths(f"5{FULL[2:]}", space)
    with pytest.raises(UserError, match="18 indices: this space wants 19 indices"):
        read_widths("-".join(["4"] * 18), space)
