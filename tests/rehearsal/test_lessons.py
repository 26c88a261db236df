"""The lessons are answers that the recipes' rewards read, and a stand-in learns to write them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from reward_fns.boxes import format_of
from samr1_verl.answers import Answer, Unusable, has_think_format, parse_answer, within
from samr1_verl.cpu.generation import Generator, Request, SamplingParams
from samr1_verl.rehearsal import lessons
from samr1_verl.rehearsal.architecture import full_config, small_config
from samr1_verl.rehearsal.lessons import THINKING, Form, Teacher, form_of
from samr1_verl.rehearsal.processor import small_processor

PROMPTS = ("seg_zero", "refine", "vision_reasoner", "star", "tiny")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("extent_wh", [(840, 840), (1000, 1000), (640, 480), (140, 140)])
def test_answers_are_usable_except_for_the_broken_ones(prompt: str, extent_wh: tuple[int, int]) -> None:
    form, rng = Form(prompt, extent_wh, 50), np.random.default_rng(0)
    for _ in range(50):
        text = form.answer(rng, broken=0)
        answer = parse_answer(text)
        assert has_think_format(text) and isinstance(answer, Answer), text
        assert isinstance(within(answer, extent_wh), Answer)
        for target in answer.objects_policy:
            assert target.box is not None
            x1, y1, x2, y2 = target.box
            assert all(x1 < x < x2 and y1 < y < y2 for x, y in target.points)
        assert isinstance(parse_answer(form.answer(rng, broken=1)), Unusable)


def test_lists_of_objects_score_the_whole_format_of_their_recipe() -> None:
    rng = np.random.default_rng(0)
    assert format_of(Form("vision_reasoner", (840, 840), 10).answer(rng, broken=0), 1.0, 1.0) == 2.0
    assert format_of(Form("star", (1000, 1000), 10).answer(rng, broken=0), 2 / 3, 2 / 3, 2 / 3) == pytest.approx(2.0)


def test_no_word_of_the_thinking_appears_twice() -> None:
    assert len(THINKING) == len(set(THINKING)) > 150


@pytest.mark.parametrize("limit", [1300, 200, 90])
def test_answers_fit_the_recipes_response_length(limit: int) -> None:
    count = lambda text: len(text) // 4  # noqa: E731
    form = form_of("seg_zero", "absolute", (840, 840), count, limit)
    assert count(form.answer(np.random.default_rng(1), broken=0)) <= limit
    assert form.words == (len(THINKING) if limit == 1300 else form.words)


def test_the_frame_decides_the_range_of_coordinates() -> None:
    assert form_of("star", "thousand", (832, 832), len, 4000).extent_wh == (1000, 1000)
    assert form_of("star", "absolute", (832, 640), len, 4000).extent_wh == (832, 640)


@pytest.mark.thorough
def test_a_stand_in_learns_to_write_usable_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few words, for a fast test; rewards of a group differ when a share of the answers is unusable."""
    torch.manual_seed(0)
    full = full_config("Qwen/Qwen2.5-VL-7B-Instruct")
    form, rng = Form("seg_zero", (280, 280), 8), np.random.default_rng(0)
    chat = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Find it.<|im_end|>\n<|im_start|>assistant\n"
    processor = small_processor(full, [chat, *(form.answer(rng) for _ in range(200))])
    model = AutoModelForImageTextToText.from_config(small_config(full, processor.tokenizer))
    monkeypatch.setattr(lessons, "SKIP", 0.0)
    taught = Teacher(model, processor, [chat], form, seed=0).teach(160, (280, 280))
    assert taught.steps == 160 and 30 < taught.answer_tokens < 200

    tokenizer = processor.tokenizer
    generator = Generator(model, processor, {tokenizer.eos_token_id}, tokenizer.pad_token_id)
    image = Image.fromarray(rng.integers(0, 256, size=(280, 280, 3), dtype=np.uint8))
    ids = processor(text=[chat], images=[image])["input_ids"][0]
    answers = generator.generate([Request(ids, SamplingParams(max_tokens=200), [image])] * 32)
    texts = [tokenizer.decode(answer.token_ids, skip_special_tokens=True) for answer in answers]
    usable = sum(isinstance(parse_answer(text), Answer) for text in texts)
    assert 0 < usable < 32, texts[:3]


def test_a_stand_in_for_a_dialogue_is_taught_its_own_turns_alone() -> None:
    full = full_config("Qwen/Qwen2.5-VL-7B-Instruct")
    form, rng = Form("refine", (280, 280), 8), np.random.default_rng(0)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    chat = f"<|im_start|>user\n{image}Find it.<|im_end|>\n<|im_start|>assistant\n"
    look = "\n" + chat.replace("Find it", "The mask of your answer")
    processor = small_processor(full, [chat, look, *(form.answer(rng) for _ in range(200))])
    teacher = Teacher(None, processor, [chat], form, 0, [look])
    answer = form.answer(rng) + processor.tokenizer.eos_token
    dialogues = [teacher._dialogue(answer) for _ in range(16)]
    noise = Image.fromarray(rng.integers(0, 256, size=(56, 56, 3), dtype=np.uint8))
    inputs = processor(text=dialogues, images=[noise] * 32, padding=True, padding_side="right", return_tensors="pt")
    taught = [
        processor.tokenizer.decode(ids[mask])
        for ids, mask in zip(inputs["input_ids"], teacher.spoken(inputs["input_ids"]), strict=True)
    ]
    replies = [dialogue.split(look)[1] for dialogue in dialogues]
    assert taught == [answer + reply for reply in replies]
    done = ["<answer>done</answer>" in reply for reply in replies]
    assert any(done) and not all(done)
