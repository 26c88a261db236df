"""The image that the policy sees: its size and its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from samr1_verl.config import ConfigError
from samr1_verl.geometry.images import ImageFile
from samr1_verl.rows.record import MAX_RATIO

_ATTEMPTS = 100  # each brings an extreme size closer to the limits


class PolicySize:
    """The size of the image that the policy sees, checked against the model's own processor.

    A Qwen processor resizes an image to multiples of patch_size x merge_size, with an area between two limits. The
    data set therefore resizes first, to a size that the processor keeps. So prompt, answer and vision tower have the
    same frame.
    """

    def __init__(self, processor: Any, fixed_wh: tuple[int, int] | None, processor_kwargs: dict[str, Any]):
        """
        Args:
            processor: the model's processor (Qwen2.5-VL, Qwen3-VL).
            fixed_wh: (W, H) of every image, in pixels; None: the processor's own size per image.
            processor_kwargs: verl's `data.mm_processor_kwargs`, whose min_pixels and max_pixels replace the
                processor's limits.

        Raises:
            ConfigError: the processor would resize images of `fixed_wh` again, or the model has no such processor.
        """
        image_processor = getattr(processor, "image_processor", None)
        if image_processor is None or not hasattr(image_processor, "merge_size"):
            raise ConfigError(
                "no_image_processor",
                "actor_rollout_ref.model.path",
                "the model has no image processor with patches to merge. Use a Qwen2.5-VL or Qwen3-VL model",
            )
        limits = [processor_kwargs.get(name) for name in ("min_pixels", "max_pixels")]
        if None in limits and (any(limit is not None for limit in limits) or "size" in processor_kwargs):
            raise ConfigError(
                "pixel_limit_alone",
                "data.mm_processor_kwargs",
                f"set min_pixels and max_pixels together, found {dict(processor_kwargs)}; the processor ignores one "
                "without the other",
            )
        size = image_processor.size
        self.min_pixels = limits[0] or size["shortest_edge"]
        self.max_pixels = limits[1] or size["longest_edge"]
        self.factor = image_processor.patch_size * image_processor.merge_size
        self.fixed_wh = fixed_wh
        if fixed_wh is not None and self._processor_size(fixed_wh) != fixed_wh:
            wanted = list(self._processor_size(fixed_wh))
            raise ConfigError(
                "policy_size_resized",
                "samr1.policy_size",
                f"the model's processor would resize {list(fixed_wh)} to {wanted} (multiples of {self.factor}, "
                f"{self.min_pixels} to {self.max_pixels} pixels), so answers would be in another frame. Set "
                f"samr1.policy_size={wanted}",
            )

    def __call__(self, original_wh: tuple[int, int]) -> tuple[int, int]:
        """(W, H) of the resized image for an original image of (W, H). Raises ValueError for a ratio above 200:1."""
        return self.fixed_wh or self._kept_size(original_wh)

    def _kept_size(self, original_wh: tuple[int, int]) -> tuple[int, int]:
        """The processor's own size, or the nearest one that it keeps: rounding makes very long images longer still."""
        size = self._processor_size(original_wh)
        for _ in range(_ATTEMPTS):
            shorter = min(size)
            size = min(size[0], MAX_RATIO * shorter), min(size[1], MAX_RATIO * shorter)
            again = self._processor_size(size)
            if again == size:
                return size
            size = again
        raise ValueError(
            f"the image is {original_wh[0]}x{original_wh[1]} pixels, and no size fits the limits of the processor: "
            f"multiples of {self.factor}, {self.min_pixels} to {self.max_pixels} pixels"
        )

    def _processor_size(self, original_wh: tuple[int, int]) -> tuple[int, int]:
        # Imported here: it imports torch, which the rendering of prompts does not need.
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        width, height = original_wh
        new_height, new_width = smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)
        return new_width, new_height

    def tokens(self, policy_wh: tuple[int, int]) -> int:
        """Number of image tokens in the prompt for a resized image of (W, H)."""
        return (policy_wh[0] // self.factor) * (policy_wh[1] // self.factor)


def shown_image(part: Mapping[str, Any]) -> Image.Image:
    """The image of a part of a chat message, as the policy sees it: the file at its path, resized, or a PIL image.

    Args:
        part: its `image` is a path, with `resized_width` and `resized_height`, or a PIL image of that size.

    Raises:
        ImageError: the file is missing or unreadable.
    """
    image = part["image"]
    if isinstance(image, Image.Image):
        return image
    return load_policy_image(image, (part["resized_width"], part["resized_height"]))


def load_policy_image(path: str | Path, policy_wh: tuple[int, int]) -> Image.Image:
    """An image file as the policy sees it: RGB, 8 bits, after EXIF orientation, resized to (W, H).

    Raises:
        ImageError: the file is missing or is no image.
    """
    return policy_image(ImageFile.read(path), policy_wh)


def policy_image(image: ImageFile, policy_wh: tuple[int, int]) -> Image.Image:
    """As `load_policy_image`. The filter is bicubic, as in Qwen's processors."""
    return image.rgb().resize(policy_wh, Image.Resampling.BICUBIC)
