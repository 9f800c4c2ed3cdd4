"""Some hundred damaged and hostile inputs for every reader; ``benchmarks/fuzz.py`` tries 100,000."""

import sys
from pathlib import Path

import pytest


@pytest.mark.posix
def test_inputs_are_refused_in_a_line_or_read_right(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "benchmarks"), *sys.path])
    from fuzz import fuzz

    readers, failures = fuzz(26 * 30, seed=24)
    assert not failures
    assert all(reader.results["refused"] + reader.results["accepted"] == 30 for reader in readers)
