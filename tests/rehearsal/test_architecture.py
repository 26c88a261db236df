"""A stand-in is of the recipe's class and geometry, with few narrow layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from samr1_verl.config import ConfigError
from samr1_verl.rehearsal.architecture import PUBLISHED, full_config, small_config
from samr1_verl.rehearsal.processor import CHAT_TEMPLATE, SPECIAL, own_processor, small_processor
from tests.errors import refused

TEXT = "Find the red ellipse on the left. Coordinates are pixels: [10, 100, 200, 210]."
NAMES = sorted(PUBLISHED)


@pytest.mark.parametrize("name", NAMES)
def test_a_stand_in_keeps_what_decides_the_program_and_the_number_of_tokens(name: str) -> None:
    full = full_config(name)
    small = small_config(full, small_processor(full, [TEXT]).tokenizer)
    assert type(small) is type(full)
    for key in ("patch_size", "spatial_merge_size", "temporal_patch_size"):
        assert getattr(small.vision_config, key) == getattr(full.vision_config, key)
    assert small.text_config.rope_parameters == full.text_config.rope_parameters
    assert small.tie_word_embeddings == full.tie_word_embeddings
    head = full.text_config.hidden_size // full.text_config.num_attention_heads
    assert small.text_config.hidden_size // small.text_config.num_attention_heads == head
    assert small.text_config.num_key_value_heads < small.text_config.num_attention_heads
    if name.startswith("Qwen/Qwen3"):
        levels = small.vision_config.deepstack_visual_indexes
        assert len(levels) == len(full.vision_config.deepstack_visual_indexes) == 3
        assert max(levels) < small.vision_config.depth and len(levels) <= small.text_config.num_hidden_layers
    else:
        assert small.vision_config.window_size == full.vision_config.window_size
        assert len(small.vision_config.fullatt_block_indexes) < small.vision_config.depth, "windows are used as well"


@pytest.mark.parametrize("name", NAMES)
def test_a_stand_in_is_small_and_reads_an_image(name: str) -> None:
    full = full_config(name)
    processor = small_processor(full, [TEXT])
    model = AutoModelForImageTextToText.from_config(small_config(full, processor.tokenizer))
    assert model.num_parameters() < 10e6
    image = Image.fromarray(np.zeros((256, 320, 3), dtype=np.uint8))
    text = f"<|vision_start|>{processor.image_token}<|vision_end|>{TEXT}"
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()
    cell = full.vision_config.patch_size * full.vision_config.spatial_merge_size
    images = processor.image_processor
    assert (images.patch_size * images.merge_size) == cell
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert tokens == int(inputs["image_grid_thw"].prod()) // images.merge_size**2


def test_tensor_parallel_workers_share_the_heads() -> None:
    full = full_config("Qwen/Qwen2.5-VL-7B-Instruct")
    small = small_config(full, small_processor(full, [TEXT]).tokenizer, tensor_parallel=4)
    assert small.text_config.num_attention_heads % 4 == small.text_config.num_key_value_heads % 4 == 0
    assert small.vision_config.num_heads % 4 == 0


def test_an_unknown_architecture_is_refused() -> None:
    with refused(ConfigError, "no_config_json", "nobody/none", "config.json", "hf download nobody/none"):
        full_config("nobody/none")


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with refused(ConfigError, "unknown_model_type", tmp_path, "llama", "qwen2_5_vl or qwen3_vl"):
        full_config(str(tmp_path))


def test_the_small_tokenizer_returns_any_text_and_splits_numbers_into_digits() -> None:
    full = full_config("Qwen/Qwen3-VL-8B-Instruct")
    tokenizer = small_processor(full, [TEXT] * 10).tokenizer
    for text in (TEXT, "Ein Bär äußert sich über 汉字 \t\n  twice", '{"bbox": [1, 22, 333, 4444]}'):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("4444")["input_ids"]) == 4
    ids = tokenizer(" ".join(SPECIAL), add_special_tokens=False)["input_ids"]
    assert set(tokenizer.convert_tokens_to_ids(SPECIAL)) <= set(ids), "Qwen's special tokens are single tokens"
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_the_models_own_processor_is_used_unless_its_vocabulary_is_too_large(random_policy: Path) -> None:
    own = own_processor(str(random_policy), None)
    assert own is not None
    size = len(own.tokenizer)
    assert own_processor(str(random_policy), size) is not None
    assert own_processor(str(random_policy), size - 1) is None
    assert own_processor("Qwen/Qwen2.5-VL-7B-Instruct", None) is None, "not here"
