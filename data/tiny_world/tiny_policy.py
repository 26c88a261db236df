"""The tiny policy: a Qwen2.5-VL of about three million parameters with a small tokenizer of its own.

This file makes its parts, randomly initialised, in the hub's format. data/tiny_world/warm_up.py trains them.

    tokenizer   whole words, whole pieces of JSON, and one token per coordinate (0 to FRAME): a model of this size does
                not learn to localise with one token per digit
    processor   Qwen2.5-VL's, with images of FRAME x FRAME pixels: 5 x 5 visual tokens
    model       text: width 192, 4 layers; vision: width 128, 3 layers of full attention; fp32
                rows of numbers in the embedding and in the output layer start as Fourier features, so that
                neighbouring coordinates are alike
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from data.tiny_world import shapes

FRAME = 140  # pixels per side of the image that the policy sees
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE  # pixels per side of one visual token
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<unk>",
)  # fmt: skip
JSON_PIECES = ('{"bbox": [', '], "points_1": [', '], "points_2": [', "]}", ", ")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PLACES = ("upper left", "upper middle", "upper right", "middle left", "centre", "middle right",
          "lower left", "lower middle", "lower right")  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """All tokens: special tokens, then structure, numbers, and words (each with and without a leading space)."""
    phrases = (*shapes.DIRECT, *shapes.SUPERLATIVES, *shapes.RELATIONS, *PLACES, *shapes.COLOURS, *shapes.KINDS)
    extra = "user assistant system segment shape only the it is at"
    words = sorted({w.strip("{}.?") for phrase in (*phrases, extra) for w in phrase.split()} - {""})
    spaced = itertools.chain.from_iterable((word, f" {word}") for word in words)
    numbers = (str(n) for n in range(FRAME + 1))
    return [*SPECIAL, *JSON_PIECES, *TAGS, "\n", ".", "?", *numbers, *spaced]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose decoding returns exactly the encoded text."""
    tokens = vocabulary()
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    pieces = "|".join(_escape(piece) for piece in (*JSON_PIECES, *TAGS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pieces}|[0-9]+| ?[a-z]+|\n|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=[*SPECIAL[3:7], "<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in '{}[]().?*+|^$/"' else c for c in text)


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor of Qwen2.5-VL for FRAME x FRAME images."""
    limits = {"shortest_edge": CELL * CELL, "longest_edge": FRAME * FRAME}
    image = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, size=limits)
    video = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, size=limits)
    return Qwen2_5_VLProcessor(image, build_tokenizer(), video, chat_template=CHAT_TEMPLATE)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The randomly initialised model, fp32."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    width, heads = 192, 6
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "out_hidden_size": width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": PATCH * MERGE * 4,
            "fullatt_block_indexes": [0, 1, 2],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    numbers = tokenizer.convert_tokens_to_ids([str(n) for n in range(FRAME + 1)])
    features = fourier_features(FRAME + 1, width)
    with torch.no_grad():
        for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            rows[numbers] = features * rows.std()
    return model


def fourier_features(count: int, width: int) -> torch.Tensor:
    """Sines and cosines of 0 to count-1 at geometric wavelengths from 2·count to 8: [count, width], unit variance."""
    wavelengths = torch.logspace(math.log10(2 * count), math.log10(8), width // 2)
    angles = 2 * math.pi * torch.arange(count)[:, None] / wavelengths
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def save(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: str | Path) -> None:
    """Write model and processor in the hub's format, so that `from_pretrained(folder)` loads them."""
    model.generation_config.update(
        eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_random(folder: str | Path, seed: int = 0) -> Path:
    """Write a randomly initialised tiny policy to `folder`, for tests, and return its path."""
    processor = build_processor()
    save(build_model(processor.tokenizer, seed), processor, folder)
    return Path(folder)
