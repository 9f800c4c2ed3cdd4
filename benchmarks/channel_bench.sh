#!/bin/sh
# Train a supernet on Channel-Bench-Macro, score its widths, rank them; after a kill the same command goes on where it was.
#   [TRUTH=Results_MobileNet.json] [WIDTHS=FILE] benchmarks/channel_bench.sh mobilenet|resnet METHOD FOLDER [section.key=value ...]
# METHOD is uniform, autoslim, bcnet, bcnetv2, bcnet_distilled or bcnetv2_distilled, e.g.
#   benchmarks/channel_bench.sh resnet bcnetv2_distilled runs/resnet data.root=cifar10 score.calibration_images=1024
set -e
: "${3:?model, method and folder, please: see the first lines of this file}"
config=channel_bench/$1_$2
folder=$3
shift 3
python -m bcnet train "$config" --out "$folder" --resume "$@"
python -m bcnet score "$folder" --widths "${WIDTHS:-all}" --out "$folder/scores.json" "$@"
[ -z "$TRUTH" ] || python -m bcnet rank "$folder/scores.json" --truth "$TRUTH"
