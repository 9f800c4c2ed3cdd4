import yaml

from bcnet.commands.app import widths_of_run
from bcnet.config import dump_config, load_config, shipped_configs
from bcnet.space.cost import uniform_widths


def test_every_shipped_config_has_a_line(bcnet):
    code, out, _ = bcnet("configs")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(shipped_configs()) <= set(lines)
    assert all(len(lines[name].split()) > 1 for name in shipped_configs())


def test_a_config_is_shown_whole_and_can_be_read_again(bcnet, tmp_path):
    code, out, _ = bcnet("config", "digits/autoslim", "train.strategy.num_random=3", "train.ema_decay=0.9")
    assert code == 0
    assert "# Peak learning rate." in out
    config = load_config("digits/autoslim", ["train.strategy.num_random=3", "train.ema_decay=0.9"])
    shown, written = yaml.safe_load(out), yaml.safe_load(dump_config(config))
    assert shown["data"].pop("held_out") == "train"  # which is not written where it is what it always was
    assert shown == written
    (tmp_path / "own.yaml").write_text(out)
    assert load_config(tmp_path / "own.yaml") == config


def test_uniform_is_the_widest_vector_of_one_share_within_the_budget(run):
    """Against all vectors whose groups have the same index, which are the shares of equal bins."""
    full = run.costs.one(run.space.full, "flops")
    for share in (0.1, 0.3, 0.5, 0.8, 1.0):
        best = next((k,) * 5 for k in (4, 3, 2, 1) if run.costs.one((k,) * 5, "flops") <= share * full)
        assert uniform_widths(run.costs, f"flops={share}") == best == widths_of_run(f"uniform={share}", run)
    assert widths_of_run("full", run) == run.space.full
