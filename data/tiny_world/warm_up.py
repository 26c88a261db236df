"""Warm up the tiny policy by supervised fine-tuning on the train split, only as far as reinforcement learning needs it.

    python data/tiny_world/warm_up.py --out data/checkpoints/tiny_policy

There are three stages, all on scenes drawn with the seed of the train split:

    1. see      the vision tower alone predicts, for each of its 5 x 5 tokens, colour, kind and box of the shape there
    2. answer   the language model learns the form of an answer, the right shape and its exact box. The visual tokens of
                stage 1 stay fixed. Two attention heads are trained to look at the visual tokens of the shape: the first
                from the shape's name on, the second from its place on. Without that, the boxes soon fit a shape well,
                but the choice of the shape stays at chance for a long time
    3. blur     a short training on boxes that are wrong on purpose: each side is moved, by a random amount, to about
                60 % of its distance from the centre. The policy then names about the right shape with the wrong extent,
                and its answers vary. The mask reward can teach it the extent; a warm-up to exact boxes would leave
                nothing to learn
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from data.tiny_world import shapes, tiny_policy
from data.tiny_world.lessons import (
    CELLS,
    IGNORE,
    SHRINK_MEAN,
    SHRINK_STD,
    Example,
    Eyes,
    answer_text,
    dense_targets,
    draw_pool,
    gaze_loss,
    tokens_of,
)
from samr1_verl.answers import Unusable, parse_answer
from samr1_verl.prompts.templates import as_question, load_prompt

GAZE_LAYER = 2  # index among four layers
STAGES = ("see", "answer", "blur", "talk", "masks", "mend")  # talkative.py has the fourth, refine.py the last two


class Teacher:
    """Batches and losses for one model. Call `look` after stage 1 and before the other stages."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2_5_VLProcessor,
        pool: list[Example],
        seed: int,
    ):
        self.model, self.processor, self.pool = model, processor, pool
        self.eyes = Eyes(model.config.text_config.hidden_size)
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.prompt = load_prompt("tiny")
        self.tokens = torch.empty(0)

    def _see(self, examples: list[Example]) -> torch.Tensor:
        """Visual tokens [B·25, width]."""
        pixels = self.processor.image_processor([Image.fromarray(e.image) for e in examples], return_tensors="pt")
        return self.model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output

    def see(self, size: int) -> torch.Tensor:
        """Loss of stage 1 on a new batch."""
        chosen = [self.pool[i] for i in self.rng.integers(len(self.pool), size=size)]
        targets = torch.from_numpy(np.concatenate([dense_targets(e) for e in chosen]))
        return self.eyes.loss(self._see(chosen), targets)

    @torch.no_grad()
    def look(self) -> None:
        """Compute the visual tokens of the whole pool, [N, 25, width], once."""
        chunks = [self.pool[i : i + 64] for i in range(0, len(self.pool), 64)]
        flat = torch.cat([self._see(chunk) for chunk in track(chunks, "looking")])
        self.tokens = flat.view(len(self.pool), CELLS * CELLS, -1)
        self.model.set_attn_implementation("eager")  # the implementation that returns its attention weights

    def _chat(self, sentence: str) -> str:
        text = self.prompt.render(
            sentence=as_question(sentence), frame="absolute", width=tiny_policy.FRAME, height=tiny_policy.FRAME
        )
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def answer(self, size: int, blur: bool, most_repeats: int = 1) -> torch.Tensor:
        """Loss of stage 2, or of stage 3 with `blur`, on a new batch: the response's cross-entropy and the gaze."""
        chosen = self.rng.integers(len(self.pool), size=size)
        tokenizer, image_token = self.processor.tokenizer, self.processor.image_token
        texts, responses, looked_at = [], [], []
        for example in (self.pool[i] for i in chosen):
            sentence, target = shapes.ask(example.scene, self.rng)
            responses.append(answer_text(example, target, blur, self.rng, most_repeats) + tokenizer.eos_token)
            texts.append(self._chat(sentence).replace(image_token, image_token * CELLS * CELLS) + responses[-1])
            looked_at.append(tokens_of(example.boxes[target]))
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        labels = ids.masked_fill(mask == 0, IGNORE)
        for row, response in enumerate(tokenizer(responses)["input_ids"]):
            labels[row, : mask[row].sum() - len(response)] = IGNORE
        shown = ids == self.model.config.image_token_id
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(shown[..., None], self.tokens[chosen])
        grid = torch.tensor([[1, CELLS * tiny_policy.MERGE, CELLS * tiny_policy.MERGE]]).expand(size, 3)
        positions, _ = self.model.model.get_rope_index(ids, shown.long(), image_grid_thw=grid, attention_mask=mask)
        output = self.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, labels=labels, output_attentions=True
        )
        look_here = torch.zeros(ids.shape).masked_scatter(shown, torch.from_numpy(np.array(looked_at)).float())
        return output.loss + 0.5 * gaze_loss(output.attentions[GAZE_LAYER][:, :2], look_here, labels != IGNORE)

    def run(self, name: str, steps: int, rate: float, step_loss: Callable[[], torch.Tensor], work: Path) -> None:
        """Train by AdamW with a warm-up of 5 % and a cosine decay. A stage that `work` holds is loaded instead."""
        self.rng = np.random.default_rng(self.seed + STAGES.index(name))  # a resumed run draws the same numbers
        kept = work / f"{name}.pt"
        parts = nn.ModuleDict({"model": self.model, "eyes": self.eyes})
        if kept.exists():
            parts.load_state_dict(torch.load(kept, weights_only=True))
            return
        optimiser = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, total_steps=steps, pct_start=0.05, div_factor=20, final_div_factor=0.5
        )
        started, recent = time.monotonic(), []
        for step in range(1, steps + 1):
            loss = step_loss()
            loss.backward()
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            recent.append(loss.item())
            if step % 50 == 0 or step == steps:
                typer.echo(f"{name} {step}/{steps} loss {np.mean(recent):.4f} {time.monotonic() - started:.0f} s")
                recent = []
        torch.save(parts.state_dict(), kept)

    @torch.no_grad()
    def examine(self, examples: list[Example], seed: int = 0, max_tokens: int = 64) -> dict[str, float]:
        """Figures of greedy answers about `examples`: shares with the right form and shape, and the mean box IoU."""
        rng = np.random.default_rng(seed)
        asked = [shapes.ask(example.scene, rng) for example in examples]
        inputs = self.processor(
            text=[self._chat(sentence) for sentence, _ in asked],
            images=[Image.fromarray(e.image) for e in examples],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        tokens = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        texts = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        formed, right, overlaps = 0, 0, []
        for text, example, (_, target) in zip(texts, examples, asked, strict=True):
            answer = parse_answer(text)
            if isinstance(answer, Unusable):
                overlaps.append(0.0)
                continue
            formed += 1
            box = np.array(answer.objects_policy[0].box)
            centre = (box[:2] + box[2:]) / 2
            distances = np.abs((example.boxes[:, :2] + example.boxes[:, 2:]) / 2 - centre).sum(axis=1)
            right += int(distances.argmin() == target)
            overlaps.append(box_iou(box, example.boxes[target]))
        count = len(examples)
        return {"format": formed / count, "right_shape": right / count, "box_iou": float(np.mean(overlaps))}


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes [4], x1 y1 x2 y2, continuous coordinates."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = max(width, 0) * max(height, 0)
    return float(intersection / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - intersection))


CARD = """# The tiny policy

A Qwen2.5-VL of {parameters:.1f} M parameters for the tiny world of `data/tiny_world/shapes.py`, made by

    python data/tiny_world/warm_up.py --out data/checkpoints/tiny_policy --seed {seed}

Three stages on {scenes} scenes of the train split, batches of {batch}: {see} steps of dense prediction by the vision
tower, {answer} steps of answers with exact boxes, {blur} steps of answers whose boxes are wrong on purpose
(each side at {mean} of its distance from the centre, standard deviation {std}). On {asked} validation scenes, greedy:

| | format | right shape | box IoU |
|---|---|---|---|
| before blurring | {exact[format]:.3f} | {exact[right_shape]:.3f} | {exact[box_iou]:.3f} |
| this checkpoint | {final[format]:.3f} | {final[right_shape]:.3f} | {final[box_iou]:.3f} |

Weights: fp32 safetensors, Apache-2.0, trained from scratch on drawn images only.
"""


def main(
    out: Annotated[Path, typer.Option(help="folder for the policy, in the hub's format")],
    work: Annotated[Path, typer.Option(help="folder of finished stages, which a rerun loads")] = Path("runs/warm_up"),
    seed: Annotated[int, typer.Option(min=0, help="seed of the scenes, the weights and the batches")] = 0,
    scenes: Annotated[int, typer.Option(min=50, help="number of training scenes")] = 4000,
    see: Annotated[int, typer.Option(min=1, help="steps of stage 1")] = 500,
    answer: Annotated[int, typer.Option(min=1, help="steps of stage 2")] = 1800,
    blur: Annotated[int, typer.Option(min=1, help="steps of stage 3")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="examples per step")] = 48,
) -> None:
    """Warm up the tiny policy."""
    work.mkdir(parents=True, exist_ok=True)
    processor = tiny_policy.build_processor()
    model = tiny_policy.build_model(processor.tokenizer, seed)
    teacher = Teacher(model, processor, draw_pool("train", seed, scenes), seed)
    held_out = draw_pool("val", seed, 100)
    teacher.run("see", see, 2e-3, lambda: teacher.see(batch), work)
    teacher.look()
    teacher.run("answer", answer, 1e-3, lambda: teacher.answer(batch, blur=False), work)
    exact = teacher.examine(held_out)
    typer.echo(f"before blurring: {json.dumps(exact)}")
    teacher.run("blur", blur, 5e-4, lambda: teacher.answer(batch, blur=True), work)
    final = teacher.examine(held_out)
    typer.echo(f"after blurring: {json.dumps(final)}")
    tiny_policy.save(model, processor, out)
    card = CARD.format(
        parameters=model.num_parameters() / 1e6, seed=seed, scenes=scenes, batch=batch, see=see, answer=answer,
        blur=blur, mean=SHRINK_MEAN, std=SHRINK_STD, asked=len(held_out), exact=exact, final=final,
    )  # fmt: skip
    (out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
