"""The stand-in's processor: the image processing of the model, and a small tokenizer with Qwen's special tokens.

The small tokenizer splits text as Qwen's does (words, single digits, punctuation), so a prompt has about as many
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from samr1_verl.rehearsal.architecture import local_files

VOCABULARY = 2048
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Qwen2's split of text into the parts that are never joined to one token; every digit is a token.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# preprocessor_config.json of each architecture on the hub; limits in pixels
IMAGES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        "patch_size": 14,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "qwen3_vl": {
        "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


def own_processor(model: str, largest_vocabulary: int | None) -> Any | None:
    """The model's own processor, from its folder or the hub cache.

    None: it is not here, or its tokenizer has more than `largest_vocabulary` tokens.
    """
    folder = local_files(model)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    processor = AutoProcessor.from_pretrained(folder)
    small = largest_vocabulary is None or len(processor.tokenizer) <= largest_vocabulary
    return processor if small else None


def small_processor(config: PretrainedConfig, texts: Iterable[str]) -> Any:
    """A processor of the same class with a tokenizer trained on `texts`; the images are processed as the model does.

    Args:
        config: of the model (`architecture.full_config`).
        texts: prompts and answers of the rehearsal.
    """
    settings = IMAGES[config.model_type]
    vision = config.vision_config
    sizes = {"merge_size": vision.spatial_merge_size, "temporal_patch_size": vision.temporal_patch_size}
    image = Qwen2VLImageProcessor(**{**settings, **sizes, "patch_size": vision.patch_size})
    kind, video_kind = Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    if config.model_type == "qwen3_vl":
        kind, video_kind = Qwen3VLProcessor, Qwen3VLVideoProcessor
    video = video_kind(**{**settings, **sizes, "patch_size": vision.patch_size})
    return kind(image, _tokenizer(texts), video, chat_template=CHAT_TEMPLATE)


def _tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so every text has tokens
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
