"""SAM ViT-B, L and H with Meta's package segment-anything: one checkpoint file, such as sam_vit_b_01ec64.pth.

The model's size (B, L or H) follows from its weights. Images and coordinates go through the package's own predictor
and transform. The decoder is called as by the predictor, on a GPU with many prompts of one form at a time. Only the
best mask is scaled to the image's size.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Embedding, Prediction, SegmenterError
from samr1_verl.segmenters.torch_common import batch_size, decode_by_form, device_problems, torch_device

# Names in the package's registry by the width of the encoder.
MODELS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
WIDTH_KEY = "image_encoder.patch_embed.proj.bias"


def problems(config: SegmenterConfig) -> Iterator[str]:
    """The reasons why this segmenter cannot be loaded here, one message per reason. Loads no weights."""
    if importlib.util.find_spec("segment_anything") is None:
        yield (
            "samr1.segmenter.backend is segment_anything, and the package is not installed. "
            "Type: pip install 'samr1-verl[sam]'"
        )
    yield from device_problems(config.device)
    path = Path(config.path).expanduser()
    if not path.is_file():
        yield (
            f"samr1.segmenter.path: no file {path.absolute()}. Name a checkpoint of segment-anything, such as "
            "sam_vit_b_01ec64.pth"
        )


def load(config: SegmenterConfig) -> SegmentAnythingSegmenter:
    """Load the checkpoint onto `samr1.segmenter.device`. Raises ConfigError as `SegmentAnythingSegmenter`."""
    path = Path(config.path).expanduser()
    return SegmentAnythingSegmenter(path, config.device, config.dtype, config.multimask)


class SegmentAnythingSegmenter:
    """The segmenter of one checkpoint; implements `base.Segmenter`.

    Args:
        path: file with a state dict of the package's `Sam`.
        device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.
        dtype: float32, or float16 and bfloat16 with autocast: the package computes coordinates in float32, so the
            weights stay float32. Embeddings are float32 for each dtype.
        multimask: the best of three masks by predicted IoU; false: the decoder's single mask.

    Raises:
        ConfigError: the file is not such a checkpoint, or the device does not exist.
    """

    def __init__(self, path: Path, device: str = "auto", dtype: str = "float32", multimask: bool = True) -> None:
        from segment_anything import SamPredictor

        self._device, self._dtype, self._multimask = torch_device(device), getattr(torch, dtype), multimask
        self.batch, self.device = batch_size(self._device), str(self._device)
        model = _load(path).to(self._device)
        self._predictor = SamPredictor(model)
        with torch.inference_mode(), self._autocast():
            self._image_pe = model.prompt_encoder.get_dense_pe()  # the same for every image
        self.identity = f"sam-{hashlib.sha256(f'{sha256_of(path)}{dtype}'.encode()).hexdigest()[:32]}"

    def encode(self, image: np.ndarray) -> Embedding:
        """The embedding of an image, HxWx3 uint8 RGB in the original frame.

        Its array is `image_embeddings` [1, 256, 64, 64] float32. Raises ImageError for an image that is too thin.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 HxWx3, RGB")
        size = (image.shape[0], image.shape[1])
        if not all(self._input_size(size)):
            raise ImageError(
                f"{size[1]}x{size[0]} pixels: too thin, the short side would have no pixel with a long side of "
                f"{self._side}"
            )
        with torch.inference_mode(), self._autocast():
            self._predictor.set_image(image)
            features = self._predictor.get_image_embedding()
        return Embedding({"image_embeddings": features.float().cpu().numpy()}, size)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask per prompt, in order, HxW bool in the original frame: the pixels whose logit is above 0."""
        features = torch.from_numpy(embedding.arrays["image_embeddings"]).to(self._device)
        with torch.inference_mode(), self._autocast():
            return decode_by_form(prompts, self.batch, lambda form: self._decode_batch(features, embedding.size, form))

    def _decode_batch(
        self, features: torch.Tensor, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> Iterator[Prediction]:
        model = self._predictor.model
        sparse, dense = model.prompt_encoder(**self._prompt_tensors(size, prompts), masks=None)
        masks, ious = model.mask_decoder(
            image_embeddings=features,
            image_pe=self._image_pe,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self._multimask,
        )
        scores, best = ious.float().max(dim=1)
        for index, score in enumerate(scores.tolist()):
            if not np.isfinite(score):
                raise SegmenterError(
                    f"predicted an IoU of {score} in {self._dtype}, not a number. Set samr1.segmenter.dtype to float32"
                )
            # One mask at a time: logits of the original size take the most memory here.
            logits = masks[index, best[index]][None, None]
            (mask,) = model.postprocess_masks(logits, self._input_size(size), size)[0] > model.mask_threshold
            yield Prediction(mask.cpu().numpy(), score)

    def _prompt_tensors(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The decoder's inputs for P prompts of one form, as the package's predictor makes them.

        Points are [P, N, 2] XY with labels [P, N], boxes are [P, 4], all in pixels of the model's input (1024).
        """
        transform = self._predictor.transform
        points = boxes = None
        if prompts[0].points:
            coordinates = transform.apply_coords(np.array([prompt.points for prompt in prompts]), size)
            labels = torch.tensor([prompt.labels for prompt in prompts], dtype=torch.int, device=self._device)
            points = (torch.as_tensor(coordinates, dtype=torch.float, device=self._device), labels)
        if prompts[0].box is not None:
            corners = transform.apply_boxes(np.array([prompt.box for prompt in prompts]), size)
            boxes = torch.as_tensor(corners, dtype=torch.float, device=self._device)
        return {"points": points, "boxes": boxes}

    @property
    def _side(self) -> int:
        return self._predictor.model.image_encoder.img_size

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that an image of `size` (H, W) fills in the model's input."""
        return self._predictor.transform.get_preprocess_shape(*size, self._side)

    def _autocast(self) -> torch.autocast:
        half = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype if half else None, enabled=half)


def _load(path: Path) -> Any:
    """The package's `Sam` with a checkpoint's weights, in evaluation mode."""
    from segment_anything import sam_model_registry

    place = f"samr1.segmenter.path: {path.absolute()}"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{place} is no checkpoint that torch loads ({error}). Fetch it again") from error
    bias = weights.get(WIDTH_KEY) if isinstance(weights, dict) else None
    name = MODELS.get(bias.numel()) if isinstance(bias, torch.Tensor) else None
    if name is None:
        width = "no such tensor" if bias is None else f"a width of {bias.numel()}"
        raise ConfigError(
            f"{place} is no checkpoint of SAM ViT-B, L or H: {WIDTH_KEY} gives {width}, expected a width of "
            f"{', '.join(map(str, MODELS))}. SAM 2 and later need samr1.segmenter.backend=transformers"
        )
    model = sam_model_registry[name]()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # its text lists the keys that do not fit
        keys = " ".join(str(error).split())[:500]
        raise ConfigError(f"{place} does not fit SAM {name}: {keys} Fetch it again") from error
    return model
