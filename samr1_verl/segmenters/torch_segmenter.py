"""The parts of a segmenter that both torch backends share: batches of images, embeddings on the device, and decoding.

A backend adds the preprocessing, the encoder and the decoder of its library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import DevicePrediction, Embedding, Prediction, SegmenterError
from samr1_verl.segmenters.torch_common import check_precision, decode_by_form, float32_as, limits_of, torch_device

Features = dict[str, torch.Tensor]  # an embedding's arrays, by the same names, on the device
Converted = TypeVar("Converted")


class TorchSegmenter(ABC):
    """Implements `base.DeviceSegmenter`; a backend sets `identity`.

    Args:
        device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.
        dtype: float32, float16 or bfloat16; the backend says for what it holds.
        multimask: the best of three masks by predicted IoU; false: the decoder's single mask.
        encoder_precision: float32; tf32; or bfloat16, with autocast of the encoder. The decoder and the embeddings
            keep `dtype` in each case.

    Raises:
        ConfigError: the device does not exist, or has no such precision.
    """

    identity: str

    def __init__(self, device: str, dtype: str, multimask: bool, encoder_precision: str) -> None:
        self._device, self._dtype, self._multimask = torch_device(device), getattr(torch, dtype), multimask
        check_precision(encoder_precision, self._device)
        self._precision = encoder_precision
        self.device, self.limits, self.uploads = str(self._device), limits_of(self._device), 0
        # Weak: what the engine's cache drops is not kept here. In the order of use.
        self._on_device: WeakKeyDictionary[Embedding, Features] = WeakKeyDictionary()

    def encode(self, image: np.ndarray) -> Embedding:
        """The embedding of an image, HxWx3 uint8 RGB in the original frame. Raises ImageError for a too thin image.

        The backend says which arrays it has.
        """
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[np.ndarray]) -> list[Embedding]:
        """The embeddings of several images by one call of the encoder. Arguments and errors of each as for `encode`."""
        for image in images:
            self._check(image)
        with torch.inference_mode():
            pixels = self._pixels(images)
            with self._encoding():
                features = self._features(pixels)
        embeddings = []
        for index, image in enumerate(images):
            own = {name: tensor[index : index + 1] for name, tensor in features.items()}
            arrays = {name: _to_array(tensor) for name, tensor in own.items()}
            embeddings.append(Embedding(arrays, (image.shape[0], image.shape[1])))
            self._keep(embeddings[-1], own)
        return embeddings

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask per prompt, in order, HxW bool in the original frame: the pixels whose logit is above 0.

        On a GPU, prompts of one form share a decoder call. Raises SegmenterError for a predicted IoU of NaN.
        """
        return self._decode(embedding, prompts, lambda mask, score: Prediction(mask.cpu().numpy(), score))

    def decode_on_device(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[DevicePrediction]:
        """As `decode`, with masks that stay on the device."""
        return self._decode(embedding, prompts, DevicePrediction)

    @abstractmethod
    def _pixels(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """The encoder's input, [B, 3, h, w] on the device, in the original frame scaled and padded to the model's."""

    @abstractmethod
    def _features(self, pixels: torch.Tensor) -> Features:
        """The embedding's tensors for B images, [B, ...] on the device, in the dtype in which they are stored."""

    @abstractmethod
    def _decoder_output(
        self, features: Features, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [P, C, h, w] and predicted IoUs [P, C] of the C masks of P prompts, which have one form."""

    @abstractmethod
    def _original_mask(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The mask, HxW bool on the device in the original frame, of a mask's logits [1, 1, h, w]."""

    @abstractmethod
    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of an image of `size` (H, W) in the model's input, without padding."""

    def _predictions(
        self, features: Features, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[torch.Tensor, float]]:
        """Mask (HxW bool on the device, original frame) and predicted IoU per prompt; the prompts have one form."""
        masks, ious = self._decoder_output(features, size, prompts)
        scores, best = ious.float().max(dim=1)
        for index, score in enumerate(scores.tolist()):
            if not np.isfinite(score):
                raise SegmenterError(
                    "prediction_not_finite",
                    "the decoder",
                    f"predicted an IoU of {score} in {self._dtype}, not a number. Set samr1.segmenter.dtype to float32",
                )
            # One mask at a time: logits of the original size take the most memory here.
            yield self._original_mask(masks[index, best[index]][None, None], size), score

    def _check(self, image: np.ndarray) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 HxWx3, RGB")
        inside = self._input_size((image.shape[0], image.shape[1]))
        if not all(inside):
            raise ImageError(
                "image_too_thin",
                f"{image.shape[1]}x{image.shape[0]} pixels",
                f"too thin, the short side would have no pixel with a long side of {max(inside)}",
            )

    def _decode(
        self, embedding: Embedding, prompts: Sequence[Prompt], convert: Callable[[torch.Tensor, float], Converted]
    ) -> list[Converted]:
        features = self._loaded(embedding)

        def decode_form(form: Sequence[Prompt]) -> Iterator[Converted]:
            return (convert(mask, score) for mask, score in self._predictions(features, embedding.size, form))

        with torch.inference_mode(), float32_as("ieee"), self._autocast():
            return decode_by_form(prompts, self.limits.prompts, decode_form)

    def _loaded(self, embedding: Embedding) -> Features:
        """The embedding's tensors: those that are on the device already, else copies of its arrays."""
        features = self._on_device.pop(embedding, None)
        if features is None:
            features = {name: _to_tensor(array).to(self._device) for name, array in embedding.arrays.items()}
            self.uploads += self.limits.embeddings > 0
        self._keep(embedding, features)
        return features

    def _keep(self, embedding: Embedding, features: Features) -> None:
        if self.limits.embeddings:
            self._on_device[embedding] = features
        while len(self._on_device) > self.limits.embeddings:
            del self._on_device[next(self._on_device.keys())]

    def _autocast(self) -> AbstractContextManager[object]:
        """The autocast in which encoder and decoder run, for a backend whose weights stay float32."""
        return nullcontext()

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        bfloat16 = self._precision == "bfloat16"
        autocast = torch.autocast(self._device.type, torch.bfloat16) if bfloat16 else self._autocast()
        with float32_as("tf32" if self._precision == "tf32" else "ieee"), autocast:
            yield


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    """An array of a tensor; bfloat16 as its bits in uint16, since NumPy has no bfloat16."""
    tensor = tensor.cpu().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `_to_array`."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
