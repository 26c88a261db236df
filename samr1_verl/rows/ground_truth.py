"""What a reward receives beside the response, typed: verl's `ground_truth` string and `extra_info` dict.

Both are plain values, because every field of a row is copied for each rollout. Everything is in the original frame
unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from samr1_verl import Samr1Error
from samr1_verl.geometry.frames import Frame
from samr1_verl.geometry.masks import MaskError, decode_rle, union_rle
from samr1_verl.geometry.prompt import Box, Point


class RowError(Samr1Error, ValueError):
    """A row that no reward can be computed from; the message names data source, image and key. Never a score of 0."""


class GroundTruth(BaseModel):
    """The objects that a sentence means, as `Record.ground_truth` writes them.

    `size` is (H, W) of the image; `masks` are compressed COCO RLE counts, one per object (empty: no target); `ignore` is
    the same for pixels that do not count; `boxes` (x1 y1 x2 y2) and `points` (x, y) have one entry per object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[PositiveInt, PositiveInt]
    masks: tuple[str, ...]
    ignore: str | None = None
    boxes: tuple[Box, ...] = ()
    points: tuple[tuple[Point, ...], ...] = ()

    def check_size(self, image_hw: tuple[int, int]) -> None:
        """Raises MaskError where the image, of (H, W) in the original frame, is not the one that was annotated."""
        if image_hw != self.size:
            raise MaskError(
                f"the image is {image_hw[0]}x{image_hw[1]} (HxW), ground_truth.size is {self.size[0]}x{self.size[1]}. "
                "Prepare the data again from this image"
            )

    def union_and_ignore(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Union of the objects, HxW bool, and the pixels that do not count, HxW bool or None.

        Raises:
            MaskError: an RLE does not decode to `size`.
        """
        try:
            union = union_rle(self.masks, self.size)
        except MaskError as error:
            raise MaskError(f"ground_truth.masks: {error}. Prepare the data again") from error
        try:
            return union, None if self.ignore is None else decode_rle(self.ignore, self.size)
        except MaskError as error:
            raise MaskError(f"ground_truth.ignore: {error}. Prepare the data again") from error


class View(BaseModel):
    """The image and the frame in which the policy saw it, from `extra_info`; other keys there are ignored.

    `image` is a path and `sha256` the digest of the file, both None where no reward needs pixels; `policy_size` is
    (W, H) of the image the policy saw, and answers are in `frame` over it.
    """

    model_config = ConfigDict(frozen=True)

    image: str | None
    sha256: str | None
    policy_size: tuple[PositiveInt, PositiveInt]
    frame: Frame


def read_row(data_source: str, ground_truth: str, extra_info: Mapping[str, Any]) -> tuple[GroundTruth, View, str]:
    """The typed row, and words that name it in error messages.

    Raises:
        RowError: a key is missing or holds something else than it must.
    """
    row = f"row {extra_info['index']}, " if "index" in extra_info else ""
    name = f"data source {data_source!r}, {row}image {extra_info.get('image')!r}"
    try:
        return GroundTruth.model_validate_json(ground_truth), _view(extra_info), name
    except ValidationError as error:
        problem = error.errors()[0]
        section = "ground_truth" if error.title == GroundTruth.__name__ else "extra_info"
        key = ".".join([section, *(str(part) for part in problem["loc"])])
        raise RowError(
            f"{name}: {key}: {problem['msg']}, found {str(problem['input'])[:200]!r}. Prepare the data again with one "
            "of the converters (samr1 data convert); samr1_verl/prompts/questions.py fills extra_info"
        ) from error


def _view(extra_info: Mapping[str, Any]) -> View:
    return View.model_validate({key: extra_info[key] for key in View.model_fields if key in extra_info})
