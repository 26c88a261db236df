"""The lesson about masks: its tokens are the chat template's, it teaches the right turns, and the policy learned it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from data.tiny_world import lessons, refine, refine_figures, refine_lessons, shapes, tiny_policy
from data.tiny_world.refine_lessons import FIRST, LEVELS, Seen
from samr1_verl.answers import Answer, has_think_format, parse_answer
from samr1_verl.scoring.refinement import picture, spoken
from samr1_verl.scoring.turns import says_done

CHECKPOINTS = refine.POLICY.parent
COMMITTED = CHECKPOINTS / "tiny_policy_refine"
CELLS = lessons.CELLS * lessons.CELLS


@pytest.fixture(scope="module")
def examples() -> list[lessons.Example]:
    return lessons._draw(("train", 0, 0, 6))


@pytest.fixture(scope="module")
def seen(examples) -> list[list[Seen]]:
    """As `seen_of` makes it, with parts of outlines instead of SAM's masks."""
    rng = np.random.default_rng(0)
    rows = []
    for example in examples:
        rows.append([])
        for number, shape in enumerate(example.scene.shapes):
            for level in LEVELS:
                text = lessons.answer_text(example, number, True, rng, shrink=level)
                mask = refine_lessons.outline_mask(shape)
                if level == FIRST:
                    mask[:, int(example.boxes[number][[0, 2]].mean()) :] = False
                rows[-1].append(Seen(text, number, mask, 0.5 if level == FIRST else 0.97))
    return rows


@pytest.fixture(scope="module")
def teacher(examples, seen, tmp_path_factory) -> refine.RefineTeacher:
    folder = tmp_path_factory.mktemp("policy")
    refine.write_processor(refine.POLICY, folder)
    processor = AutoProcessor.from_pretrained(folder)
    torch.manual_seed(0)
    model = refine.grown(refine.POLICY, len(processor.tokenizer))
    return refine.RefineTeacher(model, processor, examples, seen, 0)


def test_the_tokenizer_keeps_all_ids_and_has_one_token_more(teacher) -> None:
    before, after = AutoProcessor.from_pretrained(refine.POLICY).tokenizer, teacher.processor.tokenizer
    words = before.get_vocab()
    assert after.get_vocab() == {**words, "done": len(words)}
    text = "<think>it is the red circle at the upper left</think><answer>done</answer>"
    ids = after(text)["input_ids"]
    assert after.unk_token_id not in ids and after.decode(ids) == text
    assert len(after("done")["input_ids"]) == 1
    assert "done" not in tiny_policy.vocabulary(), "the policies of other recipes keep their tokenizer"


def test_a_grown_policy_says_what_it_said(teacher, examples) -> None:
    old = AutoModelForImageTextToText.from_pretrained(refine.POLICY, dtype=torch.float32)
    new = refine.grown(refine.POLICY, len(teacher.processor.tokenizer))
    image = Image.fromarray(examples[0].image)
    inputs = teacher.processor(text=[teacher._chat("the red circle")], images=[image], return_tensors="pt")
    with torch.no_grad():
        before, after = old(**inputs).logits, new(**inputs).logits
    assert after.shape[-1] == before.shape[-1] + 1
    assert torch.allclose(after[..., :-1], before, atol=1e-5)


def test_the_tokens_of_a_dialogue_are_the_chat_templates(teacher, examples, seen) -> None:
    processor, rng = teacher.processor, np.random.default_rng(1)
    for example, answers in zip(examples, seen, strict=True):
        sentence, target = shapes.ask(example.scene, rng)
        turns = refine_lessons.dialogue(example, answers, target, 3, rng)
        question = processor.tokenizer.decode(processor.tokenizer(teacher._chat(sentence))["input_ids"])
        text = question.split("<|vision_end|>")[1].split("<|im_end|>")[0]
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        messages = [message for turn in turns for message in (user, spoken(turn.text))]
        rendered = processor.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        images = [refine_lessons.tinted(example, turn.shown and turn.shown.mask) for turn in turns]
        expected = processor(text=[rendered], images=images)["input_ids"][0]
        ids, _ = teacher.encode(sentence, turns)
        assert ids == list(expected)
        assert processor.tokenizer.unk_token_id not in ids


def test_only_tokens_of_taught_turns_are_taught(teacher, examples, seen) -> None:
    tokenizer, rng = teacher.processor.tokenizer, np.random.default_rng(2)
    for wrong in (0.0, 1.0):
        turns = refine_lessons.dialogue(examples[0], seen[0], 0, 3, rng, wrong=wrong)
        ids, numbers = teacher.encode("the red circle", turns)
        for number, turn in enumerate(turns, start=1):
            written = tokenizer.decode([token for token, n in zip(ids, numbers, strict=True) if n == number])
            assert written == (turn.text + "<|im_end|>" if turn.taught else "")
        assert wrong == 0 or not turns[0].taught, "an answer about a wrong shape is shown, not taught"
        assert all(turn.taught for turn in turns[1:])


def test_a_good_mask_is_kept_and_any_other_is_mended(examples, seen, monkeypatch) -> None:
    monkeypatch.setattr(refine_lessons, "NOISE", 0.0)
    rng = np.random.default_rng(3)
    for shown in seen[0]:
        reply = refine_lessons.reply_to(shown, examples[0], 0, rng)
        assert says_done(reply) == (shown.shape == 0 and shown.iou > refine_lessons.GOOD) and has_think_format(reply)
        if not says_done(reply):
            answer = parse_answer(reply)
            assert isinstance(answer, Answer)
            box = np.array(answer.objects_policy[0].box)
            assert np.abs(box - examples[0].boxes[0]).max() < 20, "about the right shape"


def test_the_lesson_shows_a_mask_as_the_rollout_does(examples, seen, tmp_path: Path) -> None:
    scene, _ = shapes.scene("train", 0, 0)
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    mask = scene.masks[0]
    expected = picture(str(tmp_path / "scene.png"), mask, (tiny_policy.FRAME,) * 2)
    small = np.array(Image.fromarray(mask).resize((tiny_policy.FRAME,) * 2, Image.Resampling.NEAREST))
    assert np.array_equal(np.asarray(refine_lessons.tinted(examples[0], small)), np.asarray(expected))


def test_targets_of_visual_tokens_say_cover_and_fit(examples) -> None:
    example = examples[0]
    mask = refine_lessons.outline_mask(example.scene.shapes[0])
    targets = refine_lessons.mask_targets(example, mask)
    assert targets.shape == (CELLS, 2)
    best = len(refine_lessons.FITS)
    assert (targets[:, 1] == best).sum() >= 1 and set(targets[:, 1]) == {best, 0, lessons.IGNORE}
    assert (targets[targets[:, 0] > 0, 1] == best).any(), "the covered tokens are the shape's"
    nothing = refine_lessons.mask_targets(example, np.zeros_like(mask))
    assert nothing[:, 0].max() == 0 and nothing[:, 1].max() == 0


@pytest.mark.slow
def test_a_few_steps_of_each_stage_lower_its_loss(teacher, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(refine, "TURNS", (0, 1, 0))  # the first turn is learned already
    teacher.look_at_masks()
    for stage, loss in (("masks", lambda: teacher.masks(6)), ("mend", lambda: teacher.mend(6))):
        before = same_batch(teacher, loss)
        teacher.run(stage, 8, 5e-4, loss, tmp_path)
        assert same_batch(teacher, loss) < before - 0.02


@torch.no_grad()
def same_batch(teacher: refine.RefineTeacher, loss: Callable[[], torch.Tensor]) -> float:
    teacher.rng = np.random.default_rng(7)
    return loss().item()


def test_the_committed_policy_has_the_scripts_tokenizer_and_links(tmp_path: Path) -> None:
    refine.write_processor(refine.POLICY, tmp_path / "made")
    for file in (tmp_path / "made").iterdir():
        assert (COMMITTED / file.name).read_bytes() == file.read_bytes(), file.name
    vocabulary = json.loads((COMMITTED / "config.json").read_text())["text_config"]["vocab_size"]
    assert vocabulary == len(AutoProcessor.from_pretrained(COMMITTED).tokenizer)


def test_the_committed_policy_says_done_about_good_masks() -> None:
    """Masks are drawn without SAM: the shape itself, and another shape. The lesson never has such exact boxes."""
    talk = refine_figures.Talk(COMMITTED, None)
    tag, done = talk.processor.tokenizer.convert_tokens_to_ids(["<answer>", "done"])
    teacher = refine.RefineTeacher(talk.model, talk.processor, lessons._draw(("val", 0, 0, 16)), [], 0)
    rng = np.random.default_rng(0)
    chances = []
    for example in teacher.pool:
        sentence, target = shapes.ask(example.scene, rng)
        other = (target + 1) % len(example.boxes)
        for shape in (target, other):
            mask = refine_lessons.outline_mask(example.scene.shapes[shape])
            first = lessons.answer_text(example, shape, False, rng)
            shown = Seen(first, shape, mask, 1.0)
            turns = [refine.Turn(None, first), refine.Turn(shown, refine_lessons.done_text(example, target))]
            ids, _ = teacher.encode(sentence, turns)
            images = [refine_lessons.tinted(example, seen) for seen in (None, mask)]
            batch = torch.tensor([ids])
            with torch.no_grad():
                sights = teacher.see_images(images).view(2, CELLS, -1)
                logits = teacher.read(batch, torch.ones_like(batch), sights).logits[0]
            at = max(number for number, token in enumerate(ids) if token == tag)
            chances.append(logits[at].softmax(-1)[done].item())
    good, wrong = np.mean(chances[::2]), np.mean(chances[1::2])
    assert good > 0.3 and wrong < good / 4, (good, wrong)
