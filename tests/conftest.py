import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import patience

from bcnet.cli import main
from bcnet.config import Config, load_config
from bcnet.run import Run

torch.set_num_threads(1)  # the networks are small; more threads only wait for each other

QUICK = ("train.epochs=3", "search.evaluations=20", "search.population=8", "retrain.epochs=1", "score.calibration_images=128")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """The time limit of a test grows with the machine's other work."""
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(patience(float(item.config.getini("timeout")))))
    return (yield)


def pytest_runtest_setup(item):
    for name, is_here in (("posix", sys.platform != "win32"), ("linux", sys.platform.startswith("linux"))):
        if item.get_closest_marker(name) and not is_here:
            pytest.skip(f"needs {name}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Decoded images never go to the user's cache folder."""
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def bcnet(capsys):
    """Runs the command line; returns exit code, output and errors."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def quick_config() -> Config:
    return load_config("digits/bcnetv2", QUICK)


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory) -> Path:
    """A run of a few epochs on digits; tests read it and must not write to it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    Run.create(folder, load_config("digits/bcnetv2", QUICK)).train()
    return folder


@pytest.fixture
def run(trained_folder, tmp_path) -> Run:
    """A copy of the trained run, to be used up."""
    import shutil

    shutil.copytree(trained_folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture
def benchmark_folder() -> Path:
    """The published Channel-Bench-Macro files, where ``BCNET_DATA`` says."""
    folder = Path(os.environ.get("BCNET_DATA", "")) / "channel-bench-macro"
    if not folder.is_dir():
        pytest.skip("BCNET_DATA does not name a folder with channel-bench-macro/ in it")
    return folder


@pytest.fixture
def is_running():
    """Whether a process of that number runs, a dead one that nobody asked about aside; of Linux."""

    def ask(pid) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return ask


@pytest.fixture
def start_two():
    """Start a script as two processes of torchrun; without kernels, which take a minute to compile where others want the machine, too."""

    def start(script, *arguments, **options):
        if sys.platform == "win32":
            pytest.skip("torchrun is not for Windows: its rendezvous wants libuv, which PyTorch has not there")
        torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
        launch = [sys.executable, "-m", *torchrun, str(script), *map(str, arguments)]
        return subprocess.Popen(launch, env=os.environ | {"OMP_NUM_THREADS": "1", "BCNET_KERNELS": "off"}, text=True, **options)

    return start


@pytest.fixture
def two_processes(start_two):
    """Run a script as two processes of torchrun; nobody outlives a time limit."""

    def run(script, *arguments):
        with start_two(script, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=patience(240))
            except BaseException:
                process.terminate()  # torchrun then ends its processes
                process.communicate(timeout=patience(50))
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
