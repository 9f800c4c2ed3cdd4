import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from patience import patience

from bcnet.errors import Stopped, UserError
from bcnet.processes import work_off


def double(folder, number):
    (folder / f"{os.getpid()}").touch()
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 8:
        raise UserError("eight is refused")
    if number == 9:
        raise KeyError("nine")
    if number == 10:
        raise Stopped(signal.SIGTERM)  # as a training does that was asked to stop in its last step
    if number > 100:
        time.sleep(number)
    return 2 * number


def start(folder):
    return partial(double, folder)


def test_every_task_is_done_once_and_nobody_stays(tmp_path, is_running):
    assert sorted(work_off(partial(start, tmp_path), range(5), 2)) == [0, 2, 4, 6, 8]
    assert 1 <= len(list(tmp_path.iterdir())) <= 2
    assert not any(is_running(path.name) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        pytest.param(7, UserError, "a worker process died .SIGKILL, as when memory runs out", marks=pytest.mark.posix),
        (8, UserError, "eight is refused"),
        (9, KeyError, "nine"),
    ],
)
def test_a_worker_that_dies_or_raises_is_noticed(tmp_path, number, kind, words, is_running):
    with pytest.raises(kind, match=words):
        list(work_off(partial(start, tmp_path), [number], 1))
    assert not any(is_running(path.name) for path in tmp_path.iterdir())


def test_a_worker_that_is_stopped_ends_without_a_traceback(tmp_path, capfd):
    with pytest.raises(UserError, match=r"a worker process died .exit code 0"):
        list(work_off(partial(start, tmp_path), [10], 1))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path, is_running):
    code = (
        "import sys; from functools import partial; from pathlib import Path; import test_processes; from bcnet.processes import work_off\n"
        "if __name__ == '__main__': list(work_off(partial(test_processes.start, Path(sys.argv[1])), [200, 200], 2))"
    )
    (tmp_path / "parent.py").write_text(code)
    folder = tmp_path / "pids"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(folder)], env=environment)
    while len(list(folder.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    pids = [path.name for path in folder.iterdir()]
    deadline = time.monotonic() + patience(20)
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
