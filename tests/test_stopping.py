"""Every long command, killed and stopped at random moments (`benchmarks/kills.py`), and two commands on one run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import patience

from bcnet.__main__ import SIGNALS
from bcnet.errors import Interrupted, Stopped
from bcnet.locks import locked
from bcnet.training.trainer import Trainer

KILLS = Path(__file__).parent.parent / "benchmarks" / "kills.py"
needs_shim = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="kills within writes want Linux and a C compiler"
)


@needs_shim
def test_whatever_ends_a_command_it_goes_on_to_the_same_bits(tmp_path):
    command = [sys.executable, str(KILLS), "--of", "train,score", "--by", "write", "--kills", "2", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=patience(280), env=os.environ | {"BCNET_KERNELS": "off"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("the same bits, nothing left") == 2


@needs_shim
def test_a_kill_in_the_very_first_write_leaves_a_folder_that_can_be_used(tmp_path, bcnet):
    """Also without --resume."""
    sys.path.insert(0, str(KILLS.parent))
    try:
        from kills import SHIM
    finally:
        sys.path.remove(str(KILLS.parent))
    (tmp_path / "shim.c").write_text(SHIM)
    library = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "shim.c"), "-ldl"], check=True)
    folder = tmp_path / "run"
    code = (
        f"import ctypes; ctypes.CDLL({str(library)!r}).kills_arm({str(folder)!r}.encode(), ctypes.c_long(1))\n"
        f"from bcnet.__main__ import main; main(['train', 'digits/bcnetv2', '--out', {str(folder)!r}])"
    )
    environment = os.environ | {"LD_PRELOAD": str(library), "BCNET_KERNELS": "off"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=patience(120)).returncode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert re.fullmatch(r"\.config\.yaml\..*\.bcnet\.tmp", left.name)
    assert bcnet("train", "digits/bcnetv2", "train.epochs=1", "--out", folder)[0] == 0
    assert not left.exists()


@pytest.mark.parametrize(("of_torchrun", "ends"), [(False, "said, registered, taken apart"), (True, "said, registered")])
def test_a_process_of_torchrun_ends_without_taking_python_apart(of_torchrun, ends):
    """A thread of gloo that lets go of a tensor then would abort it; what is registered for the end runs, and the exit code stays."""
    code = (
        "import atexit, os, sys, bcnet.__main__ as module, bcnet.cli\n"
        "class Late:\n"
        "    def __del__(self, say=os.write):\n"
        "        say(1, b', taken apart')\n"
        "atexit.register(lambda: print(', registered', end=''))\n"
        "def run(arguments):\n"
        "    sys.late = Late(); print('said', end=''); sys.exit(3)\n"
        "bcnet.cli.main = run; module.main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    environment |= {"TORCHELASTIC_RUN_ID": "7"} if of_torchrun else {}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(50), env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (3, ends, "")


@pytest.fixture
def raising():
    """The handlers of the command line, which raise where the work is."""
    from bcnet.__main__ import _stop

    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (["score", "RUN", "--widths", "all"], "; the same command goes on where it was"),
        (["search", "RUN"], "; the same command goes on where it was"),
        (["extract", "RUN", "--widths", "22222", "--out", "net"], "; the same command goes on where it was"),
    ],
)
def test_a_signal_is_one_line_that_says_how_to_go_on(bcnet, run, monkeypatch, raising, number, arguments, then):
    monkeypatch.chdir(run.folder.parent)

    def stop(*_, **__):
        signal.raise_signal(number)
        time.sleep(5)

    monkeypatch.setattr("bcnet.scoring.scorer.Scorer._evaluate", stop)
    monkeypatch.setattr("bcnet.run.calibrate", stop)
    code, _, err = bcnet(*[str(run.folder) if one == "RUN" else one for one in arguments])
    assert (code, err) == (128 + number, f"bcnet: stopped by {number.name}{then}\n")


@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (["train", "digits/bcnetv2", "--out", "new", "train.epochs=2"], "continue with --resume"),
        (["retrain", "RUN", "--widths", "22222"], "the same command goes on where it was"),
        (["fit", "digits/resnet", "--config", "digits/base", "--out", "fit"], "the same command goes on where it was"),
    ],
)
def test_a_stopped_training_says_how_its_own_command_goes_on(bcnet, run, monkeypatch, raising, arguments, then):
    monkeypatch.chdir(run.folder.parent)
    step = Trainer._train_step

    def step_and_stop(self, replica):
        signal.raise_signal(signal.SIGTERM)
        return step(self, replica)

    monkeypatch.setattr(Trainer, "_train_step", step_and_stop)
    code, _, err = bcnet(*[str(run.folder) if one == "RUN" else one for one in arguments])
    assert code == 143
    assert re.fullmatch(rf"bcnet: stopped by SIGTERM; saved at step 1 of \d+; {then}\n", err)


def test_a_signal_after_the_last_step_is_not_lost(run, monkeypatch):
    trainer = run.trainer
    save = trainer.save

    def save_and_stop():
        save()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer, "save", save_and_stop)
    with pytest.raises(Stopped):
        trainer.run(until_step=1)


def test_a_stop_that_a_library_made_into_an_error_of_its_own_is_a_stop(bcnet, run, monkeypatch, raising):
    def draw(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
        except Stopped:
            raise ValueError("Invalid bounding box") from None  # as matplotlib's C++ does

    monkeypatch.setattr("bcnet.scoring.scorer.Scorer._evaluate", draw)
    code, _, err = bcnet("score", run.folder, "--widths", "full", "score.additive=null")
    assert (code, err) == (130, "bcnet: stopped by SIGINT; the same command goes on where it was\n")


def test_an_error_after_an_earlier_commands_stop_is_an_error(bcnet, run, monkeypatch):
    Stopped(signal.SIGINT)  # of another command in this process
    monkeypatch.setattr("bcnet.scoring.scorer.Scorer._evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bcnet("score", run.folder, "--widths", "full", "score.additive=null")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_command_has_ended_is_one_line(monkeypatch, capsys, number):
    import bcnet.__main__ as module

    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    ignore = module._ignore_signals

    def late():
        monkeypatch.setattr(module, "_ignore_signals", ignore)
        signal.raise_signal(number)

    monkeypatch.setattr(module, "_ignore_signals", late)
    try:
        with pytest.raises(SystemExit) as caught:
            module.main(["--version"])
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert (caught.value.code, capsys.readouterr().err) == (128 + number, f"bcnet: stopped by {number.name}\n")


def test_how_a_plain_ctrl_c_reads():
    stopped = Interrupted.by(KeyboardInterrupt(), "go on")
    assert (str(stopped), stopped.signal) == ("stopped by SIGINT; go on", 2)


@pytest.mark.posix
def test_a_second_training_of_a_run_is_refused_and_harms_nothing(bcnet, run):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file() and path.name != "environment.json"}
    with locked(run.checkpoint):
        code, _, err = bcnet("train", run.folder / "config.yaml", "train.epochs=3", "--out", run.folder, "--resume")
        assert code == 0  # it had ended
        run.checkpoint.unlink()
        code, _, err = bcnet("train", run.folder / "config.yaml", "--out", run.folder, "--resume")
        assert code == 2
        assert re.search(rf"checkpoint.pt: in use by process {os.getpid()} on \S+ since .*; wait until it ends, or stop it\n$", err)
    assert {name for name in before if not (run.folder / name).exists()} == {"checkpoint.pt"}


@pytest.mark.posix
def test_two_scorings_of_a_run_at_once_find_what_one_finds(bcnet, run, tmp_path):
    """Both may write: lines of the cache are whole, results are the same."""
    shutil.copytree(run.folder, tmp_path / "alone")
    arguments = ["--widths", "random:40", "score.additive=null"]
    assert bcnet("score", tmp_path / "alone", *arguments)[0] == 0
    command = [sys.executable, "-m", "bcnet", "score", str(run.folder), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([*command, "--out", str(tmp_path / f"{n}.json")], env=environment) for n in range(2)]
    assert [process.wait(timeout=patience(200)) for process in both] == [0, 0]
    expected = json.loads((tmp_path / "alone" / "scores.json").read_text())["scores"]
    assert [json.loads((tmp_path / f"{n}.json").read_text())["scores"] for n in range(2)] == [expected, expected]
    (cache,), (other,) = ((folder / "scores").iterdir() for folder in (run.folder, tmp_path / "alone"))
    assert set(cache.read_text().splitlines()) == set(other.read_text().splitlines())


RETRAINED = ("retrain", "RUN", "--widths", "22222", "retrain.epochs=1")
DENSE = ("--out", "OUT", "weights.epochs=1", "architecture.start_epoch=0", "retrain.epochs=1", "derive.calibration_images=64")


SHORT = ("search.short_trainings=2", "search.short_epochs=0.2", "score.additive=40", "score.calibration_images=64")


@pytest.mark.parametrize(
    ("before", "arguments"),
    [
        ((), (*RETRAINED, "--seeds", "0,1")),
        ((), (*RETRAINED, "--seeds", "0")),
        ((), ("retrain", "RUN", "--widths", "22222,33333", "--together", "--seeds", "0", "retrain.epochs=1")),
        ((), ("search", "RUN", "--budget", "flops=0.5", *SHORT)),
        ((), ("fit", "digits/resnet", "--out", "OUT", "retrain.epochs=1")),
        (("dense", "train", "dense/digits", "--budget", "flops=0.5", *DENSE), ("dense", "retrain", "OUT", "--seeds", "0")),
    ],
    ids=["retrain seeds", "retrain one", "retrain together", "short trainings", "fit", "dense retrain"],
)
def test_a_checkpoint_that_a_kill_left_beside_the_result_goes_with_the_command_again(bcnet, run, tmp_path, monkeypatch, before, arguments):
    def call(words):
        names = {"RUN": run.folder, "OUT": tmp_path / "out"}
        code, _, err = bcnet(*[names.get(word, word) for word in words])
        assert code == 0, err

    def checkpoints():
        return {path for path in tmp_path.rglob("*.pt") if path.parent not in (run.folder, tmp_path / "out")}

    unlink = Path.unlink
    if before:
        call(before)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, *_, **options: None if path.suffix == ".pt" else unlink(path, **options))
        call(arguments)
    assert checkpoints()
    call(arguments)
    assert not checkpoints()
