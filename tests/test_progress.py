import pytest

from bcnet import progress
from bcnet.progress import notice


@pytest.fixture(autouse=True)
def nothing_said_yet():
    notice.cache_clear()
    yield
    notice.cache_clear()


def test_a_note_is_printed_once(capsys):
    for message in ("one", "two", "one"):
        notice(message)
    assert capsys.readouterr() == ("", "bcnet: note: one\nbcnet: note: two\n")


def test_only_the_first_process_prints_notes(capsys, monkeypatch):
    monkeypatch.setattr(progress, "process_rank", lambda: 1)
    notice("one")
    assert capsys.readouterr() == ("", "")
