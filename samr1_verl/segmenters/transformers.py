"""SAM, SAM-HQ, SAM 2 and SAM 3 from Hugging Face transformers: a folder in the hub's format, or a hub id.

`model_type` in config.json says which. SAM 2 checkpoints on the hub, the paper's facebook/sam2-hiera-large among them,
declare `sam2_video`: as transformers documents it, Sam2Model loads its part of them and leaves the video memory out
(it logs that a model of type sam2_video instantiates one of type sam2, as expected). SAM 3's, facebook/sam3, declare
`sam3_video`, and Sam3TrackerModel is the part of them that boxes and points prompt.

Preprocessing and the way back to the image's own size are the processor's that lies beside the weights. The decoder
makes three masks a prompt and the one with the best predicted IoU is taken, for every kind of prompt, as Seg-Zero's
inference does with SAM 2; with `samr1.segmenter.multimask=false` it makes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from samr1_verl.config import ConfigError, SegmenterConfig, hub_id_or_folder
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Embedding, Prediction, SegmenterError
from samr1_verl.segmenters.torch_common import batch_size, decode_by_form, device_problems, torch_device

# Classes by model_type. Named here and not left to the Auto classes: for sam2_video these give a video processor, and
# transformers 5.9's Sam2VideoConfig reads mask_decoder_config into the prompt encoder's class.
CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
    "sam3_tracker": ("Sam3TrackerModel", "Sam3TrackerProcessor"),
    "sam3_video": ("Sam3TrackerModel", "Sam3TrackerProcessor"),
}
CONFIG, WEIGHTS = "config.json", "*.safetensors"
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")


def problems(config: SegmenterConfig) -> Iterator[str]:
    """Why the segmenter cannot be loaded, without loading it or asking the hub: a hub id is taken at its word."""
    yield from device_problems(config.device)
    place = hub_id_or_folder(config.path)
    if isinstance(place, Path):
        yield from _folder_problems(place)
        return
    cached = try_to_load_from_cache(place, CONFIG)
    if not isinstance(cached, str):
        if constants.HF_HUB_OFFLINE:
            yield f"samr1.segmenter.path: {place} is not in the hub cache and HF_HUB_OFFLINE is set"
    elif constants.HF_HUB_OFFLINE:
        yield from _folder_problems(Path(cached).parent)
    else:
        yield from _type_problems(Path(cached))


def load(config: SegmenterConfig) -> TransformersSegmenter:
    """Load the model onto `samr1.segmenter.device`; a hub id is downloaded first, where the cache does not have it.

    Raises:
        ConfigError: the hub does not give it, weights are missing or are not the model's, or the device is not there.
    """
    place = hub_id_or_folder(config.path)
    folder = place if isinstance(place, Path) else _download(place)
    if found := list(_folder_problems(folder)):
        raise ConfigError("\n".join(found))
    return TransformersSegmenter(folder, config.device, config.dtype, config.multimask)


class TransformersSegmenter:
    """The segmenter of one folder; implements `base.Segmenter`.

    Args:
        folder: config.json, *.safetensors and the processor's configuration.
        device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.
        dtype: float32, float16 or bfloat16, of weights and embeddings. Coordinates have at least float32 until the
            model has brought them into [-1, 1].
        multimask: the best of three masks by predicted IoU; else the decoder's single mask.

    Raises ConfigError where the weights are not the model's, or the device is not there.
    """

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "float32", multimask: bool = True) -> None:
        self._device, self._dtype, self._multimask = torch_device(device), getattr(torch, dtype), multimask
        self.batch = batch_size(self._device)
        model_type = _model_type(folder / CONFIG)
        model, processor = (getattr(transformers, name) for name in CLASSES[model_type])
        self._processor = processor.from_pretrained(folder)
        self._model = _load(model, folder, self._dtype).to(self._device)
        # SAM and SAM-HQ bring the longest side to this length, SAM 2 (None) both sides to the model's.
        self._longest_side: int | None = self._processor.image_processor.size.get("longest_edge")
        self.identity = f"{model_type}-{_digest(folder, dtype)}"

    def encode(self, image: np.ndarray) -> Embedding:
        """Embed an image, HxWx3 uint8 RGB in the original frame.

        Arrays are what the decoder takes, batch of 1, in the model's type (bfloat16 as its bits in uint16, NumPy has
        no such type): `image_embeddings.0` [1, 256, 64, 64]; for SAM 2 two finer levels before it, so that .0 is
        [1, 32, 256, 256], .1 [1, 64, 128, 128] and .2 the coarse one, 16.8 MB in float32; for SAM-HQ also
        `intermediate_embeddings.0` [1, 64, 64, C], the encoder's first global block.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 HxWx3, RGB")
        size = (image.shape[0], image.shape[1])
        if not all(self._input_size(size)):
            raise ImageError(f"{size[1]}x{size[0]} pixels: too thin, its short side vanishes at {self._longest_side}")
        # A copy: torch takes no array that is read-only, as one that shows a PIL image is.
        inputs = self._processor.image_processor(
            np.array(image), input_data_format="channels_last", return_tensors="pt"
        )
        with torch.inference_mode():
            features = self._model.get_image_embeddings(inputs["pixel_values"].to(self._device, self._dtype))
        if isinstance(features, tuple):  # SAM-HQ; its decoder reads the first of the intermediate ones
            named = {"image_embeddings": [features[0]], "intermediate_embeddings": features[1][:1]}
        else:
            named = {"image_embeddings": [features] if isinstance(features, torch.Tensor) else features}
        arrays = {f"{name}.{level}": _to_array(one) for name, all_ in named.items() for level, one in enumerate(all_)}
        return Embedding(arrays, size)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask for each prompt, in order, HxW bool in the original frame: where the best mask's logit is above 0.

        Prompts of one form share a decoder call on a GPU.
        """
        features = self._features(embedding)
        return decode_by_form(prompts, self.batch, lambda some: self._decode_batch(features, embedding.size, some))

    def _decode_batch(
        self, features: dict[str, Any], size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> Iterator[Prediction]:
        with torch.inference_mode():
            output = self._model(**features, **self._prompt_tensors(size, prompts), multimask_output=self._multimask)
            scores, best = output.iou_scores[0].float().max(dim=-1)
            for index, score in enumerate(scores.tolist()):
                if not np.isfinite(score):
                    raise SegmenterError(
                        f"predicted an IoU of {score} in {self._dtype}, no number. Set samr1.segmenter.dtype to float32"
                    )
                # One mask at a time: logits of the original size are the largest thing here.
                logits = output.pred_masks[0, index, best[index]][None, None]
                yield Prediction(self._original_mask(logits, size), score)

    def _features(self, embedding: Embedding) -> dict[str, Any]:
        levels: dict[str, list[torch.Tensor]] = {}
        for name, array in embedding.arrays.items():
            levels.setdefault(name.split(".")[0], []).append(_to_tensor(array, self._dtype).to(self._device))
        features: dict[str, Any] = dict(levels)
        if self._longest_side is not None:
            features["image_embeddings"] = features["image_embeddings"][0]
        return features

    def _prompt_tensors(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Prompts of one form as the processor makes them, to the bit, in pixels of the model's input: input_points
        [1, P, N, 2] XY, input_labels [1, P, N] int64, input_boxes [1, P, 4]; float32 for SAM 2, else float64."""
        height, width = self._input_size(size)
        precision = torch.float32 if self._longest_side is None else torch.float64
        factors = torch.tensor([width / size[1], height / size[0]], dtype=precision)
        tensors = {}
        if prompts[0].points:
            points = torch.tensor([[prompt.points for prompt in prompts]], dtype=precision)
            tensors["input_points"] = points * factors
            tensors["input_labels"] = torch.tensor([[prompt.labels for prompt in prompts]])
        if prompts[0].box is not None:
            boxes = torch.tensor([[prompt.box for prompt in prompts]], dtype=torch.float32).to(precision)
            tensors["input_boxes"] = boxes * factors.repeat(2)
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that an image of `size` (H, W) fills in the model's input."""
        if self._longest_side is None:
            return self._processor.target_size, self._processor.target_size
        scale = self._longest_side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def _original_mask(self, logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        """Logits [1, 1, h, w] of the decoder as a mask HxW bool in the original frame."""
        padded = () if self._longest_side is None else ([self._input_size(size)],)
        (mask,) = self._processor.post_process_masks([logits.float()], [size], *padded)
        return mask[0, 0].cpu().numpy()


def _folder_problems(folder: Path) -> Iterator[str]:
    place = f"samr1.segmenter.path: {folder.absolute()}"
    if not folder.is_dir():
        yield (
            f"samr1.segmenter.path: no folder {folder.absolute()}. Name one in the hub's format ({CONFIG}, {WEIGHTS}), "
            "or a hub id such as facebook/sam2-hiera-large"
        )
    elif not (folder / CONFIG).is_file():
        yield f"{place} holds no {CONFIG}, so it is no model in the hub's format"
    else:
        yield from _type_problems(folder / CONFIG)
        if not any(folder.glob(WEIGHTS)):
            yield f"{place} holds no weights ({WEIGHTS})"
        if not any((folder / name).is_file() for name in PROCESSOR_CONFIGS):
            yield f"{place} holds neither {' nor '.join(PROCESSOR_CONFIGS)}, which say how images are prepared"


def _type_problems(config: Path) -> Iterator[str]:
    try:
        model_type = _model_type(config)
    except (OSError, ValueError) as error:
        yield f"samr1.segmenter.path: {config.absolute()} does not read as JSON ({error})"
        return
    if model_type not in CLASSES:
        yield (
            f"samr1.segmenter.path: {config.absolute()} has the model_type {model_type!r}, the backend transformers "
            f"takes {', '.join(CLASSES)}"
        )


def _model_type(config: Path) -> Any:
    values = json.loads(config.read_text(encoding="utf-8"))
    return values.get("model_type") if isinstance(values, dict) else None


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", WEIGHTS]))
    except OSError as error:  # also the base of the hub's own errors
        raise ConfigError(
            f"samr1.segmenter.path: {hub_id} is not in the hub cache and cannot be fetched ({error}). "
            f"Type: hf download {hub_id}, or name a folder"
        ) from error


def _load(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder, in evaluation mode; every weight of it comes from the folder."""
    try:
        model, info = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # safetensors' and torch's errors have no base of their own
        raise ConfigError(
            f"samr1.segmenter.path: transformers does not load {folder.absolute()} ({error}). Fetch it again"
        ) from error
    if missing := sorted(info["missing_keys"]):  # which transformers would fill with random numbers
        raise ConfigError(
            f"samr1.segmenter.path: the weights in {folder.absolute()} lack {len(missing)} of the model's tensors, "
            f"the first is {missing[0]}. Fetch it again, or name another model"
        )
    return model


def _digest(folder: Path, dtype: str) -> str:
    """Digest of everything that an embedding depends on: the files' content, the type and transformers' version."""
    files = sorted([*folder.glob(WEIGHTS), *(folder / name for name in (CONFIG, *PROCESSOR_CONFIGS))])
    content = "".join(f"{path.name} {sha256_of(path)}\n" for path in files if path.is_file())
    return hashlib.sha256(f"{content}{dtype} {transformers.__version__}".encode()).hexdigest()[:32]


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.cpu().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _to_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
