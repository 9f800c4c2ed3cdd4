from itertools import pairwise

import pytest
from grids import TINY, all_choices, tiny
from pydantic import ValidationError

from bcnet.config import load_as
from bcnet.dense.config import DenseConfig, GridConfig
from bcnet.dense.grid import Choice, Grid
from bcnet.errors import UserError
from bcnet.models.net_config import read_net_config


def shipped(name, *overrides):
    return Grid(load_as(DenseConfig, f"dense/{name}", overrides).grid)


@pytest.mark.parametrize(("name", "paths"), [("mbv2", 15_456), ("resnet", 540_225)])
def test_the_published_grids_have_as_many_paths_as_published(name, paths):
    assert shipped(name).num_paths() == paths


@pytest.mark.parametrize("grid", [tiny(), tiny(adjoin=2), shipped("digits"), shipped("cifar"), shipped("mbv2")])
def test_counted_paths_are_those_that_can_be_listed_and_follow_the_rule(grid):
    listed, config = list(grid.paths()), grid.config
    assert len(set(listed)) == len(listed) == grid.num_paths()
    for path in listed[:500]:
        for source, target in pairwise(path):
            assert 0 < target - source <= config.adjoin
            assert abs(config.stages[source] - config.stages[target]) <= 1
            assert config.maps[source] / config.maps[target] in (1, 2)


def test_networks_are_counted_with_their_operations():
    grid = tiny()
    choices = list(all_choices(grid))
    assert len(set(choices)) == len(choices) == grid.num_networks()


def test_blocks_that_no_path_reaches_are_left_out():
    grid = tiny(widths=[4, 6, 8, 10, 11], maps=[8, 8, 4, 4, 8], stages=[0, 1, 1, 2, 2, 3], depth=0, adjoin=4)
    assert grid.used == [0, 1, 4]  # from maps of 4, nothing leads back to one of 8
    assert list(grid.paths()) == [(0, 1, 4)]


def test_maps_follow_the_images():
    grid = shipped("mbv2")
    assert grid.map_sizes((3, 224, 224))[16] == (7, 7)
    assert grid.map_sizes((3, 193, 224))[2] == (25, 28)
    assert [size[0] for size in shipped("cifar").map_sizes((3, 32, 32)).values()] == [16, 8, 8, 8, 4, 4, 4, 4]
    with pytest.raises(UserError, match=r"halve a feature map of 1x1 for images of 8x8"):
        grid.map_sizes((1, 8, 8))


def test_a_network_is_written_and_found_again():
    grid = tiny()
    for choice in all_choices(grid):
        net = grid.net_config(choice)
        found = grid.find(read_net_config(str(net)))
        assert grid.net_config(found) == net
        assert found.path == choice.path


def test_a_network_of_another_grid_is_refused():
    grid = tiny()
    net = grid.net_config(Choice((0, 1, 3), (0, 0), ((0,), ())))
    for other in (tiny(last=13), tiny(widths=[4, 7, 8, 10]), tiny(head=["mbconv_k5_t3"]), tiny(first=None)):
        with pytest.raises(UserError, match="net_config"):
            other.find(net)


def test_a_grid_without_a_path_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"no path.*behind block 2 \(width 6, map 8, stage 1\)") as caught:
        tiny(stages=[0, 1, 3, 4])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maps": [8, 8, 4]}, "maps has 3 entries for 4 widths"),
        ({"stages": [0, 1]}, "stages has 2 entries"),
        ({"depth": [0, 1, 1]}, "depth has 3 entries"),
        ({"widths": [4, 0, 8, 10]}, "widths has 0"),
        ({"head": ["mbconv_k4_t3"]}, "unknown operation 'mbconv_k4_t3'"),
        ({"head": ["mbconv_k3_t3"] * 2}, "head names an operation twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        GridConfig(**(TINY | changes))
