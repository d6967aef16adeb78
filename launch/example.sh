#!/usr/bin/env bash
# From images to a model for others: prepare, look, train, evaluate, export.
#
#   launch/example.sh IMAGES PAIRS.bin OUTPUT [settings of launch/train.py]
#
# IMAGES holds a folder of images for each person, PAIRS.bin a verification set of other people in InsightFace's form.
# RANKS=2 trains with two processes where there is no GPU; PORT=29501 beside another run.
set -euo pipefail
images=$1 pairs=$2 output=$3
shift 3

python launch/prepare_data.py imagefolder "$images" "$output/data"
python launch/prepare_data.py inspect "$output/data"
deepspeed ${RANKS:+--num_accelerators $RANKS} --master_port "${PORT:-29500}" launch/train.py --config launch/recipes/lfw.yaml \
    --data.train "$output/data" --eval.bin "$pairs" --output_dir "$output/run" "$@"
python launch/evaluate.py --model "$output/run" --pairs "$pairs" --output_dir "$output/evaluation"
python launch/export.py hub "$output/run" "$output/hub"
python launch/export.py onnx "$output/run" "$output/model.onnx"
