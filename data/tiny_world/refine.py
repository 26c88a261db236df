"""Teach the tiny policy to look at a mask on the image: to keep it, or to mend it roughly.

    python data/tiny_world/refine.py --out data/checkpoints/tiny_policy_refine

The recipe samr1_refine_tiny starts from this policy. The tokenizer of `data/checkpoints/tiny_policy` gets one token
more, `done`. Two stages follow, on scenes of the train split:

    1. masks    the vision tower sees masks on the images, parts of shapes: it predicts for each of its 5 x 5 tokens how
                much of it the mask covers, and how well the mask fits the shape there. Its tokens of an image without
                a mask stay as they are
    2. mend     the language model learns dialogues: a first answer as before; the image with the small SAM's mask;
                then `done` after a good mask, else a correction. The corrections are rough, and some turns stop too
                early or go on too long, so that reinforcement can teach how to mend and when to stop
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.utils import ModelOutput

from data.tiny_world import refine_figures, shapes, tiny_policy
from data.tiny_world.lessons import CELLS, Example, Eyes, answer_text, draw_pool, gaze_loss, tokens_of
from data.tiny_world.refine_lessons import (
    COVERS,
    FITS,
    GOOD,
    NOISE,
    ROUGH,
    Seen,
    Turn,
    dialogue,
    drawn_mask,
    mask_targets,
    seen_of,
    tinted,
)
from data.tiny_world.warm_up import GAZE_LAYER, Teacher
from samr1_verl.scoring.turns import DONE

POLICY = Path(__file__).resolve().parents[1] / "checkpoints" / "tiny_policy"
GRID = CELLS * tiny_policy.MERGE  # patches per side
IMAGES, DIALOGUES = 16, 12  # per step of stage 1 and of stage 2
WEIGHTS = ("config.json", "model.safetensors")  # the other files of the policy stay
CHOICE = 0.5  # weight of the tokens that stop or go on, beside their part in the mean of all tokens
TURNS = (0.3, 0.5, 0.2)  # shares of the batches of stage 2 whose dialogues have 1, 2 and 3 turns


def with_done(tokenizer: str) -> str:
    """The text of a tokenizer.json with one word more, `done`, behind all others."""
    parts = json.loads(tokenizer)
    vocabulary = parts["model"]["vocab"]
    vocabulary.setdefault(DONE, max(vocabulary.values()) + 1)
    return json.dumps(parts, indent=2, ensure_ascii=False)


def write_processor(policy: Path, out: Path) -> None:
    """The policy's processor with the token `done`. Files that stay the same are links where both have one parent."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(policy.iterdir()):
        link = out / file.name
        if file.name == "tokenizer.json":
            link.write_text(with_done(file.read_text()))
        elif file.name not in ("README.md", *WEIGHTS):
            link.unlink(missing_ok=True)
            near = policy.resolve().parent == out.resolve().parent
            link.symlink_to(Path("..") / policy.name / file.name if near else file.absolute())


def grown(policy: Path, vocabulary: int) -> Qwen2_5_VLForConditionalGeneration:
    """The policy with a row more in both embeddings: the mean of all others, in fp32."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy, dtype=torch.float32)
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            rows[old:] = rows[:old].mean(dim=0)
    return model


def write_model(model: Qwen2_5_VLForConditionalGeneration, policy: Path, out: Path) -> None:
    """Write the weights, and the config.json of `policy` with the number of tokens."""
    config = json.loads((policy / "config.json").read_text())
    config["text_config"]["vocab_size"] = model.get_input_embeddings().num_embeddings
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copyfile(Path(folder, "model.safetensors"), out / "model.safetensors")


class RefineTeacher(Teacher):
    """Losses of the two stages. `seen` has the answers about each shape for the first scenes of the pool."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2_5_VLProcessor,
        pool: list[Example],
        seen: list[list[Seen]],
        seed: int,
    ):
        super().__init__(model, processor, pool, seed)
        self.eyes = Eyes(model.config.text_config.hidden_size, (len(COVERS) + 1, len(FITS) + 1))
        self.seen = seen
        self.answer_tag = processor.tokenizer.convert_tokens_to_ids("<answer>")
        self.sights: dict[Seen, torch.Tensor] = {}
        self.look()
        self.plain = self.tokens  # of images without a mask, [N, 25, width]

    @torch.no_grad()
    def look_at_masks(self) -> None:
        """Compute the visual tokens of all images with and without a mask, once, between the two stages."""
        self.look()
        self.plain = self.tokens
        for example, seen in zip(self.pool, self.seen, strict=False):
            tokens = self.see_images([tinted(example, answer.mask) for answer in seen])
            self.sights |= zip(seen, tokens.view(len(seen), CELLS * CELLS, -1), strict=True)

    def see_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Visual tokens [images·25, width]."""
        pixels = self.processor.image_processor(images, return_tensors="pt")
        return self.model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output

    def masks(self, size: int) -> torch.Tensor:
        """Loss of stage 1 on a new batch: `size` images with masks, and half as many that must look as before."""
        chosen = self.rng.integers(len(self.pool), size=size)
        masked = [(self.pool[number], drawn_mask(self.pool[number], self.rng)) for number in chosen]
        targets = np.concatenate([mask_targets(*pair) for pair in masked])
        plain = chosen[: size // 2]
        features = self.see_images([tinted(*pair) for pair in masked] + [tinted(self.pool[n], None) for n in plain])
        split = size * CELLS * CELLS
        kept = F.mse_loss(features[split:], self.plain[plain].flatten(0, 1)) / self.plain.var()
        return 2 * self.eyes.loss(features[:split], torch.from_numpy(targets)) + 5 * kept

    def mend(self, size: int) -> torch.Tensor:
        """Loss of stage 2 on a new batch of sequences: the cross-entropy of all taught tokens, and the gaze."""
        count = 1 + int(self.rng.choice(len(TURNS), p=TURNS))  # one for the batch: padding would cost half of the time
        drawn = [self._draw(count) for _ in range(size)]
        rows = [self.encode(sentence, turns) for _, sentence, _, turns in drawn]
        ids = padded([ids for ids, _ in rows], self.processor.tokenizer.pad_token_id)
        numbers, mask = padded([numbers for _, numbers in rows]), padded([[1] * len(ids) for ids, _ in rows])
        sights = [
            self.plain[n] if turn.shown is None else self.sights[turn.shown] for n, *_, turns in drawn for turn in turns
        ]
        output = self.read(ids, mask, torch.stack(sights))
        loss = F.cross_entropy(output.logits[:, :-1][numbers[:, 1:] > 0], ids[:, 1:][numbers[:, 1:] > 0])
        chosen = (numbers[:, 1:] > 1) & (ids[:, :-1] == self.answer_tag)  # the tokens that stop or go on
        if chosen.any():
            loss = loss + CHOICE * F.cross_entropy(output.logits[:, :-1][chosen], ids[:, 1:][chosen])
        targets = [tokens_of(self.pool[n].boxes[target]) for n, _, target, _ in drawn]
        return loss + 0.5 * self._gaze(output.attentions[GAZE_LAYER][:, :2], ids, numbers, targets)

    def read(self, ids: torch.Tensor, mask: torch.Tensor, sights: torch.Tensor) -> ModelOutput:
        """The model's output with its attention weights; ids and mask [B, T], visual tokens [images, 25, width]."""
        shown = ids == self.model.config.image_token_id
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(shown[..., None], sights)
        grid = torch.tensor([[1, GRID, GRID]]).expand(len(sights), 3)
        positions, _ = self.model.model.get_rope_index(ids, shown.long(), image_grid_thw=grid, attention_mask=mask)
        return self.model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, output_attentions=True)

    def _gaze(
        self, attention: torch.Tensor, ids: torch.Tensor, numbers: torch.Tensor, targets: list[np.ndarray]
    ) -> torch.Tensor:
        """The mean of `gaze_loss` over the taught turns: each looks at the shape, [25] bool, in all images so far."""
        shown = ids == self.model.config.image_token_id
        images = int(shown[0].sum()) // (CELLS * CELLS)  # the same number in all rows
        there = torch.from_numpy(np.array(targets)).repeat(1, images).float()
        here = torch.zeros(ids.shape).masked_scatter(shown, there)
        loss, taught = torch.zeros(()), (numbers > 0).sum()
        for turn in range(1, images + 1):
            now = numbers == turn
            if now.any():
                loss = loss + gaze_loss(attention, here, now) * now.sum() / taught
        return loss

    def _draw(self, count: int) -> tuple[int, str, int, list[Turn]]:
        """The number of an example, a sentence about it, the number of the shape, and `count` turns."""
        number = int(self.rng.integers(len(self.pool if count == 1 else self.seen)))
        example = self.pool[number]
        sentence, target = shapes.ask(example.scene, self.rng)
        if count == 1:
            return number, sentence, target, [Turn(None, answer_text(example, target, True, self.rng))]
        return number, sentence, target, dialogue(example, self.seen[number], target, count, self.rng)

    def encode(self, sentence: str, turns: list[Turn]) -> tuple[list[int], list[int]]:
        """The tokens of a dialogue, and for each the number of the turn that teaches it, from 1 on; 0: not taught."""
        tokenizer, image_token = self.processor.tokenizer, self.processor.image_token
        ids: list[int] = []
        numbers: list[int] = []
        for number, turn in enumerate(turns, start=1):
            asked = self._chat(sentence).replace(image_token, image_token * CELLS * CELLS)
            question = tokenizer(asked if number == 1 else "\n" + asked)["input_ids"]
            answer = tokenizer(turn.text + tokenizer.eos_token)["input_ids"]
            ids += question + answer
            numbers += [0] * len(question) + [number * turn.taught] * len(answer)
        return ids, numbers


def padded(rows: list[list[int]], value: int = 0) -> torch.Tensor:
    """Rows of whole numbers as [rows, longest] int64, with `value` to the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


CARD = """# The tiny policy that looks at its mask

The policy of `../tiny_policy`, {parameters:.1f} M parameters, with one token more, `done`, made by

    python data/tiny_world/refine.py --out data/checkpoints/tiny_policy_refine --seed {seed}

Two stages on scenes of the train split: {masks} steps of dense prediction by the vision tower on {pool} images with
masks, batches of {images}; {mend} steps of dialogues about {scenes} scenes with the small SAM's masks, batches of
{dialogues}. The lesson says `done` about a mask with an IoU above {good}; in {noise:.0%} of the turns it does the
opposite. A correction's box has each side at {rough[0]} of its distance from the centre, standard deviation {rough[1]}.

On {asked} validation scenes, greedy, with the small SAM:

{table}

Weights: fp32 safetensors, Apache-2.0, trained from scratch on drawn images only.
"""


def main(
    out: Annotated[Path, typer.Option(help="folder for the policy, in the hub's format")],
    policy: Annotated[Path, typer.Option(help="folder of the policy to start from")] = POLICY,
    work: Annotated[Path, typer.Option(help="folder of masks and finished stages, which a rerun loads")] = Path(
        "runs/refine"
    ),
    sam: Annotated[Path, typer.Option(help="folder of the small SAM")] = Path("data/weights/small_sam"),
    seed: Annotated[int, typer.Option(min=0, help="seed of scenes and batches")] = 0,
    pool: Annotated[int, typer.Option(min=50, help="number of scenes of the first answers and of stage 1")] = 1000,
    scenes: Annotated[int, typer.Option(min=1, help="number of scenes of the dialogues")] = 256,
    masks: Annotated[int, typer.Option(min=1, help="steps of stage 1")] = 300,
    mend: Annotated[int, typer.Option(min=1, help="steps of stage 2")] = 1000,
    asked: Annotated[int, typer.Option(min=1, help="validation scenes of the figures")] = 100,
) -> None:
    """Teach the policy and write it."""
    torch.manual_seed(seed)
    segmenter = refine_figures.segmenter_of(sam)
    write_processor(policy, out)
    processor = Qwen2_5_VLProcessor.from_pretrained(out)
    model = grown(policy, len(processor.tokenizer))
    drawn = draw_pool("train", seed, pool)
    work.mkdir(parents=True, exist_ok=True)
    seen = seen_of("train", seed, drawn[:scenes], segmenter, work / "masks")
    teacher = RefineTeacher(model, processor, drawn, seen, seed)
    teacher.run("masks", masks, 6e-4, lambda: teacher.masks(IMAGES), work)
    teacher.look_at_masks()
    teacher.run("mend", mend, 8e-4, lambda: teacher.mend(DIALOGUES), work)
    write_model(model, policy, out)
    figures = asyncio.run(refine_figures.figures(out, segmenter, work / "val", asked, seed))
    typer.echo(json.dumps(figures))
    card = CARD.format(
        parameters=model.num_parameters() / 1e6, seed=seed, masks=masks, mend=mend, pool=len(drawn), scenes=len(seen),
        images=IMAGES, dialogues=DIALOGUES, good=GOOD, noise=NOISE, rough=ROUGH, asked=asked,
        table=refine_figures.table(figures),
    )  # fmt: skip
    (out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
