#!/bin/sh
# Everything a change must pass: style, types, the API reference, tests. Runs in a few minutes on two cores, without network.
set -e
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
python tools/build_reference.py build/api
python -m pytest "$@"
