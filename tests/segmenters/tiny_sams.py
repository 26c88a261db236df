"""Randomly initialised SAM, SAM-HQ, SAM 2 and SAM 3 of transformers, at most 500,000 weights each, and their masks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoMaskDecoderConfig

from samr1_verl.segmenters import Prompt

CLASSES = {"sam": "Sam", "sam_hq": "SamHQ", "sam2": "Sam2", "sam3_tracker": "Sam3Tracker"}
KINDS = tuple(CLASSES)
SIDE = 64  # of the models' input


def random_weights(model: Any, seed: int = 0) -> Any:
    """Large enough that masks have both values and follow their prompts, which the library's own start has not."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" not in name:
            head = name.startswith(("mask_decoder", "prompt_encoder"))
            tensor.data.normal_(0, 1.0 if head else 0.3, generator=generator)
    return model


def save_sam(name: str, folder: Path) -> None:
    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32}
    vision |= {"image_size": SIDE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16}
    decoder |= {"vit_dim": 32} if name == "SamHQ" else {}
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    random_weights(getattr(transformers, f"{name}Model")(config)).save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    images = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)
    getattr(transformers, f"{name}Processor")(images).save_pretrained(folder)


def save_sam2(folder: Path, video_folder: Path) -> None:
    """The same weights as an image model and as a video model, which is what the hub has."""
    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1}
    backbone |= {"image_size": [SIDE, SIDE], "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128]}
    backbone |= {"num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 2, 2]}
    backbone |= {"global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4]}
    vision = {"backbone_config": backbone, "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    prompt = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16}
    memory = {f"memory_attention_{name}": 32 for name in ("hidden_size", "feed_forward_hidden_size")}
    memory |= {"memory_attention_num_layers": 1, "memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 16}
    memory |= {"mask_downsampler_embed_dim": 32, "memory_fuser_embed_dim": 32, "memory_fuser_intermediate_dim": 32}
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=dict(prompt),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(**decoder),
        image_size=SIDE,
        **memory,
    )
    video = random_weights(transformers.Sam2VideoModel(config))
    image = transformers.Sam2Model(
        transformers.Sam2Config(
            vision_config=config.vision_config.to_dict(),
            prompt_encoder_config=dict(prompt),
            mask_decoder_config=Sam2MaskDecoderConfig(**decoder),
        )
    )
    assert image.load_state_dict(video.state_dict(), strict=False).missing_keys == []
    video.save_pretrained(video_folder)
    image.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    images = transformers.Sam2ImageProcessor(size=square)
    transformers.Sam2Processor(images).save_pretrained(folder)
    videos = transformers.Sam2VideoVideoProcessor(size=square)
    transformers.Sam2VideoProcessor(images, videos).save_pretrained(video_folder)


def save_sam3(folder: Path) -> None:
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    backbone |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 16, "window_size": 2}
    backbone |= {"global_attn_indexes": [1], "pretrain_image_size": SIDE}
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "scale_factors": [4.0, 2.0, 1.0]}
    decoder = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16}
    prompt = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    config = transformers.Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    random_weights(transformers.Sam3TrackerModel(config), seed=1).save_pretrained(folder)
    images = transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})
    transformers.Sam3TrackerProcessor(images).save_pretrained(folder)


def save_all(root: Path) -> dict[str, Path]:
    """A folder for each of KINDS, and for a video model of SAM 2."""
    for kind in ("sam", "sam_hq"):
        save_sam(CLASSES[kind], root / kind)
    save_sam2(root / "sam2", root / "sam2_video")
    save_sam3(root / "sam3_tracker")
    return {kind: root / kind for kind in (*KINDS, "sam2_video")}


@lru_cache
def library_of(kind: str, folder: Path, dtype: str) -> tuple[Any, Any]:
    model = getattr(transformers, f"{CLASSES[kind]}Model").from_pretrained(folder, dtype=getattr(torch, dtype))
    return model, getattr(transformers, f"{CLASSES[kind]}Processor").from_pretrained(folder)


def library(
    kind: str,
    folder: Path,
    image: np.ndarray,
    prompts: list[Prompt],
    dtype: str = "float32",
    multimask: bool = True,
) -> tuple[list[np.ndarray], list[float]]:
    """Best masks and their scores, by the library's own processor and model, the image given anew."""
    model, processor = library_of(kind, folder, dtype)
    asked: dict[str, Any] = {}
    if prompts[0].points:
        asked["input_points"] = [[[list(point) for point in prompt.points] for prompt in prompts]]
        asked["input_labels"] = [[list(prompt.labels) for prompt in prompts]]
    if prompts[0].box:
        asked["input_boxes"] = [[list(prompt.box) for prompt in prompts]]
    inputs = processor(images=Image.fromarray(image), return_tensors="pt", **asked)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        outputs = model(**inputs, multimask_output=multimask)
    sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    masks = processor.post_process_masks(outputs.pred_masks.float(), *sizes)[0]
    scores = outputs.iou_scores[0].float()
    choices = 3 if multimask else 1
    assert masks.shape == (len(prompts), choices, *image.shape[:2]) and scores.shape == (len(prompts), choices)
    best = scores.argmax(dim=1).tolist()
    return (
        [masks[index, choice].numpy() for index, choice in enumerate(best)],
        [scores[index, choice].item() for index, choice in enumerate(best)],
    )
