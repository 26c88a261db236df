"""The memory of the segmenter: on a GPU that it shares with the training, and of its cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from samr1_verl.config import SegmenterConfig, hub_id_or_folder
from samr1_verl.preflight.memory import Term
from samr1_verl.segmenters.torch_common import GPU_LIMITS

# Parameters of the published checkpoints, from SAM's and SAM 2's own tables of models.
PARAMETERS = {
    "sam2-hiera-tiny": 38_900_000,
    "sam2-hiera-small": 46_000_000,
    "sam2-hiera-base-plus": 80_800_000,
    "sam2-hiera-large": 224_400_000,
    "sam-vit-base": 93_700_000,
    "sam-vit-large": 312_000_000,
    "sam-vit-huge": 641_000_000,
}
# Traced on transformers' Sam2Model with the sizes of SAM 2 Large in float32; a smaller model needs less.
ENCODE = 1_170_000_000  # bytes per image of 1024 x 1024 that is encoded
DECODE = 47_000_000  # bytes per prompt that is decoded
EMBEDDING = 16_800_000  # bytes of an embedding: SAM 2's three levels in float32
EMBEDDING_SAM = 4_200_000  # the same of the first SAM: one level


def segmenter_terms(config: SegmenterConfig, gpus: int, context: int) -> Iterator[Term]:
    """The segmenter's terms on the GPU that holds most of it; none where it lies on no GPU of the training.

    Args:
        config: `samr1.segmenter`.
        gpus: number of the training's GPUs.
        context: bytes of a process's CUDA context.
    """
    ray = config.service.ray
    if (
        config.device == "cpu"
        or config.service.mode == "http"
        or (config.service.mode == "ray" and (ray is None or ray.gpus != "shared"))
    ):
        return
    count = -(-ray.max_replicas // gpus) if config.service.mode == "ray" and ray is not None else 1
    key = "samr1.segmenter.service"
    elsewhere = f"set {key}.ray.gpus=1 and leave a GPU of the cluster to it, or {key}.mode=http"
    weights, source = weight_bytes(config)
    works = max(GPU_LIMITS.images * ENCODE, GPU_LIMITS.prompts * DECODE)
    kept = GPU_LIMITS.embeddings * EMBEDDING + GPU_LIMITS.mask_bytes
    yield Term(
        "segmenter's weights and context",
        count * (weights + context),
        f"{count} replica: {source}, and a CUDA context (estimate)",
        elsewhere,
    )
    yield Term(
        "segmenter at work",
        count * works,
        f"{GPU_LIMITS.images} images encoded together x {ENCODE / 1e9:.2f} GB, traced on SAM 2 Large",
        elsewhere,
    )
    yield Term(
        "embeddings and masks on the device",
        count * kept,
        f"the newest {GPU_LIMITS.embeddings} embeddings x {EMBEDDING / 1e6:.1f} MB, and "
        f"{GPU_LIMITS.mask_bytes / 1e9:.2f} GB of masks",
    )


def embedding_bytes(config: SegmenterConfig) -> int:
    """Bytes of one cached embedding in float32."""
    first = config.backend in ("onnx", "segment_anything") or "sam-vit" in config.path
    size = EMBEDDING_SAM if first else EMBEDDING
    return size // 2 if config.service.cache_dtype == "float16" else size


def weight_bytes(config: SegmenterConfig) -> tuple[int, str]:
    """Bytes of the segmenter's weights, and where the number comes from."""
    place = hub_id_or_folder(config.path)
    if isinstance(place, str):
        cached = try_to_load_from_cache(place, "model.safetensors")
        files = [Path(cached)] if isinstance(cached, str) else []
    else:
        files = (
            [*place.glob("*.safetensors"), *place.glob("*.onnx"), *place.glob("*.pth")] if place.is_dir() else [place]
        )
    if sizes := [file.stat().st_size for file in files if file.is_file()]:
        return sum(sizes), f"{sum(sizes) / 1e9:.2f} GB of files"
    name = config.path.rsplit("/", 1)[-1].replace("sam2.1-", "sam2-")
    known = PARAMETERS.get(name)
    number = 4 if config.dtype == "float32" else 2
    if known is None:
        return PARAMETERS["sam-vit-huge"] * number, f"{config.path} is not here, so as large as SAM's ViT-H (estimate)"
    return known * number, f"{known:,} parameters x {number} bytes"
