r"""SAM-R1's reward in TRL's GRPOTrainer.

    samr1 data export data/refcocog/train.parquet --for trl --out rows
    python examples/trl_grpo.py --rows rows/rows.jsonl --model Qwen/Qwen2.5-VL-7B-Instruct \
        --sam facebook/sam2-hiera-large --output_dir runs/trl --num_generations 8 --max_completion_length 1024

Further options are those of TRL's GRPOConfig. A fault of the segmenter ends the training with its error.
"""

from dataclasses import dataclass, field

import datasets
import trl

from reward_fns.samr1 import compute_score
from reward_fns.trl import trl_reward


@dataclass
class Arguments:
    rows: str = field(metadata={"help": "rows.jsonl of samr1 data export"})
    model: str = field(metadata={"help": "model folder or hub id of the policy"})
    sam: str = field(metadata={"help": "hub id or folder of SAM"})
    sam_backend: str = field(default="transformers", metadata={"help": "backend of SAM, as in samr1.segmenter.backend"})


def main() -> None:
    given, config = trl.TrlParser((Arguments, trl.GRPOConfig)).parse_args_and_config()
    rows = datasets.load_dataset("json", data_files=given.rows, split="train")
    rows = rows.cast_column("image", datasets.Image())  # an image is opened when its row is read
    # Every training process has a segmenter of its own; mode http asks servers of `samr1 serve`.
    service = {"mode": "embedded", "cache_gb": 8, "cache_dir": None}
    sam = {"backend": given.sam_backend, "path": given.sam, "device": "auto", "dtype": "float32", "service": service}
    trainer = trl.GRPOTrainer(
        given.model, reward_funcs=trl_reward(compute_score, segmenter=sam), args=config, train_dataset=rows
    )
    trainer.train()


if __name__ == "__main__":
    main()
