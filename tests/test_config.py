import pytest

from bcnet.config import differing_keys, dump_config, load_config, shipped_configs, validate_config
from bcnet.errors import UserError


def test_every_shipped_config_loads():
    assert "digits/bcnetv2" in shipped_configs()
    for name in shipped_configs():
        load_config(name)


def test_a_file_overrides_its_base_and_the_command_line_both(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {epochs: 7, lr: 0.3}\nseed: 3\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\ntrain: {lr: 0.2}\n")
    config = load_config(tmp_path / "top.yaml", ["train.momentum=0.8", "model.args={drop_rate: 0.1}"])
    assert (config.seed, config.train.epochs, config.train.lr, config.train.momentum) == (3, 7, 0.2, 0.8)
    assert config.model.args == {"drop_rate": 0.1}


def test_a_resolved_config_reads_back_the_same(tmp_path):
    config = load_config("channel_bench/mobilenet_bcnetv2", ["data.root=/data"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert differing_keys(config, config) == []
    assert differing_keys(config, load_config(tmp_path / "config.yaml", ["train.lr=1e-3", "seed=4"])) == ["seed", "train.lr"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", r"unknown key 'train.epoch'; did you mean 'train.epochs'\?"),
        ("trian.epochs=5", r"unknown key 'trian'; did you mean 'train'\?"),
        ("epochs=5", r"unknown key 'epochs'; did you mean 'train.epochs'\?"),
        ("train.epochs=many", "train.epochs: 'many' is wrong"),
        ("train.epochs=-1", "train.epochs: -1 is wrong.*greater than 0"),
        ("train.strategy=bcnet3", "train.strategy: 'bcnet3' is wrong.*'bcnetv2'"),
        ("train.epochs", "not KEY=VALUE"),
        ("train.lr.x=3", "train.lr"),
        ("train=5", "train: 5 is wrong"),
        ("seed=[", "not YAML"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("digits/bcnetv2", [override])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configs_are_refused(tmp_path):
    for text, message in [("- 1\n", "expected a mapping"), ("a: [", "not a YAML file"), ("base: gone.yaml\n", "does not exist")]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(tmp_path / "bad.yaml")
    (tmp_path / "circle.yaml").write_text("base: circle.yaml\n")
    with pytest.raises(UserError, match="circle"):
        load_config(tmp_path / "circle.yaml")
    with pytest.raises(UserError, match="no such file, and no shipped config"):
        load_config("digits/nothing")


def test_yaml_runs_no_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(UserError, match="not a YAML file"):
        load_config(tmp_path / "evil.yaml")


def test_every_field_is_documented():
    from bcnet import config

    for section in (config.Config, config.DataConfig, config.ModelConfig, config.SpaceConfig, config.TrainConfig, config.ScoreConfig):
        for name, field in section.model_fields.items():
            assert field.description or field.annotation.__doc__, name
    with pytest.raises(UserError):
        validate_config({"data": {"source": "mnist"}}, "test")
