"""A fixed small part of the survey of timm and torchvision: one model of every kind of thing that was once wrong or refused."""

import pytest

from bcnet.errors import UserError
from bcnet.supernet import survey as module
from bcnet.supernet.survey import SurveyRow, look_at, read_survey, survey

SHAPE = (3, 64, 64)
LEAST_SHARE = {
    "timm/convnextv2_atto": 0.9,  # layer norms, a norm of responses
    "timm/ghostnet_050": 0.9,  # channels joined with what is made of them
    "timm/mobilevit_xxs": 0.4,  # layers on folded batches, attention
    "timm/resnet18d": 0.9,
    "timm/eca_resnet33ts": 0.9,  # a convolution over channels
    "timm/dla46_c": 0.9,  # aggregations
    "timm/nf_regnet_b0": 0.9,  # standardised weights
    "torchvision/mnasnet0_5": 0.9,
}


@pytest.mark.parametrize("name", LEAST_SHARE)
def test_models_that_were_wrong_or_refused(name):
    row = look_at(name, SHAPE)
    assert not row.refusal
    assert row.share >= LEAST_SHARE[name]
    assert row.equal, (row.flops, row.counter)


def test_a_survey_goes_on_where_it_was_and_outlives_a_model_that_does_not(tmp_path, monkeypatch):
    table, seen = tmp_path / "survey.csv", []
    names = ["torchvision/squeezenet1_1", "timm/no_such_model"]
    rows = survey(names[:1], SHAPE, table, tick=lambda done, row: seen.append((done, row.model)))
    with table.open("a") as file:
        file.write("torchvision/alexnet,3x6")  # killed while it wrote
    again = survey(names, SHAPE, table, tick=lambda done, row: seen.append((done, row.model)))
    assert seen == [(1, names[0]), (2, names[1])]
    assert again[0] == rows[0]
    assert rows[0].groups > 20
    assert "no model" in again[1].refusal
    assert read_survey(table)[-1].model == names[1]
    with pytest.raises(UserError, match="made with --input 3x64x64"):
        survey(names, (3, 96, 96), table, tick=lambda done, row: None)
    assert read_survey(table) == again


def test_a_model_that_takes_too_long_is_left(tmp_path):
    (row,) = survey(["timm/densenet121"], SHAPE, tmp_path / "survey.csv", limit=0.01, tick=lambda done, row: None)
    assert row == SurveyRow("timm/densenet121", "3x64x64", "3x64x64", refusal="it took longer than 0.01 s")
    assert module.read_survey(tmp_path / "survey.csv") == [row]
