"""SAM ViT-B, L and H with Meta's package segment-anything: one checkpoint file, such as sam_vit_b_01ec64.pth.

The model's size (B, L or H) follows from its weights. Images and coordinates go through the package's own transform.
Encoder and decoder are called as by the package's predictor, on a GPU with several images, and with many prompts of
one form, at a time. Only the best mask is scaled to the image's size.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.functional import resize

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.torch_common import torch_problems
from samr1_verl.segmenters.torch_segmenter import Features, TorchSegmenter

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
    yield from torch_problems(config)
    path = Path(config.path).expanduser()
    if not path.is_file():
        yield (
            f"samr1.segmenter.path: no file {path.absolute()}. Name a checkpoint of segment-anything, such as "
            "sam_vit_b_01ec64.pth"
        )


def load(config: SegmenterConfig) -> SegmentAnythingSegmenter:
    """Load the checkpoint onto `samr1.segmenter.device`. Raises ConfigError as `SegmentAnythingSegmenter`."""
    path = Path(config.path).expanduser()
    return SegmentAnythingSegmenter(path, config.device, config.dtype, config.multimask, config.encoder_precision)


class SegmentAnythingSegmenter(TorchSegmenter):
    """The segmenter of one checkpoint; implements `base.DeviceSegmenter`.

    The array of its embeddings is `image_embeddings` [1, 256, 64, 64] float32.

    Args:
        path: file with a state dict of the package's `Sam`.
        device, multimask, encoder_precision: as for `TorchSegmenter`. On a GPU the image is scaled there, with the
            function of torchvision that the package uses for images in host memory.
        dtype: float32, or float16 and bfloat16 with autocast: the package computes coordinates in float32, so the
            weights stay float32. Embeddings are float32 for each dtype.

    Raises:
        ConfigError: the file is not such a checkpoint, or the device does not exist or has no such precision.
    """

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        dtype: str = "float32",
        multimask: bool = True,
        encoder_precision: str = "float32",
    ) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        super().__init__(device, dtype, multimask, encoder_precision)
        self._model = _load(path).to(self._device)
        self._transform = ResizeLongestSide(self._model.image_encoder.img_size)
        with torch.inference_mode(), self._autocast():
            self._image_pe = self._model.prompt_encoder.get_dense_pe()  # the same for every image
        dtypes = dtype if encoder_precision == "float32" else f"{dtype} {encoder_precision}"
        self.identity = f"sam-{hashlib.sha256(f'{sha256_of(path)}{dtypes}'.encode()).hexdigest()[:32]}"

    def _pixels(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.cat([self._model.preprocess(self._scaled(image)) for image in images])

    def _scaled(self, image: np.ndarray) -> torch.Tensor:
        """The image [1, 3, h, w] uint8 on the device, with its longest side as long as the model's input."""
        if self._device.type == "cpu":
            scaled = torch.as_tensor(self._transform.apply_image(image))
            return scaled.permute(2, 0, 1).contiguous()[None]
        on_device = torch.from_numpy(np.array(image)).to(self._device).permute(2, 0, 1)[None]
        return resize(on_device, list(self._input_size((image.shape[0], image.shape[1]))), antialias=True)

    def _features(self, pixels: torch.Tensor) -> Features:
        return {"image_embeddings": self._model.image_encoder(pixels).float()}

    def _decoder_output(
        self, features: Features, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = self._model.prompt_encoder(**self._prompt_tensors(size, prompts), masks=None)
        return self._model.mask_decoder(
            image_embeddings=features["image_embeddings"],
            image_pe=self._image_pe,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self._multimask,
        )

    def _original_mask(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        scaled = self._model.postprocess_masks(logits, self._input_size(size), size)
        return scaled[0, 0] > self._model.mask_threshold

    def _prompt_tensors(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The decoder's inputs for P prompts of one form, as the package's predictor makes them.

        Points are [P, N, 2] XY with labels [P, N], boxes are [P, 4], all in pixels of the model's input (1024).
        """
        points = boxes = None
        if prompts[0].points:
            coordinates = self._transform.apply_coords(np.array([prompt.points for prompt in prompts]), size)
            labels = torch.tensor([prompt.labels for prompt in prompts], dtype=torch.int, device=self._device)
            points = (torch.as_tensor(coordinates, dtype=torch.float, device=self._device), labels)
        if prompts[0].box is not None:
            corners = self._transform.apply_boxes(np.array([prompt.box for prompt in prompts]), size)
            boxes = torch.as_tensor(corners, dtype=torch.float, device=self._device)
        return {"points": points, "boxes": boxes}

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._transform.get_preprocess_shape(*size, self._transform.target_length)

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(self._device.type, self._dtype)


def _load(path: Path) -> Any:
    """The package's `Sam` with a checkpoint's weights, in evaluation mode."""
    from segment_anything import sam_model_registry

    place = f"samr1.segmenter.path: {path.absolute()}"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(
            "weights_not_loadable", place, f"no checkpoint that torch loads ({error}). Fetch it again"
        ) from error
    bias = weights.get(WIDTH_KEY) if isinstance(weights, dict) else None
    name = MODELS.get(bias.numel()) if isinstance(bias, torch.Tensor) else None
    if name is None:
        width = "no such tensor" if bias is None else f"a width of {bias.numel()}"
        raise ConfigError(
            "not_a_sam",
            place,
            f"no checkpoint of SAM ViT-B, L or H: {WIDTH_KEY} gives {width}, expected a width of "
            f"{', '.join(map(str, MODELS))}. SAM 2 and later need samr1.segmenter.backend=transformers",
        )
    model = sam_model_registry[name]()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # its text lists the keys that do not fit
        keys = " ".join(str(error).split())[:500]
        raise ConfigError("tensors_differ", place, f"does not fit SAM {name}: {keys} Fetch it again") from error
    return model
