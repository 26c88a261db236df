r"""SAM-R1's reward in TRL's GRPOTrainer.

    samr1 data export data/refcocog/train.parquet --for trl --out rows
    python examples/trl_grpo.py --rows rows/rows.jsonl --model Qwen/Qwen2.5-VL-7B-Instruct \\
        --sam facebook/sam2-hiera-large

A fault of the segmenter ends the training with its error.
"""

import argparse
from pathlib import Path

import datasets

from reward_fns.samr1 import compute_score
from reward_fns.trl import trl_reward


def rows_of(file: Path) -> datasets.Dataset:
    """The rows that `samr1 data export --for trl` wrote; an image is opened when its row is read."""
    return datasets.load_dataset("json", data_files=str(file), split="train").cast_column("image", datasets.Image())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl of samr1 data export")
    parser.add_argument("--model", required=True, help="model folder or hub id of the policy")
    parser.add_argument("--sam", required=True, help="hub id or folder of SAM in transformers' format")
    parser.add_argument("--out", default="runs/trl", help="folder of the checkpoints")
    given = parser.parse_args()

    import trl  # it takes seconds, and the help needs none

    service = {"mode": "embedded", "cache_gb": 8, "cache_dir": None}
    segmenter = {"backend": "transformers", "path": given.sam, "device": "auto", "dtype": "float32", "service": service}
    trainer = trl.GRPOTrainer(
        given.model,
        reward_funcs=trl_reward(compute_score, segmenter=segmenter),
        args=trl.GRPOConfig(output_dir=given.out, num_generations=8, max_completion_length=1024, loss_type="dapo"),
        train_dataset=rows_of(given.rows),
    )
    trainer.train()


if __name__ == "__main__":
    main()
