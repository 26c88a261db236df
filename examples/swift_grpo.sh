#!/usr/bin/env bash
# SAM-R1's reward in ms-swift's GRPO.
#
#   samr1 data export data/refcocog/train.parquet --for swift --out rows
#   ROWS=rows/rows.jsonl SAM=facebook/sam2-hiera-large bash examples/swift_grpo.sh --model Qwen/Qwen2.5-VL-7B-Instruct
#
# Further arguments go to `swift rlhf`; of an argument that is given twice, the last one counts. A fault of the segmenter
# ends the training with its error.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

exec swift rlhf --rlhf_type grpo --tuner_type full --use_hf true \
    --external_plugins "$here/swift_plugin.py" --reward_funcs samr1 samr1_acc --reward_weights 1 0 \
    --dataset "$ROWS" --strict true --split_dataset_ratio 0 \
    --num_generations 8 --max_completion_length 1024 \
    --output_dir runs/swift "$@"
