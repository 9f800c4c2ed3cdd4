import os
import subprocess
import sys
import threading

import pytest

from bcnet.errors import UserError
from bcnet.files import is_unused, write_atomic, write_text
from bcnet.lines import append_line
from bcnet.locks import leftovers, locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks on Windows")
HOLD = (
    "import sys, time; from pathlib import Path; from bcnet.locks import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def holder_of(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_who_comes_second_is_told_who_holds_it_and_since_when_and_a_dead_holder_holds_nothing(tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    holder = holder_of(path)
    with (
        pytest.raises(UserError, match=rf"checkpoint.pt: in use by process {holder.pid} on .* since 20\d\d-\d\d-\d\d .* UTC: -c "),
        locked(path),
    ):
        pass
    holder.kill()
    holder.communicate()
    assert len(leftovers(path.parent)) == 1
    with locked(path):
        assert leftovers(path.parent) == []
    assert list(path.parent.iterdir()) == []


def test_many_threads_hold_it_one_by_one(tmp_path):
    """Each has a handle of its own, as another process has."""
    inside, most, done = [], [], []

    def work():
        while True:
            try:
                with locked(tmp_path / "x"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                done.append(1)
                return
            except UserError:
                leftovers(tmp_path, remove=True)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 12
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_within_a_write_left_is_removed_by_the_next_write_but_not_what_is_being_written(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from bcnet.files import write_atomic\n"
        "def write(path): path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_atomic(Path({str(tmp_path / 'a')!r}), write)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1

    def write(temporary):
        assert [path.name for path in tmp_path.iterdir()] == [temporary.name]  # the other is gone
        write_text(tmp_path / "c", "meanwhile")
        assert temporary.exists()
        temporary.write_text("b")

    write_atomic(tmp_path / "b", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_a_folder_with_nothing_but_leftovers_is_unused(tmp_path):
    assert is_unused(tmp_path / "new")
    (tmp_path / ".config.yaml.abc.bcnet.tmp").write_text("half")
    assert is_unused(tmp_path)
    (tmp_path / "mine").touch()
    assert not is_unused(tmp_path)


def test_what_must_be_new_is_not_replaced(tmp_path):
    write_text(tmp_path / "a", "first", new=True)
    with pytest.raises(UserError, match="another process has just written it"):
        write_text(tmp_path / "a", "second", new=True)
    assert (tmp_path / "a").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_are_whole_also_after_a_kill_and_from_many_at_once(tmp_path):
    path = tmp_path / "folder" / "lines"
    append_line(path, "a")
    with path.open("ab") as file:
        file.write(b"half" * 50_000)
    threads = [threading.Thread(target=lambda n=n: [append_line(path, f"{n} " * 1000) for _ in range(50)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *others = path.read_text().splitlines()
    assert first == "a"
    assert sorted(others) == sorted(f"{n} " * 1000 for n in range(4) for _ in range(50))


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    code = (
        "import resource, signal; from pathlib import Path; from bcnet.lines import append_line; from bcnet.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"path = Path({str(tmp_path / 'x')!r}); append_line(path, 'a' * 900)\n"
        "try: append_line(path, 'b' * 900)\nexcept UserError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert "x: cannot be written (File too large); what stands there stays" in result.stdout
    assert (tmp_path / "x").read_text() == "a" * 900 + "\n"
