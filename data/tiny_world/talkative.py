"""Make a talkative tiny policy: the committed one, taught to repeat its reasoning 1 to 8 times.

    python data/tiny_world/talkative.py --out runs/talkative_policy

Its answers have 29 to about 90 tokens, so that a normaliser per rollout and one per group weigh tokens differently. The
ablation trains it (benchmarks/ablation.py --world talkative).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from data.tiny_world import tiny_policy
from data.tiny_world.lessons import draw_pool
from data.tiny_world.warm_up import Teacher

MOST_REPEATS = 8


def main(
    out: Annotated[Path, typer.Option(help="folder for the policy, in the hub's format")],
    policy: Annotated[Path, typer.Option(help="folder of the policy to start from")] = Path(
        "data/checkpoints/tiny_policy"
    ),
    scenes: Annotated[int, typer.Option(min=50, help="number of training scenes")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="training steps")] = 150,
    batch: Annotated[int, typer.Option(min=1, help="examples per step")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="seed of scenes and batches")] = 0,
) -> None:
    """Teach the policy and write it."""
    processor = Qwen2_5_VLProcessor.from_pretrained(policy)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy, dtype=torch.float32)
    teacher = Teacher(model, processor, draw_pool("train", seed, scenes), seed)
    teacher.look()
    work = out / "stages"
    work.mkdir(parents=True, exist_ok=True)
    teacher.run("talk", steps, 3e-4, lambda: teacher.answer(batch, blur=True, most_repeats=MOST_REPEATS), work)
    typer.echo(json.dumps(teacher.examine(draw_pool("val", seed, 100), max_tokens=160)))
    tiny_policy.save(model, processor, out)


if __name__ == "__main__":
    typer.run(main)
