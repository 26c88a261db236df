"""SAM ViT-B, L and H by Meta's package segment-anything: one checkpoint file, such as sam_vit_b_01ec64.pth.

Which of the three it is follows from its weights. Images and coordinates go through the package's own predictor and
transform; the decoder is called as the predictor calls it, on a GPU for all prompts of one form at once, and only the
mask that is kept is brought to the image's size.
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

# Names in the package's registry, by the width of the encoder.
MODELS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
WIDTH_KEY = "image_encoder.patch_embed.proj.bias"


def problems(config: SegmenterConfig) -> Iterator[str]:
    """Why the checkpoint at `samr1.segmenter.path` cannot be loaded, without loading it."""
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
    """Load the checkpoint onto `samr1.segmenter.device`. Raises ConfigError, as `SegmentAnythingSegmenter` does."""
    path = Path(config.path).expanduser()
    return SegmentAnythingSegmenter(path, config.device, config.dtype, config.multimask)


class SegmentAnythingSegmenter:
    """The segmenter of one checkpoint; implements `base.Segmenter`.

    Args:
        path: a state dict of the package's `Sam`.
        device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.
        dtype: float32, or float16 and bfloat16 by autocast: the package computes coordinates in float32, which a model
            whose weights are of another type does not take. Embeddings are float32 either way.
        multimask: the best of three masks by predicted IoU; else the decoder's single mask.

    Raises ConfigError where the file is no such checkpoint, or the device is not there.
    """

    def __init__(self, path: Path, device: str = "auto", dtype: str = "float32", multimask: bool = True) -> None:
        from segment_anything import SamPredictor

        self._device, self._dtype, self._multimask = torch_device(device), getattr(torch, dtype), multimask
        self.batch = batch_size(self._device)
        model = _load(path).to(self._device)
        self._predictor = SamPredictor(model)
        with torch.inference_mode(), self._autocast():
            self._image_pe = model.prompt_encoder.get_dense_pe()  # the same for every image
        self.identity = f"sam-{hashlib.sha256(f'{sha256_of(path)}{dtype}'.encode()).hexdigest()[:32]}"

    def encode(self, image: np.ndarray) -> Embedding:
        """Embed an image, HxWx3 uint8 RGB in the original frame: `image_embeddings` [1, 256, 64, 64] float32."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 HxWx3, RGB")
        size = (image.shape[0], image.shape[1])
        if not all(self._input_size(size)):
            raise ImageError(f"{size[1]}x{size[0]} pixels: too thin, its short side vanishes at {self._side}")
        with torch.inference_mode(), self._autocast():
            self._predictor.set_image(image)
            features = self._predictor.get_image_embedding()
        return Embedding({"image_embeddings": features.float().cpu().numpy()}, size)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask for each prompt, in order, HxW bool in the original frame: where its logit is above 0."""
        features = torch.from_numpy(embedding.arrays["image_embeddings"]).to(self._device)
        with torch.inference_mode(), self._autocast():
            return decode_by_form(prompts, self.batch, lambda some: self._decode_batch(features, embedding.size, some))

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
                    f"predicted an IoU of {score} in {self._dtype}, no number. Set samr1.segmenter.dtype to float32"
                )
            # One mask at a time: logits of the original size are the largest thing here.
            logits = masks[index, best[index]][None, None]
            (mask,) = model.postprocess_masks(logits, self._input_size(size), size)[0] > model.mask_threshold
            yield Prediction(mask.cpu().numpy(), score)

    def _prompt_tensors(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Prompts of one form as the package's predictor makes them: points ([P, N, 2] XY, labels [P, N]) and boxes
        [P, 4], float32 in the frame of 1024."""
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
        found = "no such tensor" if bias is None else f"a width of {bias.numel()}"
        raise ConfigError(
            f"{place} is no checkpoint of SAM ViT-B, L or H: {WIDTH_KEY} gives {found}, expected a width of "
            f"{', '.join(map(str, MODELS))}. SAM 2 and later go with samr1.segmenter.backend=transformers"
        )
    model = sam_model_registry[name]()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # which lists the keys that do not fit
        what = " ".join(str(error).split())[:500]
        raise ConfigError(f"{place} does not fit SAM {name}: {what} Fetch it again") from error
    return model
