import io
import sys
from itertools import pairwise

import pytest

from bcnet import progress
from bcnet.progress import ProgressBar, notice


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


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def test_a_log_says_within_ten_seconds_how_long_it_takes(capsys, monkeypatch):
    clock, lines = Clock(monkeypatch), []
    with ProgressBar("training", 1000) as bar:
        for step in range(1, 200):
            clock.now += 0.7
            bar.update(step, "loss 2.1")
            lines += [(clock.now - 100, line) for line in capsys.readouterr().err.splitlines()]
    times = [round(seconds, 1) for seconds, _ in lines]
    assert times[0] < 10
    assert all(30 <= later - before < 31 for before, later in pairwise(times))
    assert lines[0][1] == "training: 8/1000, loss 2.1, 0:11:34 left"


def test_what_an_earlier_process_did_is_no_speed(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with ProgressBar("scoring", 100, done=40) as bar:
        assert bar.seconds_left() is None
        bar.skip(10)
        assert bar.seconds_left() is None
        clock.now += 20
        bar.update(60)
        assert bar.seconds_left() == pytest.approx(80)
        clock.now += 15  # within a step
        assert bar.seconds_left() == pytest.approx(65)
    assert capsys.readouterr().err == "scoring: 60/100, 0:01:20 left\n"


def test_what_is_done_once_for_all_steps_is_no_speed(monkeypatch):
    clock = Clock(monkeypatch)
    with ProgressBar("", 10) as bar:
        clock.now += 60
        bar.begin()
        clock.now += 2
        bar.update(1)
        assert bar.seconds_left() == 18
        bar.begin()  # too late: steps are counted already
        assert bar.seconds_left() == 18


def test_a_terminal_shows_the_time_left_of_slow_steps(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock, terminal = Clock(monkeypatch), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = ProgressBar("training", 10)
    clock.now += 100  # longer than rich looks back
    bar.update(1)
    clock.now += 40
    assert str(progress._TimeLeft(bar).render(None)) == "0:14:20"
