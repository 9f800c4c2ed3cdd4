import json
import os
from pathlib import Path

import pytest


def published(name: str) -> Path:
    file = Path(os.environ.get("BCNET_DATA", "")) / name
    if not file.is_file():
        pytest.skip(f"BCNET_DATA does not name a folder with {name} in it")
    return file


@pytest.fixture
def published_networks() -> dict:
    """Networks of DenseNAS, with multiply-adds and params in millions."""
    return json.loads(published("published/widths.json").read_text())["densenas"]


@pytest.fixture
def published_latency() -> Path:
    return published("densenas/lat_list_densenas_mbv2_xp32.json")


@pytest.fixture
def resnet_latency() -> Path:
    return published("densenas/lat_list_resv2_32.json")
