"""The messages of the HTTP service. Client and server validate with these schemas; the OpenAPI page shows them.

Coordinates are continuous XY pixels of the original frame. Masks are compressed COCO RLE counts of the image's size.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth, few_keys

TOKEN_VARIABLE = "SAMR1_TOKEN"  # environment variable of server and client
MAX_PROMPTS = 256  # per request
MAX_POINTS = 1000  # per prompt
Coordinate = Annotated[float, Field(allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the image file")]
Size = Annotated[tuple[PositiveInt, PositiveInt], Field(description="(H, W) of the image")]
Identity = Annotated[str, Field(min_length=1, max_length=1000, description="identity of weights and preprocessing")]


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        return few_keys(value)


class ImageRef(Wire):
    """An image by its digest, and by its path where the server does not have it yet."""

    sha256: Digest
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="path on the server's machine, under one of its roots; may be relative to a root"
    )


class WirePrompt(Wire):
    """A prompt in JSON: a box, points, or both. Samples store an answer's objects in the same form."""

    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(default=None, description="x1 y1 x2 y2")
    # FailFast: the first fault is enough; a hostile request may hold many.
    points: Annotated[tuple[tuple[Coordinate, Coordinate], ...], FailFast()] = Field(default=(), max_length=MAX_POINTS)
    labels: Annotated[tuple[Literal[0, 1], ...], FailFast()] = Field(
        default=(), max_length=MAX_POINTS, description="label per point: 1 on the object, 0 not on it"
    )

    @model_validator(mode="after")
    def _sound(self) -> WirePrompt:
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"the box {self.box} is inverted or empty, expected x1 < x2 and y1 < y2")
        self.prompt()
        return self

    def prompt(self) -> Prompt:
        """The prompt as the engine takes it."""
        return Prompt(self.box, self.points, self.labels)

    @classmethod
    def of(cls, prompt: Prompt) -> WirePrompt:
        """The message for a prompt. Raises ValidationError."""
        return cls.model_validate({"box": prompt.box, "points": prompt.points, "labels": prompt.labels})

    def within(self, size: tuple[int, int]) -> bool:
        """Whether box and points lie on an image of `size` (H, W), including its border, with a rounding tolerance."""
        corners = [] if self.box is None else [self.box[:2], self.box[2:]]
        slack = 1e-6 * max(size)
        return all(
            -slack <= x <= size[1] + slack and -slack <= y <= size[0] + slack for x, y in (*corners, *self.points)
        )


class SegmentRequest(Wire):
    """Prompts for one image. With `truth` the answer has the overlap with it; with `masks: true` it has the masks."""

    image: ImageRef
    prompts: Annotated[list[WirePrompt], FailFast()] = Field(min_length=1, max_length=MAX_PROMPTS)
    truth: GroundTruth | None = None
    masks: bool = False


class PrefetchRequest(Wire):
    """An image that later requests will name."""

    image: ImageRef


class WirePrediction(Wire):
    """The mask of one prompt and the IoU that the segmenter predicts for it."""

    score: FiniteFloat = Field(description="predicted IoU")
    mask: str = Field(description="compressed COCO RLE counts of the image's size")


class WireOverlap(Wire):
    """The overlap of the union of the prompts' masks with the union of the true masks, without ignored pixels."""

    intersection: NonNegativeInt = Field(description="pixels")
    union: NonNegativeInt = Field(description="pixels")
    ignored: NonNegativeInt = Field(description="pixels that do not count")
    ignored_predicted: NonNegativeInt = Field(description="ignored pixels that are in the prompts' masks")
    iou: float = Field(ge=0, le=1, description="0 where the union is empty")
    score: FiniteFloat = Field(description="mean of the IoUs that the segmenter predicts")


class SegmentAnswer(Wire):
    segmenter: Identity
    size: Size
    predictions: list[WirePrediction] | None = None
    overlap: WireOverlap | None = None


class ImageAnswer(Wire):
    segmenter: Identity
    sha256: Digest
    size: Size


class Accepted(Wire):
    segmenter: Identity
    accepted: Literal[True] = True


class Health(Wire):
    segmenter: Identity
    busy_seconds: float = Field(description="seconds since the running computation started; 0: idle")


ErrorCode = Literal[
    "request",
    "token",
    "origin",
    "outside_roots",
    "unknown_image",
    "image",
    "truth",
    "body_too_large",
    "busy",
    "segmenter",
]


class Problem(Wire):
    code: ErrorCode
    message: str


class ErrorAnswer(Wire):
    error: Problem
