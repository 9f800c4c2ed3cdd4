#!/bin/sh
# All rows of the speed record that need a GPU: benchmarks/gpu.sh FOLDER [more arguments, e.g. --quick]
# Random weights and noise for images: no data set is needed. Writes step_*.json and score_*.json into FOLDER.
set -e
cd "$(dirname "$0")/.."
out=${1:?which folder? see the first lines of this file}
shift
for model in mobilenet resnet; do
    python benchmarks/step.py --model $model --device cuda --batch 256 --out "$out" "$@"
done
python benchmarks/score.py --device cuda --widths all --images 5000 --batch 2500 --out "$out" "$@"
