import re

import pytest
import yaml

from bcnet.config import Config, Section, differing_keys, dump_config, load_config, shipped_configs, validate_config
from bcnet.errors import UserError
from bcnet.search import SEARCH_ALGORITHMS
from bcnet.training.strategies import STRATEGIES


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
        ("data.mean=[123.675, 116.28, 103.53]", "data.mean.*123.675 is wrong.*less than or equal to 1"),  # of pixels in 0..255
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


def test_a_mistake_is_said_of_the_file_or_of_the_settings_typed_beside_it(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("train: {epochs: 7}\n")
    bad.write_text("train: {epochs: 0}\n")
    for file, settings, where in (
        (good, ["seed=x"], "^settings: seed"),
        (bad, ["seed=x"], f"^{re.escape(str(bad))}: "),
        (bad, (), f"^{re.escape(str(bad))}: train.epochs"),
    ):
        with pytest.raises(UserError, match=where):
            load_config(file, settings)


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


def sections(of=None):
    """Every section of the config, and the settings of everything that is chosen by name."""
    for field in (of or Config).model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield field.annotation
            yield from sections(field.annotation)
    if of is None:
        yield Config
        yield from (chosen.Settings for chosen in (*STRATEGIES.values(), *SEARCH_ALGORITHMS.values()))


def undocumented(section):
    return [name for name, field in section.model_fields.items() if not field.description and field.annotation not in set(sections())]


def test_every_field_is_documented():
    assert len(set(sections())) >= 10
    for section in sections():
        assert not undocumented(section), section

    class Silent(Section):
        number: int = 3

    assert undocumented(Silent) == ["number"]


def test_words_are_text_unless_the_field_is_a_boolean(tmp_path):
    """YAML 1.1 reads off, no and yes as booleans."""
    config = load_config("digits/base", ["amp=off", "data.flip=yes", "model.args={layer: no}", "train.nesterov=true"])
    assert (config.amp, config.data.flip, config.model.args, config.train.nesterov) == ("off", True, {"layer": "no"}, True)
    (tmp_path / "own.yaml").write_text("amp: off\ndata: {flip: on}\n")
    config = load_config(tmp_path / "own.yaml")
    assert (config.amp, config.data.flip) == ("off", True)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_an_own_config_may_stand_on_a_shipped_one(tmp_path):
    (tmp_path / "own.yaml").write_text("base: digits/autoslim\ntrain: {epochs: 3, strategy: {num_random: 4}}\n")
    config = load_config(tmp_path / "own.yaml")
    assert (config.model.name, config.train.epochs, config.train.strategy.name) == ("digits/resnet", 3, "autoslim")
    assert config.train.strategy.settings == {"num_random": 4}
    other = load_config(tmp_path / "own.yaml", ["train.strategy=bcnet"])
    assert (other.train.strategy.name, other.train.strategy.settings) == ("bcnet", {})
    assert load_config("digits/base", ["search.algorithm.population=7"]).search.algorithm.name == "evolution"


def test_a_name_may_carry_its_strategy():
    """The name that 0.1 had for the default recipe, too."""
    assert load_config("channel_bench/mobilenet_autoslim").train.strategy.name == "autoslim"
    for name in ("channel_bench/resnet_bcnetv2_distilled", "channel_bench/resnet_bcnetv2_taught", "digits/bcnetv2_taught"):
        assert load_config(name).train.strategy.name == "bcnetv2_distilled"


FULL_0_1 = {
    "train": {"strategy": "bcnetv2", "num_random": 2, "inplace_distillation": True, "epochs": 3},
    "search": {"algorithm": "random", "objective": "score", "init": "prior", "population": 12, "evaluations": 48},
    "score": {"metric": "neg_kl"},
}


@pytest.mark.parametrize(
    ("former", "name", "settings"),
    [
        ({"strategy": "bcnetv2", "inplace_distillation": True}, "bcnetv2_distilled", {}),
        ({"strategy": "bcnetv2", "inplace_distillation": False}, "bcnetv2", {}),
        ({"strategy": "bcnet", "num_random": 2, "inplace_distillation": True}, "bcnet_distilled", {}),
        ({"strategy": "uniform", "num_random": 2, "inplace_distillation": True}, "uniform", {}),
        ({"strategy": "autoslim", "num_random": 3, "inplace_distillation": True}, "autoslim", {"num_random": 3}),
        ({"strategy": "autoslim", "num_random": 3}, "autoslim", {"num_random": 3}),
        ({"inplace_distillation": True}, "bcnetv2_distilled", {}),
        ({"strategy": "bcnetv2"}, "bcnetv2", {}),
        ({}, "bcnetv2_distilled", {}),
    ],
)
def test_configs_of_0_1_mean_what_they_meant(tmp_path, former, name, settings):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": former}))
    strategy = load_config(tmp_path / "config.yaml").train.strategy
    assert (strategy.name, strategy.settings) == (name, settings)


def test_a_resolved_config_of_0_1_is_read_whole(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(FULL_0_1))
    config = load_config(tmp_path / "config.yaml")
    assert (config.search.algorithm.name, config.search.algorithm.settings) == ("random", {"batch_size": 12})
    assert config.score.metric == "kl"
    (tmp_path / "config.yaml").write_text("search: {population: 9, init: random}\n")
    assert load_config(tmp_path / "config.yaml").search.algorithm.settings == {"population": 9, "init": "random"}


@pytest.mark.parametrize("source", ["digits", "cifar10"])
@pytest.mark.parametrize(("key", "value"), [("image_size", 32), ("download", True), ("root", "/data"), ("args", {"a": 1})])
def test_settings_that_do_nothing_are_refused(source, key, value):
    fits = (source, key) in {("cifar10", "download"), ("cifar10", "root")}
    if fits:
        validate_config({"data": {"source": source, key: value}}, "test")
    else:
        with pytest.raises(UserError, match=f"{key} does nothing with source={source}"):
            validate_config({"data": {"source": source, key: value}}, "test")


def test_a_source_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="must be one of 'digits'"):
        validate_config({"data": {"source": "mnist"}}, "test")


def test_an_empty_mapping_empties_what_the_base_has(tmp_path):
    (tmp_path / "own.yaml").write_text("base: cifar/resnet20\nspace: {groups: {}, bins: 4}\ntrain: {}\n")
    config, base = load_config(tmp_path / "own.yaml"), load_config("cifar/resnet20")
    assert (config.space.groups, config.space.bins) == ({}, 4)
    assert base.space.groups
    assert config.train == base.train
