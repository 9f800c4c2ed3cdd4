"""Systems without POSIX: bcnet's own code sees Windows (`elsewhere/sitecustomize.py`), also in its worker processes."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import patience
from PIL import Image

from bcnet.commands.app import read_named_widths
from bcnet.errors import UserError
from bcnet.files import write_text
from bcnet.seals import read_line, sealed_line

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shown on Linux; elsewhere all tests run as it is there")

QUICK = ("train.epochs=2", "search.evaluations=20", "search.algorithm.population=8", "retrain.epochs=1", "score.calibration_images=64")
COMMANDS = """
import json, sys
import bcnet.locks
from bcnet.cli import main

assert bcnet.locks.fcntl is None
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as end:
        assert not end.code, command
"""


def elsewhere(script, *arguments):
    """Run a script where bcnet sees Windows, with its usual encoding of output; returns output and errors."""
    paths = [str(Path(__file__).parent / "elsewhere"), str(Path(__file__).parents[1])]
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        capture_output=True,
        encoding="cp1252",
        timeout=patience(250),
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout, found.stderr


def test_a_whole_experiment_where_there_is_no_posix(tmp_path):
    run, truth = str(tmp_path / "run"), str(tmp_path / "truth.json")
    commands = [
        ["profile", "digits/bcnetv2", *QUICK],
        ["train", "digits/bcnetv2", "--out", run, *QUICK],
        ["train", "digits/bcnetv2", "--out", run, "--resume", *QUICK],
        ["search", run, "--budget", "flops=0.5"],
        ["extract", run, "--widths", "best", "--out", str(tmp_path / "network"), "--formats", "none"],
        ["extract", run, "--widths", "best", "--out", str(tmp_path / "network"), "--formats", "none"],
        ["retrain", run, "--widths", "best", "--seeds", "0"],
        ["truth", "build", "digits/truth", "--out", truth, "--widths", "random:3", "--seeds", "1", "--workers", "2", "retrain.epochs=1"],
        ["doctor", run],
    ]
    out, errors = elsewhere(COMMANDS, json.dumps(commands))
    assert "memory: not known on this system" in out
    assert "the compiled kernels are for Linux only" in errors
    assert len(json.loads(Path(truth).read_text(encoding="utf-8")).keys() - {"meta"}) == 3
    assert not list(tmp_path.rglob("*.bcnet.*"))
    assert json.loads((tmp_path / "network" / "network.json").read_text(encoding="utf-8"))["speed"]["found_ms"] > 0


def test_what_was_loaded_and_what_is_damaged_keep_no_file(tmp_path, run):
    for part in ("train", "test"):
        (tmp_path / "pictures" / part / "a").mkdir(parents=True)
        for number, size in enumerate((8, 8, 9)):
            Image.new("RGB", (size, size)).save(tmp_path / "pictures" / part / "a" / f"{number}.png")
    run.extract(run.space.full, tmp_path / "network")
    script = """
import os, sys
from pathlib import Path
import torch
import bcnet
from bcnet.config import load_config
from bcnet.data.load import load_data
from bcnet.errors import UserError
from bcnet.supernet.extract import save_network

folder = Path(sys.argv[1])
for _ in range(2):
    kept, description = bcnet.load_network(folder / "network")
    save_network(folder / "network", kept, description)
try:
    config = load_config("digits/bcnetv2", ["data.source=imagefolder", f"data.root={folder / 'pictures'}"])
    load_data(config.data, 0, torch.device("cpu"))
except UserError as error:
    print(error)
print([one.name for one in Path(os.environ["BCNET_CACHE"]).glob(".images*")])
"""
    out, _ = elsewhere(script, str(tmp_path))
    assert re.fullmatch(r".*2\.png: images differ in size .*\n\[\]\n", out)


def test_a_cache_of_images_that_is_in_use_and_pictures_that_are_streamed(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 6)):
        for name in ("left", "rïght"):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    own = ["data.source=imagefolder", f"data.root={tmp_path / 'pictures'}", "data.num_val=8", "data.resident_gib=0", "train.batch_size=8"]
    settings = ["digits/bcnetv2", *own, "model.name=cifar/resnet20", "train.epochs=1", "amp=off", "threads=1"]
    commands = [
        ["train", *settings, "--out", str(tmp_path / "first")],
        ["train", *settings, "--out", str(tmp_path / "second"), "data.image_size=16"],
        ["train", *settings, "--out", str(tmp_path / "streamed"), "data.image_size=16", "data.streaming=true", "workers=1"],
        ["score", str(tmp_path / "streamed"), "--widths", "full", "score.additive=null", "score.calibration_images=16"],
    ]
    elsewhere(COMMANDS, json.dumps(commands))
    assert (tmp_path / "streamed" / "scores.json").is_file()


def test_what_it_shows_is_missing_indeed():
    script = "import bcnet.files, bcnet.forecast\nfor name in ('fork', 'O_CLOEXEC', 'geteuid'): assert not hasattr(bcnet.files.os, name)\n"
    script += "assert (bcnet.files.os.name, bcnet.forecast.sys.platform) == ('nt', 'win32')\nimport os, fcntl; assert hasattr(os, 'fork')"
    elsewhere(script)


def test_a_disk_without_links_is_one_to_write_to(tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EPERM, "no links on exFAT")

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    write_text(tmp_path / "a", "first", new=True)
    with pytest.raises(UserError, match="another process has just written it"):
        write_text(tmp_path / "a", "second", new=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]


def test_whoever_reads_what_is_replaced_is_waited_for(tmp_path):
    script = """
import sys, threading
from pathlib import Path
from bcnet.errors import UserError
from bcnet.files import write_text

path = Path(sys.argv[1])
write_text(path, "first")
reader = path.open()
threading.Timer(0.5, reader.close).start()
write_text(path, "second")
reader = path.open()
try:
    write_text(path, "third")
except UserError as error:
    print(error)
print(path.read_text())
"""
    out, _ = elsewhere(script, str(tmp_path / "a"))
    assert out.endswith("cannot be written (Permission denied); this file is as it was\nsecond\n")


def test_journals_may_have_been_through_an_editor_of_windows():
    entry = {"widths": "123", "left": {"acc": 0.5}}
    assert read_line(sealed_line(entry).replace(b"\n", b"\r\n").rstrip(b"\n")) == entry


def test_a_file_of_widths_may_have_a_colon_in_its_path(run, tmp_path):
    drive = tmp_path / "C:"
    drive.mkdir()
    (drive / "widths.txt").write_text("12341\n22222\n")
    assert list(read_named_widths(str(drive / "widths.txt"), run.space)) == ["12341", "22222"]
