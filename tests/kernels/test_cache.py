import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import patience

from bcnet.kernels.library import _find, library

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("c++") is None, reason="compiled kernels want Linux and a C++ compiler"
)
LOAD = "from bcnet.kernels.library import library; assert library('batch_norm') is not None"


@pytest.fixture
def folder(tmp_path, monkeypatch, fresh):
    """Where libraries are kept, in a cache of the test's own; a quick compiler makes them, without any kernel."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/log
sleep ${{SECONDS_TO_COMPILE:-0}} & echo $! > {tmp_path}/pid
wait $!
for made; do :; done  # the last argument
exec c++ -shared -fPIC -x c++ /dev/null -o "$made"
"""
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def load(name="batch_norm"):
    _find.cache_clear()
    return library(name)


def compilations(folder):
    log = folder.parent.parent / "log"
    return sum(" -c " in line for line in log.read_text().splitlines()) if log.exists() else 0


def only_library(folder):
    (compiled,) = folder.glob("*.so")
    return compiled


def hash_of(compiled):
    return hashlib.sha256(compiled.read_bytes()).hexdigest()


def replace(path, content):
    """Not in place: this process has the old file mapped."""
    path.unlink()
    path.write_bytes(content)


def test_a_library_is_compiled_once_and_its_hash_stands_beside_it(folder):
    assert load() is not None
    compiled = only_library(folder)
    assert {path.name for path in folder.iterdir()} == {compiled.name, f"{compiled.name}.sha256", "lock"}
    assert (folder / f"{compiled.name}.sha256").read_text() == hash_of(compiled) + "\n"
    assert load() is not None
    assert compilations(folder) == 1


def test_the_folder_is_private_whatever_the_umask_is(folder):
    before = os.umask(0)
    try:
        assert load() is not None
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert compilations(folder) == 1
    assert load() is not None
    assert compilations(folder) == 1


@pytest.mark.parametrize("beside", ["nothing", "another hash", "no hash", "its hash"])
def test_a_planted_library_is_not_loaded(folder, tmp_path, monkeypatch, beside):
    load()
    folder = folder.parent.rename(tmp_path / "moved") / "kernels"  # a process loads a path only once
    monkeypatch.setenv("BCNET_CACHE", str(folder.parent))
    compiled = only_library(folder)
    (tmp_path / "planted.cpp").write_text('extern "C" int planted() { return 1; }')
    subprocess.run(["c++", "-shared", "-fPIC", "-o", tmp_path / "planted.so", tmp_path / "planted.cpp"], check=True)
    replace(compiled, (tmp_path / "planted.so").read_bytes())
    hashed = folder / f"{compiled.name}.sha256"
    if beside == "nothing":
        hashed.unlink()
    elif beside != "another hash":
        hashed.write_bytes(hash_of(compiled).encode() if beside == "its hash" else b"\xff" * 64)
    found = load()
    assert hasattr(found, "planted") == (beside == "its hash")  # who can write that can write anything
    assert hashed.read_text().strip() == hash_of(compiled)
    assert compilations(folder) == (1 if beside == "its hash" else 2)


@pytest.mark.parametrize("share", [0, 2])
def test_a_truncated_library_is_built_anew(folder, share):
    load()
    compiled = only_library(folder)
    whole = compiled.read_bytes()
    replace(compiled, whole[: len(whole) // share] if share else b"")
    assert load() is not None
    assert compiled.stat().st_size == len(whole)
    assert (folder / f"{compiled.name}.sha256").read_text().strip() == hash_of(compiled)
    assert compilations(folder) == 2


def foreign(folder):
    folder.mkdir()
    os.chown(folder, 12345, 12345)


def linked(folder):
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def writable(mode):
    def make(folder):
        folder.mkdir()
        folder.chmod(mode)

    return make


REFUSED = {
    "others may write to it; chmod 700 makes it yours": [writable(0o770), writable(0o702)],
    "it belongs to another user": [foreign],
    "it is not a folder": [linked, Path.touch],
}


@pytest.mark.parametrize(("why", "make"), [(why, make) for why, ways in REFUSED.items() for make in ways])
def test_a_folder_of_others_is_not_used(folder, capsys, tmp_path, monkeypatch, why, make):
    if make is foreign and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder.parent.mkdir()
    make(folder)
    before = folder.lstat()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert load() is not None
    assert load("depthwise") is not None
    assert compilations(folder) == 2
    note = f"bcnet: note: {folder} is not used to keep compiled kernels ({why}), so every process compiles its own\n"
    assert capsys.readouterr().err == note
    assert folder.lstat() == before or folder.is_symlink()
    assert not folder.is_dir() or not list(folder.iterdir())
    assert not list((tmp_path / "temporary").iterdir())


def test_what_a_killed_compilation_left_is_removed(folder):
    folder.mkdir(parents=True, mode=0o700)
    (folder / "compiling-abc").mkdir()
    (folder / "compiling-abc" / "made.o").touch()
    load()
    assert not list(folder.glob("compiling-*"))


def test_two_processes_at_once_compile_once(folder):
    environment = os.environ | {"SECONDS_TO_COMPILE": "2"}
    processes = [subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=patience(120))[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert errors == ["", ""]
    assert compilations(folder) == 1


def test_a_compiler_killed_half_way_leaves_nothing_that_is_loaded(folder):
    environment = os.environ | {"SECONDS_TO_COMPILE": "60"}
    process = subprocess.Popen([sys.executable, "-c", LOAD], env=environment, start_new_session=True)
    while not list(folder.glob("compiling-*")):
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    assert list(folder.glob("compiling-*"))
    assert load() is not None
    assert not list(folder.glob("compiling-*"))


def test_nothing_of_a_compiler_runs_on_when_it_is_interrupted(folder, tmp_path, is_running):
    environment = os.environ | {"SECONDS_TO_COMPILE": "60"}
    process = subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=patience(60))
    started_by_it = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + patience(20)  # a process that was killed is not gone at once on a busy machine
    while is_running(started_by_it):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(folder.glob("compiling-*"))
