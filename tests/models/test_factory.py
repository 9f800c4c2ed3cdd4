import pytest

from bcnet.config import load_config
from bcnet.experiment import with_divisor
from bcnet.models.factory import default_input


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision/inception_v3", (3, 299, 299)),
        ("torchvision/resnet18", (3, 224, 224)),
        ("timm/resnet18", (3, 224, 224)),
        ("digits/resnet", (1, 8, 8)),
    ],
)
def test_the_usual_size_of_a_model_is_that_of_its_weights(name, shape):
    assert default_input(name) == shape


@pytest.mark.parametrize(
    ("name", "asked", "divisor"),
    [("timm/resnet18", "null", 8), ("torchvision/resnet18", "null", 8), ("timm/resnet18", "1", 1), ("digits/resnet", "null", None)],
)
def test_widths_of_models_that_people_deploy_are_multiples_of_eight(name, asked, divisor):
    config = load_config("digits/bcnetv2", [f"model.name={name}", f"space.divisor={asked}"])
    assert with_divisor(config).space.divisor == divisor
