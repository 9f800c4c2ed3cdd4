import pytest

from bcnet.commands.app import read_named_widths, read_widths
from bcnet.errors import UserError
from bcnet.models.cifar import RESNET20_CHOICES
from bcnet.space.channel_strings import is_channel_string, read_channel_string
from bcnet.space.widths import Group, Space
from bcnet.truth.ground_truth import GroundTruth, load_ground_truth


def space_of(*choices, smallest=1):
    return Space(tuple(Group(f"layer{place}", tuple(own), smallest) for place, own in enumerate(choices)), ())


FEW = space_of((4, 8), (8, 16, 24), (4, 12))
MANY = space_of(range(1, 12), range(1, 12), range(1, 12))


def test_every_width_vector_is_read_from_its_channel_counts():
    for widths in FEW.enumerate():
        for separator in "-:":
            text = separator.join(map(str, FEW.channels(widths)))
            assert is_channel_string(text, FEW)
            assert read_channel_string(text, FEW) == widths


def test_width_strings_stay_width_strings():
    assert not is_channel_string("132", FEW)
    assert not is_channel_string("4-8-4", MANY)  # how widths of this space are written
    assert is_channel_string("4:8:4", MANY)
    resnet20 = space_of(*RESNET20_CHOICES[:-1])
    assert is_channel_string("-".join(["4"] * 20), resnet20)
    assert not is_channel_string("-".join(["4"] * 19), resnet20)


def test_commands_take_channel_counts_and_call_them_so(tmp_path):
    assert read_widths("4-16-12", FEW) == [(1, 2, 2)]
    (tmp_path / "lists.txt").write_text("4-16-12\n231\n# the narrowest\n4:8:4\n")
    assert read_named_widths(str(tmp_path / "lists.txt"), FEW) == {"4-16-12": (1, 2, 2), "231": (2, 3, 1), "4:8:4": (1, 1, 1)}
    assert len(read_widths("random:5", FEW)) == 5
    with pytest.raises(UserError, match="no such file"):
        read_widths(str(tmp_path / "other-lists"), FEW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4-8", r"'4-8' has 2 numbers: this space has 3 groups, e\.g\. 8-24-12"),
        ("4-9-4", r"'9' at place 2 is not one of the choices 8, 16, 24 of group layer1"),
        ("4-08-4", r"'08' at place 2"),
        ("4--4", r"'' at place 2"),
        ("4-8-4\n", r"'4\\n' at place 3"),
    ],
)
def test_what_is_no_list_of_the_space_is_refused_by_place(text, message):
    with pytest.raises(UserError, match=message):
        read_channel_string(text, FEW)


def test_choices_below_the_smallest_are_none():
    space = space_of((4, 8, 12), (4, 8, 12), smallest=2)
    assert read_channel_string("8-12", space) == (2, 3)
    with pytest.raises(UserError, match="'4' at place 2 is not one of the choices 8, 12"):
        read_channel_string("8-4", space)


def test_a_truth_of_channel_counts_names_widths_of_the_space(tmp_path):
    (tmp_path / "truth.csv").write_text("widths,accuracy\n4-8-4,50\n8-24-12,60\n4-16-12,55\n")
    truth = load_ground_truth(tmp_path / "truth.csv")
    assert truth.widths_in(FEW) == [(1, 1, 1), (2, 3, 2), (1, 2, 2)]
    with pytest.raises(UserError, match="the truth is of another space: channel list '4-8-4' has 3 numbers: this space has 2"):
        truth.widths_in(space_of((4, 8), (4, 8)))
    of_indices = GroundTruth(("111", "232"), truth.acc[:2], truth.known_flops[:2], truth.known_params[:2], {})
    assert of_indices.widths_in(FEW) == [(1, 1, 1), (2, 3, 2)]
