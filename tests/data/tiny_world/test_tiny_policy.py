"""The tiny policy: its own words survive its tokenizer, one token a coordinate, and the hub's classes load it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from data.tiny_world import lessons, shapes, talkative, tiny_policy, warm_up
from samr1_verl.answers import Answer, has_think_format, parse_answer


@pytest.fixture(scope="module")
def examples() -> list[lessons.Example]:
    return lessons._draw(("train", 0, 0, 6))


def test_taught_answers_are_usable_and_decode_to_the_letter(examples, random_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_policy)
    for blur in (False, True):
        for index, example in enumerate(examples):
            text = lessons.answer_text(example, 0, blur, np.random.default_rng(index))
            assert isinstance(parse_answer(text), Answer) and has_think_format(text)
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert len(ids) <= 31


def test_talkative_answers_repeat_the_reasoning_and_stay_usable(examples, random_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_policy)
    rng = np.random.default_rng(0)
    lengths = []
    for example in examples * 10:
        text = lessons.answer_text(example, 0, True, rng, talkative.MOST_REPEATS)
        assert isinstance(parse_answer(text), Answer) and has_think_format(text)
        lengths.append(len(tokenizer(text)["input_ids"]))
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert min(lengths) <= 31 and 80 < max(lengths) <= 100


def test_every_sentence_of_the_world_is_in_the_vocabulary(examples, random_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_policy)
    for example in examples:
        for phrases in shapes.references(example.scene):
            for phrase, _ in phrases:
                for form in shapes.DIRECT:
                    ids = tokenizer(f"segment {form.format(phrase)}")["input_ids"]
                    assert tokenizer.unk_token_id not in ids, form.format(phrase)


def test_coordinates_are_one_token_each(random_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_policy)
    assert all(len(tokenizer(str(n))["input_ids"]) == 1 for n in range(tiny_policy.FRAME + 1))


def test_model_and_processor_load_by_the_hubs_classes(random_policy: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(random_policy)
    processor = AutoProcessor.from_pretrained(random_policy)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 2e6 < model.num_parameters() < 4e6
    assert processor.tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_same_seed_same_weights(random_policy: Path, tmp_path: Path) -> None:
    tiny_policy.save_random(tmp_path, seed=0)
    assert (tmp_path / "model.safetensors").read_bytes() == (random_policy / "model.safetensors").read_bytes()


def test_neighbouring_coordinates_have_like_embeddings() -> None:
    features = tiny_policy.fourier_features(141, 192)
    similarity = torch.nn.functional.cosine_similarity(features[70:71], features)
    assert similarity.argmax() == 70
    assert similarity[71] > similarity[75] > similarity[100]


def test_blurred_boxes_are_smaller_and_differ(examples) -> None:
    box = examples[0].boxes[0]
    areas = []
    for seed in range(40):
        answer = parse_answer(lessons.answer_text(examples[0], 0, True, np.random.default_rng(seed)))
        x1, y1, x2, y2 = answer.objects_policy[0].box
        areas.append((x2 - x1) * (y2 - y1) / np.prod(box[2:] - box[:2]))
    assert 0.25 < np.mean(areas) < 0.5, "about 0.6 of each side"
    assert np.std(areas) > 0.05


@pytest.mark.slow
def test_a_few_steps_of_each_stage_lower_its_loss(examples, tmp_path: Path) -> None:
    processor = tiny_policy.build_processor()
    teacher = warm_up.Teacher(tiny_policy.build_model(processor.tokenizer, 0), processor, examples, 0)
    for stage, loss in (("see", lambda: teacher.see(6)), ("answer", lambda: teacher.answer(6, blur=False))):
        teacher.look()
        with torch.no_grad():
            before = loss().item()
        teacher.run(stage, 8, 1e-3, loss, tmp_path)
        with torch.no_grad():
            assert loss().item() < before - 0.02
    assert {path.name for path in tmp_path.iterdir()} == {"see.pt", "answer.pt"}


def test_a_finished_stage_is_loaded_instead_of_repeated(examples, tmp_path: Path) -> None:
    processor = tiny_policy.build_processor()
    teachers = [warm_up.Teacher(tiny_policy.build_model(processor.tokenizer, 0), processor, examples, 0) for _ in "ab"]
    for teacher in teachers:
        teacher.run("see", 2, 1e-3, lambda teacher=teacher: teacher.see(2), tmp_path)
    first, second = (teacher.model.state_dict() for teacher in teachers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_teaching_from_kept_visual_tokens_is_the_models_own_loss(examples, monkeypatch) -> None:
    """Stage 2 feeds the language model by hand: the same batch through processor and model must give the same loss."""
    processor = tiny_policy.build_processor()
    model = tiny_policy.build_model(processor.tokenizer, 0)
    teacher = warm_up.Teacher(model, processor, examples[:1], 0)
    teacher.look()
    monkeypatch.setattr(warm_up, "gaze_loss", lambda *_: 0.0)
    with torch.no_grad():
        kept = teacher.answer(1, blur=False).item()
    teacher.rng = np.random.default_rng(0)
    assert teacher.rng.integers(1, size=1).tolist() == [0]  # the draw that `answer` makes first
    sentence, target = shapes.ask(examples[0].scene, teacher.rng)
    response = lessons.answer_text(examples[0], target, False, teacher.rng) + processor.tokenizer.eos_token
    inputs = processor(text=[teacher._chat(sentence) + response], images=[examples[0].image], return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, : -len(processor.tokenizer(response)["input_ids"])] = lessons.IGNORE
    with torch.no_grad():
        assert model(**inputs, labels=labels).loss.item() == pytest.approx(kept, rel=1e-5)


def test_gaze_loss_is_the_attention_that_misses_the_target() -> None:
    #   one prompt token, the target, then ten response tokens: kind, at, the are rows 6 to 8, the place rows 9 and 10
    attention = torch.zeros(1, 2, 11, 11)
    attention[0, 0, 6:9, 0] = torch.tensor([0.5, 0.25, 1.0])
    attention[0, 1, 9:11, 0] = torch.tensor([0.1, 0.2])
    target, response = torch.zeros(1, 11), torch.ones(1, 11, dtype=torch.bool)
    target[0, 0], response[0, 0] = 1, False
    expected = -(np.log(0.5) + np.log(0.25) + np.log(1.0)) / 3 - (np.log(0.1) + np.log(0.2)) / 2
    assert lessons.gaze_loss(attention, target, response).item() == pytest.approx(expected, abs=1e-4)
