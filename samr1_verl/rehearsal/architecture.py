"""The policy's architecture with few narrow layers.

Kept are the classes and everything that decides which code runs and how many tokens there are: patch and merge size,
window attention, head sizes, grouped queries, deepstack levels and M-RoPE sections. Width and depth are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PretrainedConfig

from samr1_verl.config import ConfigError, hub_id_or_folder

KEY = "actor_rollout_ref.model.path"
INTERMEDIATE = 512  # width of the feed-forward layers
HEADS = 2  # query heads per tensor-parallel worker

# From each model's config.json on the hub: for machines that have no copy of it.
_QWEN2_5_VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}  # fmt: skip
_QWEN2_5_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_QWEN3_ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "text_config": {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2,
                        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_parameters": _QWEN2_5_ROPE},
        "vision_config": _QWEN2_5_VISION,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "text_config": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
                        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_parameters": _QWEN2_5_ROPE},
        "vision_config": _QWEN2_5_VISION,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-VL-8B-Instruct": {
        "model_type": "qwen3_vl",
        "text_config": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                        "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "rope_parameters": _QWEN3_ROPE},
        "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
                          "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
                          "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]},
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def local_files(model: str) -> Path | None:
    """The folder with a model's configuration: the folder itself, or its copy in the hub cache; None: neither."""
    place = hub_id_or_folder(model)
    if isinstance(place, Path):
        return place if (place / "config.json").is_file() else None
    cached = try_to_load_from_cache(place, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def full_config(model: str) -> PretrainedConfig:
    """The configuration of the recipe's policy, from its files or else as published. Its size is not changed.

    Raises:
        ConfigError: there is no copy of config.json, and the model is not in PUBLISHED; or it is no Qwen VL model.
    """
    folder = local_files(model)
    if folder is None and model not in PUBLISHED:
        raise ConfigError(
            "no_config_json",
            KEY,
            f"{model} has no config.json here, and its architecture is known only for {', '.join(PUBLISHED)}. Type: hf "
            f"download {model} config.json, or name a folder",
        )
    if folder is not None:
        config = AutoConfig.from_pretrained(folder)
    else:
        values = dict(PUBLISHED[model])
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    if config.model_type not in ("qwen2_5_vl", "qwen3_vl"):
        raise ConfigError(
            "unknown_model_type",
            KEY,
            f"{model} has the model_type {config.model_type}, expected qwen2_5_vl or qwen3_vl: a stand-in of another "
            "architecture would rehearse another program",
        )
    return config


def small_config(full: PretrainedConfig, tokenizer: Any, tensor_parallel: int = 1) -> PretrainedConfig:
    """A configuration of the same class with few narrow layers, for a stand-in's tokenizer.

    Args:
        full: of `full_config`.
        tokenizer: has Qwen's special tokens.
        tensor_parallel: number of workers that share the heads of a layer.
    """
    text, vision = full.text_config.to_dict(), full.vision_config.to_dict()
    text.pop("layer_types", None)  # one entry a layer; the class makes it for the new number
    levels = len(vision.get("deepstack_visual_indexes") or [])
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    shared = max(1, text["num_attention_heads"] // text["num_key_value_heads"])  # query heads per key head
    heads = HEADS * tensor_parallel
    layers = max(2, levels)  # the text layers that take the levels of the deepstack, one each
    text |= {
        "hidden_size": heads * head,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // HEADS if shared > 1 else heads,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_heads = HEADS * tensor_parallel
    depth = max(2, levels)
    vision |= {
        "depth": depth,
        "hidden_size": vision_heads * (vision["hidden_size"] // vision["num_heads"]),
        "intermediate_size": INTERMEDIATE,
        "num_heads": vision_heads,
        "out_hidden_size": text["hidden_size"],
    }
    if levels:
        vision["deepstack_visual_indexes"] = list(range(levels))
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [depth - 1]  # the other layer attends within windows
    ids = tokenizer.convert_tokens_to_ids
    return type(full)(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=full.tie_word_embeddings,
        architectures=full.architectures,
        dtype="float32",
    )
