"""The typed form of a reward's inputs beside the response: verl's `ground_truth` string and `extra_info` dict.

Both are plain values, because verl copies every field of a row for each rollout. Coordinates are in the original frame
unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, PositiveInt, ValidationError, model_validator

from samr1_verl import Samr1Error
from samr1_verl.geometry.frames import Frame
from samr1_verl.geometry.masks import MaskError, mask_of_runs, rle_runs, union_of_runs
from samr1_verl.geometry.prompt import Box, Point

MAX_KEYS = 32  # more than any model here has


class RowError(Samr1Error, ValueError):
    """A row without a valid reward; it never becomes a score of 0. The message names data source, image and key."""


def few_keys(value: Any) -> Any:
    """The value as it is. Raises ValueError for a dict of many keys: pydantic would report each unknown one."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"{len(value)} keys, expected at most {MAX_KEYS}")
    return value


class GroundTruth(BaseModel):
    """The objects that a sentence describes, as `Record.ground_truth` writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # FailFast: the first fault is enough; a hostile request may hold millions.
    size: tuple[PositiveInt, PositiveInt]  # (H, W) of the image
    masks: Annotated[tuple[str, ...], FailFast()]  # compressed COCO RLE counts, one per object; empty: no target
    ignore: str | None = None  # compressed COCO RLE counts of pixels that do not count
    boxes: Annotated[tuple[Box, ...], FailFast()] = ()  # x1 y1 x2 y2, one per object
    points: Annotated[
        tuple[Annotated[tuple[Point, ...], FailFast()], ...], FailFast()
    ] = ()  # (x, y), any number per object

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        return few_keys(value)

    def check_size(self, image_hw: tuple[int, int]) -> None:
        """Check the size (H, W) of the image, original frame. Raises MaskError where it differs from `size`."""
        if image_hw != self.size:
            raise MaskError(
                "size_differs",
                "ground_truth.size",
                f"found {self.size[0]}x{self.size[1]}, the image is {image_hw[0]}x{image_hw[1]} (HxW). Prepare the "
                "data again from this image",
            )

    def runs(self) -> TruthRuns:
        """The union of the objects' masks and the pixels that do not count, in a form that takes little memory.

        Raises:
            MaskError: an RLE does not decode to `size`.
        """
        try:
            union = union_of_runs([rle_runs(mask, self.size) for mask in self.masks], self.size)
        except MaskError as error:
            raise MaskError("undecodable_rle", "ground_truth.masks", f"{error}. Prepare the data again") from error
        try:
            ignore = None if self.ignore is None else rle_runs(self.ignore, self.size)
        except MaskError as error:
            raise MaskError("undecodable_rle", "ground_truth.ignore", f"{error}. Prepare the data again") from error
        return TruthRuns(self.size, union, ignore)

    def union_and_ignore(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The union of the objects' masks and the pixels that do not count (None: all count), HxW bool each.

        Raises:
            MaskError: an RLE does not decode to `size`.
        """
        return self.runs().masks()


@dataclass(frozen=True)
class TruthRuns:
    """Run lengths, as `geometry.masks.rle_runs` gives them, of a row's true pixels and of those that do not count."""

    size: tuple[int, int]  # (H, W) of the image
    union: np.ndarray
    ignore: np.ndarray | None  # None: every pixel counts

    def masks(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The masks, HxW bool, original frame."""
        ignore = None if self.ignore is None else mask_of_runs(self.ignore, self.size)
        return mask_of_runs(self.union, self.size), ignore


class View(BaseModel):
    """The image and the policy frame, from `extra_info`, whose other keys are ignored."""

    model_config = ConfigDict(frozen=True)

    image: str | None  # path; None where no reward needs pixels
    sha256: str | None  # digest of the file; None with `image`
    policy_size: tuple[PositiveInt, PositiveInt]  # (W, H) of the resized image that the policy saw
    frame: Frame  # frame of the answer's coordinates


def read_row(data_source: str, ground_truth: str, extra_info: Mapping[str, Any]) -> tuple[GroundTruth, View, str]:
    """The typed row, and its name for error messages: data source, row number and image.

    Raises:
        RowError: a key is missing or has an invalid value.
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
            "bad_key",
            f"{name}: {key}",
            f"{problem['msg']}, found {str(problem['input'])[:200]!r}. Prepare the data again with one of the "
            "converters (samr1 data convert); samr1_verl/prompts/questions.py fills extra_info",
        ) from error


def _view(extra_info: Mapping[str, Any]) -> View:
    return View.model_validate({key: extra_info[key] for key in View.model_fields if key in extra_info})
