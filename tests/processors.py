"""Qwen processors with a tokenizer of single characters, for tests that need a real processor but no model."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def qwen_processor(patch_size: int = 14, min_pixels: int = 56 * 56, max_pixels: int = 1_003_520) -> Qwen2_5_VLProcessor:
    """A processor like Qwen2.5-VL's (patch_size 14) or Qwen3-VL's (16); one token a character."""
    vocabulary = {chr(code): code - 9 for code in range(9, 127)}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "[unk]": len(vocabulary)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL
    )
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "patch_size": patch_size}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**limits), fast, Qwen2VLVideoProcessor(**limits), chat_template=CHAT_TEMPLATE
    )


def save_processor(folder: Path, **limits: int) -> Path:
    """The processor as files, which AutoProcessor loads."""
    qwen_processor(**limits).save_pretrained(folder)
    return folder
