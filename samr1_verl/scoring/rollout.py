"""A response together with its row: the input of every reward and every figure.

Scores are pure functions of a `Rollout`. Only `overlap`, `segment`, `with_masks` and `union_of` call a segmenter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samr1_verl.answers import CAPS, Answer, Caps, Reason, Unusable, parse_answer, within
from samr1_verl.geometry.frames import boxes_from_policy, boxes_to_policy, points_from_policy, points_to_policy
from samr1_verl.geometry.giou import PixelCounts
from samr1_verl.geometry.masks import MaskError
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth, RowError, View, read_row
from samr1_verl.segmenters.base import Prediction
from samr1_verl.service.client import get_client


@dataclass(frozen=True, eq=False)
class Masks:
    """Predicted and true mask, HxW bool in the original frame; pixels that do not count are False in both."""

    predicted: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Rollout:
    """A response, its row, and the parsed answer in the policy frame, with boxes clipped to the image."""

    text: str  # the response
    truth: GroundTruth
    view: View
    label: str  # names the row in messages
    answer: Answer | Unusable
    masks: Masks | None = None  # set by `with_masks`

    @property
    def flags(self) -> dict[str, float]:
        """`answer/<reason>` for every reason: 1 for the reason why this answer is unusable, else 0."""
        own = self.answer.reason if isinstance(self.answer, Unusable) else None
        return {f"answer/{reason.value}": float(reason is own) for reason in Reason}

    def pixels(self, coordinates: np.ndarray) -> np.ndarray:
        """Points [..., 2] or boxes [..., 4] of an answer, policy frame, in pixels of the resized image, float64.

        Published thresholds have this unit. The frame `absolute` has it already; `thousand` is scaled.
        """
        if self.view.frame == "absolute":
            return np.asarray(coordinates, dtype=np.float64)
        pairs = np.asarray(coordinates, dtype=np.float64).reshape(-1, 2)
        size, policy = _original_wh(self.truth), self.view.policy_size
        with np.errstate(over="ignore"):  # an answer may hold 1e308; infinity fails every threshold as well
            points = points_to_policy(points_from_policy(pairs, size, policy, "thousand"), size, policy, "absolute")
        return points.reshape(np.shape(coordinates))

    def true_boxes(self) -> np.ndarray:
        """The row's boxes, [objects, 4] x1 y1 x2 y2, float64, in pixels of the resized image.

        Raises:
            RowError: the row has fewer boxes than masks.
        """
        if len(self.truth.boxes) < len(self.truth.masks):
            raise RowError(
                "boxes_missing",
                f"{self.label}: ground_truth.boxes",
                f"holds {len(self.truth.boxes)} boxes for {len(self.truth.masks)} masks: this reward compares boxes. "
                "Prepare the data again with boxes, as samr1_verl.geometry.masks.box_of gives them",
            )
        boxes = np.asarray(self.truth.boxes, dtype=np.float64).reshape(-1, 4)
        return boxes_to_policy(boxes, _original_wh(self.truth), self.view.policy_size, "absolute")

    def true_points(self, count: int) -> np.ndarray:
        """The first `count` points per object, [objects, count, 2] XY, float64, in pixels of the resized image.

        Raises:
            RowError: an object has fewer points.
        """
        counts = [len(points) for points in self.truth.points]
        if len(counts) != len(self.truth.boxes) or min(counts, default=count) < count:
            raise RowError(
                "points_missing",
                f"{self.label}: ground_truth.points",
                f"holds {counts} points per object for {len(self.truth.boxes)} boxes, expected at least {count} each: "
                "this reward compares points. Prepare the data again with points, as "
                "samr1_verl.geometry.masks.inscribed_points gives them",
            )
        points = np.asarray([points[:count] for points in self.truth.points], dtype=np.float64).reshape(-1, count, 2)
        return points_to_policy(points, _original_wh(self.truth), self.view.policy_size, "absolute")


def read_rollout(
    data_source: str,
    text: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    caps: Caps = CAPS,
    *,
    lenient: bool = False,
) -> Rollout:
    """The typed response and row. The answer is in the policy frame, with its boxes clipped to the image.

    Args:
        data_source, ground_truth, extra_info: as verl passes them to a reward.
        text: the response, without special tokens.
        caps: maximum number of points and objects of a usable answer.
        lenient: parse the answer leniently, as `answers.parse_answer` does for an untrained model; rewards are strict.

    Raises:
        RowError: a key of the row is missing or invalid.
    """
    truth, view, label = read_row(data_source, ground_truth, extra_info)
    answer = parse_answer(text, caps, lenient=lenient)
    answer = answer if isinstance(answer, Unusable) else within(answer, _extent(truth, view))
    return Rollout(text, truth, view, label, answer)


def prompts_of(rollout: Rollout, objects_policy: Sequence[Prompt]) -> list[Prompt]:
    """Objects of an answer, policy frame, as prompts in the original frame; equal objects become one prompt."""
    geometry = (_original_wh(rollout.truth), rollout.view.policy_size, rollout.view.frame)
    return [
        Prompt(
            None if target.box is None else tuple(boxes_from_policy(np.array(target.box), *geometry).tolist()),
            tuple(map(tuple, points_from_policy(np.array(target.points).reshape(-1, 2), *geometry).tolist())),
            target.labels,
        )
        for target in dict.fromkeys(objects_policy)
    ]


async def overlap(rollout: Rollout, segmenter: Any) -> PixelCounts:
    """The overlap of the answer's masks with the true masks, in pixels; an unusable answer has an empty mask.

    Args:
        segmenter: the recipe's `samr1.segmenter` or a client, as for `service.client.get_client`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    image, sha256 = image_of(rollout)
    with _mask_errors_name_the_row(rollout):
        if isinstance(rollout.answer, Unusable):
            true, ignore = rollout.truth.union_and_ignore()
            return PixelCounts.overlap(np.zeros_like(true), true, ignore)
        prompts_original = prompts_of(rollout, rollout.answer.objects_policy)
        return (await get_client(segmenter).overlap(image, sha256, prompts_original, rollout.truth)).pixels


async def segment(rollout: Rollout, objects_policy: Sequence[Prompt], segmenter: Any) -> list[np.ndarray]:
    """One mask per object, HxW bool in the original frame, in the order of the objects. Raises as `overlap`."""
    return [prediction.mask for prediction in await predictions_of(rollout, objects_policy, segmenter)]


async def predictions_of(rollout: Rollout, objects_policy: Sequence[Prompt], segmenter: Any) -> list[Prediction]:
    """As `segment`, with the IoU that the segmenter predicts for each mask. Equal objects are decoded once."""
    image, sha256 = image_of(rollout)
    distinct = list(dict.fromkeys(objects_policy))
    if not distinct:
        return []
    prompts_original = prompts_of(rollout, distinct)
    predictions = await get_client(segmenter).segment(image, sha256, prompts_original)
    with _mask_errors_name_the_row(rollout):
        for prediction in predictions:
            rollout.truth.check_size(prediction.mask.shape)
    prediction_of = dict(zip(distinct, predictions, strict=True))
    return [prediction_of[target] for target in objects_policy]


async def with_masks(rollout: Rollout, segmenter: Any) -> Rollout:
    """The rollout with `masks` set: the union of its objects' masks, or an empty mask for an unusable answer.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `overlap`.
    """
    with _mask_errors_name_the_row(rollout):
        union, ignore = rollout.truth.union_and_ignore()
    predicted = await union_of(rollout, segmenter)
    counts = np.ones_like(union) if ignore is None else ~ignore
    return replace(rollout, masks=Masks(predicted & counts, union & counts))


async def union_of(rollout: Rollout, segmenter: Any) -> np.ndarray:
    """The union of the answer's masks, HxW bool in the original frame; empty for an unusable answer.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `overlap`.
    """
    predicted = np.zeros(rollout.truth.size, dtype=bool)
    if isinstance(rollout.answer, Answer):
        for mask in await segment(rollout, rollout.answer.objects_policy, segmenter):
            predicted |= mask
    return predicted


def within_image(rollout: Rollout, object_policy: Prompt) -> Prompt | None:
    """One object, policy frame, clipped to the image as by `within`; None: it is outside the image."""
    answer = within(Answer((object_policy,)), _extent(rollout.truth, rollout.view))
    return None if isinstance(answer, Unusable) else answer.objects_policy[0]


def image_of(rollout: Rollout) -> tuple[str, str]:
    """Path and SHA-256 of the row's image. Raises RowError where the row has no image."""
    if rollout.view.image is None or rollout.view.sha256 is None:
        raise RowError(
            "image_missing",
            rollout.label,
            "extra_info.image and extra_info.sha256 are required: this reward compares masks",
        )
    return rollout.view.image, rollout.view.sha256


@contextmanager
def _mask_errors_name_the_row(rollout: Rollout) -> Iterator[None]:
    """Turn a MaskError into a RowError with the row's label: a mask that does not decode is a fault of the row."""
    try:
        yield
    except MaskError as error:
        raise RowError.within(rollout.label, error) from error


def _original_wh(truth: GroundTruth) -> tuple[int, int]:
    return truth.size[1], truth.size[0]


def _extent(truth: GroundTruth, view: View) -> tuple[float, float]:
    width, height = _original_wh(truth)
    corner = boxes_to_policy(np.array([0, 0, width, height]), (width, height), view.policy_size, view.frame)
    return float(corner[2]), float(corner[3])
