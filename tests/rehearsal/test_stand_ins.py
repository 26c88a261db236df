"""Drawn rows are valid rows, and the segmenter's stand-in has the recipe's class, input and embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samr1_verl.config import ConfigError, segmenter_config
from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.geometry.masks import box_of, decode_rle
from samr1_verl.rehearsal import policy
from samr1_verl.rehearsal.architecture import full_config
from samr1_verl.rehearsal.processor import small_processor
from samr1_verl.rehearsal.scenes import HEIGHT, WIDTH, write_scenes
from samr1_verl.rehearsal.segmenter import save_segmenter
from samr1_verl.rows.record import iter_rows, parse_record
from samr1_verl.segmenters import Prompt, load_segmenter
from tests.composing import compose_recipe
from tests.errors import refused

PROMPTS = [
    Prompt((80.0, 100.0, 500.0, 400.0), ((300.0, 250.0),), (1,)),
    Prompt((10.0, 12.0, 150.0, 80.0), ((50.0, 50.0),), (1,)),
]


def test_rows_have_exact_masks_boxes_and_points(tmp_path: Path) -> None:
    file = write_scenes(tmp_path, "train", rows=6, objects=3, seed=0)
    rows = [parse_record(row, file, index) for index, row in enumerate(iter_rows(file))]
    assert len(rows) == 6 and len({len(row.masks) for row in rows}) > 1
    for row in rows:
        image = tmp_path / row.image
        assert open_image(image).size == (row.width, row.height) == (WIDTH, HEIGHT)
        assert sha256_of(image) == row.sha256
        for counts, box, points in zip(row.masks, row.boxes, row.points, strict=True):
            mask = decode_rle(counts, (row.height, row.width))
            assert box == box_of(mask) and len(points) == 2
            assert all(mask[int(y), int(x)] for x, y in points)


def test_splits_differ_and_a_seed_draws_the_same_rows(tmp_path: Path) -> None:
    files = [
        write_scenes(tmp_path / name, split, rows=2, objects=1, seed=0)
        for name, split in (("a", "train"), ("b", "train"), ("c", "val"))
    ]
    first, again, other = ([row["sha256"] for row in iter_rows(file)] for file in files)
    assert first == again != other


def test_the_segmenters_stand_in_has_the_class_input_and_embedding_of_sam_2_large(tmp_path: Path) -> None:
    recipe = segmenter_config(compose_recipe("samr1").samr1.segmenter)
    assert save_segmenter(recipe, tmp_path, seed=0) < 10e6
    segmenter = load_segmenter(recipe.model_copy(update={"path": str(tmp_path), "device": "cpu"}))
    assert segmenter.identity.startswith("sam2-")
    scene = np.random.default_rng(0).integers(0, 256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    embedding = segmenter.encode(scene)
    assert {name: array.shape for name, array in embedding.arrays.items()} == {
        "image_embeddings.0": (1, 32, 256, 256),
        "image_embeddings.1": (1, 64, 128, 128),
        "image_embeddings.2": (1, 256, 64, 64),
    }
    first, second = segmenter.decode(embedding, PROMPTS)
    assert first.mask.shape == (HEIGHT, WIDTH) and 0 < first.mask.mean() < 1
    assert (first.mask != second.mask).any(), "a mask follows its prompt"


def test_a_copy_of_the_segmenters_files_gives_its_own_class(tmp_path: Path) -> None:
    from tests.segmenters.tiny_sams import save_sam

    save_sam("Sam", tmp_path / "sam")
    recipe = segmenter_config(compose_recipe("samr1", f"samr1.segmenter.path={tmp_path / 'sam'}").samr1.segmenter)
    save_segmenter(recipe, tmp_path / "small", seed=0)
    segmenter = load_segmenter(recipe.model_copy(update={"path": str(tmp_path / "small"), "device": "cpu"}))
    assert segmenter.identity.startswith("sam-")
    assert segmenter.encode(np.zeros((48, 64, 3), dtype=np.uint8)).arrays["image_embeddings.0"].shape == (1, 16, 4, 4)


def test_an_unknown_segmenter_is_refused(tmp_path: Path) -> None:
    recipe = segmenter_config(compose_recipe("samr1", "samr1.segmenter.path=nobody/none").samr1.segmenter)
    with refused(ConfigError, "no_config_json", "samr1.segmenter.path", "nobody/none", "hf download nobody/none"):
        save_segmenter(recipe, tmp_path, seed=0)


@pytest.mark.parametrize("recipe", ["samr1_refine", "samr1_refine_qwen3vl_8b", "samr1"])
def test_a_chat_has_a_look_after_the_answer_where_the_recipe_has_looks(recipe: str, tmp_path: Path) -> None:
    config = compose_recipe(recipe)
    chat = next(policy._chats(config, [write_scenes(tmp_path, "train", rows=1, objects=1, seed=0)]))
    processor = small_processor(full_config(str(config.actor_rollout_ref.model.path)), ["text"])
    question, look = chat.texts(processor)
    speaks = "<|im_start|>assistant\n"
    assert question.count("<|image_pad|>") == 1 and question.endswith(speaks)
    if recipe == "samr1":
        assert look == ""
    else:
        assert look.startswith("\n<|im_start|>user\n") and look.endswith(speaks)
        assert look.count("<|image_pad|>") == 1 and "the mask of your answer" in look
