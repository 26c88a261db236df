"""SAM, SAM-HQ, SAM 2 and SAM 3 from Hugging Face transformers: a folder in the hub's format, or a hub id.

`model_type` in config.json selects the model. SAM 2 checkpoints on the hub, such as the paper's
facebook/sam2-hiera-large, declare `sam2_video`. As transformers documents, Sam2Model loads its part of them and leaves
out the video memory; the log line that a model of type sam2_video instantiates one of type sam2 is expected. SAM 3,
facebook/sam3, declares `sam3_video`; Sam3TrackerModel is its part that takes boxes and points.

The processor's configuration beside the weights determines preprocessing and the scaling of masks to the image's size.
The decoder makes three masks per prompt, and the mask with the best predicted IoU is used, for every kind of prompt, as
in Seg-Zero's inference with SAM 2. With `samr1.segmenter.multimask=false` the decoder makes a single mask.
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
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.torch_common import torch_problems
from samr1_verl.segmenters.torch_segmenter import Features, TorchSegmenter

# Classes by model_type. The Auto classes are not used: for sam2_video they give a video processor, and transformers
# 5.9's Sam2VideoConfig reads mask_decoder_config into the prompt encoder's class.
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
    """The reasons why this segmenter cannot be loaded here, one message per reason.

    Loads no weights and does not contact the hub: a hub id that is not in the cache is assumed to exist.
    """
    yield from torch_problems(config)
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
    """Load the model onto `samr1.segmenter.device`. A hub id that is not in the cache is downloaded first.

    Raises:
        ConfigError: the download fails, weights are missing or of another model, or the device does not exist.
    """
    place = hub_id_or_folder(config.path)
    folder = place if isinstance(place, Path) else _download(place)
    if faults := list(_folder_problems(folder)):
        raise ConfigError("segmenter_not_loadable", "samr1.segmenter", "\n".join(faults))
    return TransformersSegmenter(folder, config.device, config.dtype, config.multimask, config.encoder_precision)


class TransformersSegmenter(TorchSegmenter):
    """The segmenter of one folder; implements `base.DeviceSegmenter`.

    The arrays of its embeddings are the decoder's inputs, in the model's dtype; bfloat16 is stored as its bits in
    uint16. SAM: `image_embeddings.0` [1, 256, 64, 64]. SAM 2: `image_embeddings.0` [1, 32, 256, 256], `.1`
    [1, 64, 128, 128] and `.2` [1, 256, 64, 64], together 16.8 MB in float32. SAM-HQ: as SAM, and
    `intermediate_embeddings.0` [1, 64, 64, C] of the encoder's first global block.

    Args:
        folder: has config.json, *.safetensors and the processor's configuration.
        device, multimask, encoder_precision: as for `TorchSegmenter`. On a GPU the image is preprocessed there.
        dtype: float32, float16 or bfloat16: dtype of weights and embeddings. Coordinates are at least float32 until the
            model has normalised them to [-1, 1].

    Raises:
        ConfigError: the weights do not fit the model, or the device does not exist or has no such precision.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        dtype: str = "float32",
        multimask: bool = True,
        encoder_precision: str = "float32",
    ) -> None:
        super().__init__(device, dtype, multimask, encoder_precision)
        model_type = _model_type(folder / CONFIG)
        model, processor = (getattr(transformers, name) for name in CLASSES[model_type])
        self._processor = processor.from_pretrained(folder)
        self._model = _load(model, folder, self._dtype).to(self._device)
        # SAM and SAM-HQ scale the longest side to this length; None: SAM 2 and 3 scale both sides to the input's side.
        self._longest_side: int | None = self._processor.image_processor.size.get("longest_edge")
        self.identity = f"{model_type}-{_digest(folder, dtype, encoder_precision)}"

    def _pixels(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        # Copies, because an array of a PIL image is read-only and torch does not take it.
        place = {} if self._device.type == "cpu" else {"device": self._device}
        inputs = self._processor.image_processor(
            [np.array(image) for image in images], input_data_format="channels_last", return_tensors="pt", **place
        )
        return inputs["pixel_values"].to(self._device, self._dtype)

    def _features(self, pixels: torch.Tensor) -> Features:
        features = self._model.get_image_embeddings(pixels)
        if isinstance(features, tuple):  # SAM-HQ; its decoder reads the first of the intermediate embeddings
            named = {"image_embeddings": [features[0]], "intermediate_embeddings": features[1][:1]}
        else:
            named = {"image_embeddings": [features] if isinstance(features, torch.Tensor) else features}
        return {
            f"{name}.{level}": tensor.to(self._dtype)
            for name, tensors in named.items()
            for level, tensor in enumerate(tensors)
        }

    def _decoder_output(
        self, features: Features, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._decoder_inputs(features) | self._prompt_tensors(size, prompts)
        output = self._model(**inputs, multimask_output=self._multimask)
        return output.pred_masks[0], output.iou_scores[0]

    def _decoder_inputs(self, features: Features) -> dict[str, Any]:
        levels: dict[str, list[torch.Tensor]] = {}
        for name, tensor in features.items():
            levels.setdefault(name.split(".")[0], []).append(tensor)
        inputs: dict[str, Any] = dict(levels)
        if self._longest_side is not None:
            inputs["image_embeddings"] = inputs["image_embeddings"][0]
        return inputs

    def _prompt_tensors(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The decoder's inputs for P prompts of one form, bit-identical to the processor's.

        They are in pixels of the model's input: input_points [1, P, N, 2] XY, input_labels [1, P, N] int64 and
        input_boxes [1, P, 4]. Coordinates are float32 for SAM 2 and 3, else float64.
        """
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
        if self._longest_side is None:
            return self._processor.target_size, self._processor.target_size
        scale = self._longest_side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def _original_mask(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        padded = () if self._longest_side is None else ([self._input_size(size)],)
        (mask,) = self._processor.post_process_masks([logits.float()], [size], *padded)
        return mask[0, 0]


def _folder_problems(folder: Path) -> Iterator[str]:
    place = f"samr1.segmenter.path: {folder.absolute()}"
    if not folder.is_dir():
        yield (
            f"samr1.segmenter.path: no folder {folder.absolute()}. Name a folder in the hub's format ({CONFIG}, "
            f"{WEIGHTS}), or a hub id such as facebook/sam2-hiera-large"
        )
    elif not (folder / CONFIG).is_file():
        yield f"{place} holds no {CONFIG}, so it is no model in the hub's format"
    else:
        yield from _type_problems(folder / CONFIG)
        if not any(folder.glob(WEIGHTS)):
            yield f"{place} holds no weights ({WEIGHTS})"
        if not any((folder / name).is_file() for name in PROCESSOR_CONFIGS):
            yield f"{place} holds neither {' nor '.join(PROCESSOR_CONFIGS)}, which configure the preprocessing"


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
    except OSError as error:  # also the base class of the hub's own errors
        raise ConfigError(
            "weights_not_fetched",
            f"samr1.segmenter.path: {hub_id}",
            f"not in the hub cache, and it cannot be fetched ({error}). Type: hf download {hub_id}, or name a folder",
        ) from error


def _load(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder, in evaluation mode. Raises ConfigError where the folder lacks a weight."""
    place = f"samr1.segmenter.path: {folder.absolute()}"
    try:
        model, info = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # safetensors' and torch's errors have no common base class
        raise ConfigError(
            "weights_not_loadable", place, f"transformers does not load this folder ({error}). Fetch it again"
        ) from error
    if missing := sorted(info["missing_keys"]):  # transformers would fill these weights with random numbers
        raise ConfigError(
            "tensors_missing",
            place,
            f"the weights lack {len(missing)} of the model's tensors, the first is {missing[0]}. Fetch it again, or "
            "name another model",
        )
    return model


def _digest(folder: Path, dtype: str, encoder_precision: str) -> str:
    """Digest of everything that an embedding depends on: the files' content, dtypes and transformers' version."""
    files = sorted([*folder.glob(WEIGHTS), *(folder / name for name in (CONFIG, *PROCESSOR_CONFIGS))])
    content = "".join(f"{path.name} {sha256_of(path)}\n" for path in files if path.is_file())
    dtypes = dtype if encoder_precision == "float32" else f"{dtype} {encoder_precision}"
    return hashlib.sha256(f"{content}{dtypes} {transformers.__version__}".encode()).hexdigest()[:32]
