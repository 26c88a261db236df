"""The stand-in for the recipe's segmenter: the same class with a small encoder and random weights.

The size of the input, the levels of the embedding and the decoder are the recipe's, so an embedding takes as many
bytes, and a decode as much time. The masks are arbitrary, but they follow their prompts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.rehearsal.architecture import local_files
from samr1_verl.segmenters.transformers import CLASSES, PROCESSOR_CONFIGS

KEY = "samr1.segmenter.path"
# Model types of hub ids without a copy here. Their configuration is the default of transformers' class.
PUBLISHED = {
    "facebook/sam2": "sam2", "facebook/sam2.1": "sam2", "facebook/sam-vit": "sam", "facebook/sam3": "sam3_tracker",
}  # fmt: skip
# Encoders with few narrow layers; all other values stay as they are.
WIDTHS = [16, 32, 64, 128]  # of the four stages of SAM 2's encoder
SMALL_HIERA = {
    "hidden_size": 16,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": WIDTHS,
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "global_attention_blocks": [3],
}
SMALL_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1]}


def save_segmenter(segmenter: SegmenterConfig, folder: Path, seed: int) -> int:
    """Make the stand-in for `samr1.segmenter.path` of the backend transformers; returns its number of weights.

    Raises:
        ConfigError: the model has no config.json here and is none of the published ones.
    """
    source = local_files(segmenter.path)
    config = _small(_full(segmenter.path, source))
    model_class, processor_class = (getattr(transformers, name) for name in CLASSES[config.model_type])
    torch.manual_seed(seed)
    model = _random(model_class(config), seed)
    model.save_pretrained(folder)
    if source is None:
        processor_class(_image_processor(config)).save_pretrained(folder)
        return model.num_parameters()
    for name in PROCESSOR_CONFIGS:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return model.num_parameters()


def _full(path: str, source: Path | None) -> PretrainedConfig:
    if source is not None:
        loaded = AutoConfig.from_pretrained(source)
        if loaded.model_type not in CLASSES:
            expected = ", ".join(CLASSES)
            raise ConfigError(
                "unknown_model_type", KEY, f"{source} has the model_type {loaded.model_type}, expected {expected}"
            )
        if loaded.model_type == "sam2_video":  # the part of it that Sam2Model loads
            return _sam2(loaded.vision_config.to_dict(), loaded.prompt_encoder_config, loaded.mask_decoder_config)
        return loaded
    kinds = [kind for start, kind in PUBLISHED.items() if path.startswith(start)]
    if not kinds:
        raise ConfigError(
            "no_config_json",
            KEY,
            f"{path} has no config.json here, and its class is known only for {', '.join(PUBLISHED)}. Type: hf "
            f"download {path} config.json, or name a folder",
        )
    return getattr(transformers, f"{CLASSES[kinds[0]][0].removesuffix('Model')}Config")()


def _sam2(vision: dict[str, Any], prompt: Any, decoder: Any) -> PretrainedConfig:
    as_dict = [part if isinstance(part, dict) else part.to_dict() for part in (prompt, decoder)]
    for part in as_dict:
        part.pop("model_type", None)
    return transformers.Sam2Config(
        vision_config=vision, prompt_encoder_config=as_dict[0], mask_decoder_config=as_dict[1]
    )


def _small(full: PretrainedConfig) -> PretrainedConfig:
    """The same configuration with a small encoder."""
    values = full.to_dict()
    vision = values["vision_config"]
    if full.model_type == "sam2":
        vision["backbone_config"] |= SMALL_HIERA
        vision["backbone_channel_list"] = WIDTHS[::-1]
    elif full.model_type.startswith("sam3"):
        vision["backbone_config"] |= {**SMALL_VIT, "intermediate_size": 64}
    else:
        vision |= {**SMALL_VIT, "mlp_dim": 64}
        if full.model_type == "sam_hq":
            values["mask_decoder_config"]["vit_dim"] = SMALL_VIT["hidden_size"]
    return type(full).from_dict(values)


def _random(model: Any, seed: int) -> Any:
    """The model with weights large enough that masks have both values, which the library's own start has not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter.numel() // parameter.shape[0]
                parameter.normal_(0, max(1.0, fan_in) ** -0.5, generator=generator)
    return model


def _image_processor(config: PretrainedConfig) -> Any:
    """The image processor of the class, at the model's input size."""
    side = {"height": 1024, "width": 1024}
    if config.model_type == "sam2":
        return transformers.Sam2ImageProcessor(size=side)
    if config.model_type.startswith("sam3"):
        return transformers.Sam3ImageProcessor()
    return transformers.SamImageProcessor()
