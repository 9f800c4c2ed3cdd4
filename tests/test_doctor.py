import shlex
from pathlib import Path

import pytest

from bcnet.doctor import examine
from bcnet.errors import UserError
from bcnet.locks import locked
from bcnet.training.checkpoint import load_checkpoint, save_checkpoint


def states(folder):
    return {str(finding.path.relative_to(folder)): finding.state for finding in examine(folder).findings}


def test_a_whole_run_is_whole_and_a_search_comes_next(trained_folder, bcnet):
    assert set(states(trained_folder).values()) == {"whole"}
    code, out, _ = bcnet("doctor", trained_folder)
    assert code == 0
    assert "checkpoint.pt: ended at step 30 of 30" in out
    assert f"next: bcnet search {trained_folder} --budget flops=0.5" in out


def test_what_was_begun_is_unfinished_and_its_command_is_named(bcnet, run, quick_config, tmp_path):
    run.search("flops=0.5")
    folder = run.folder / "retrain" / "22222" / "seed0"
    folder.mkdir(parents=True)
    (folder / "checkpoint-abc.pt").write_bytes(run.checkpoint.read_bytes())
    assert states(run.folder)[str(Path("retrain/22222/seed0/checkpoint-abc.pt"))] == "whole"
    from bcnet.run import Run

    begun = Run.create(tmp_path / "begun", quick_config)
    begun.trainer.run(until_step=2)
    assert states(begun.folder)["checkpoint.pt"] == "unfinished"
    assert examine(begun.folder).next == [f"bcnet train {begun.folder / 'config.yaml'} --out {begun.folder} --resume"]
    (folder / "checkpoint-abc.pt").write_bytes(begun.checkpoint.read_bytes())
    assert examine(run.folder).next == [f"bcnet retrain {run.folder} --widths 22222 (with the --seeds and settings that it was given)"]
    assert len(examine(tmp_path).next) == 2


@pytest.mark.posix
def test_what_kills_left_and_what_is_in_use_are_told_apart(run):
    (run.folder / ".search.json.abc.bcnet.tmp").write_text("half")
    with locked(run.checkpoint):
        found = states(run.folder)
    assert found[".search.json.abc.bcnet.tmp"] == "left over"
    assert found[".checkpoint.pt.bcnet.lock"] == "in use"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoint.pt", b"PK nothing"),
        ("config.yaml", b"seed: ["),
        ("environment.json", b"{}"),
        ("search.json", b"{}"),
        ("retrain/22222.json", b"[]"),
        ("retrain/22222/seed0/network.safetensors", b"1234567890"),
        ("retrain/22222/seed0/network.json", b"{"),
    ],
)
def test_damage_is_named_and_ends_with_exit_code_1(bcnet, run, name, content):
    (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (run.folder / name).write_bytes(content)
    code, out, err = bcnet("doctor", run.folder)
    assert (code, err) == (1, "")
    assert f"damaged     {Path(name)}: " in out
    assert ", 1 damaged" in out


def test_a_checkpoint_of_another_config_is_damage(run):
    text = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(text.replace("batch_size: 64", "batch_size: 65", 1))
    assert states(run.folder)["checkpoint.pt"] == "damaged"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        examine(tmp_path)


def test_a_retraining_that_has_only_begun_is_named_whatever_was_trained(run):
    begun = load_checkpoint(run.checkpoint) | {"step": 1}
    for where, options in (
        ("32323/checkpoint-abc.pt", "--widths 32323"),
        ("uniform-like-32323-inherited/seed1/checkpoint-abc.pt", "--widths 32323 --inherit"),
        ("together/21232+41443/seed0/checkpoint-abc.pt", "--widths 21232,41443 --together"),
    ):
        file = run.folder / "retrain" / where
        file.parent.mkdir(parents=True)
        save_checkpoint(file, begun)
        assert examine(run.folder).next[0].startswith(f"bcnet retrain {run.folder} {options} (with")
        file.unlink()


def test_the_seeds_of_a_fit_are_named(bcnet, tmp_path):
    folder = tmp_path / "two words"
    assert bcnet("fit", "digits/resnet", "--out", folder, "--seeds", "5", "retrain.epochs=0.1", "threads=1")[0] == 0
    (command,) = examine(folder).next
    config = str(folder / "config.yaml")
    assert shlex.split(command)[1:] == ["fit", "digits/resnet", "--config", config, "--out", str(folder), "--seeds", "5"]
