"""One response against its row: the object from which every reward and every figure is computed.

Scores are pure functions of a `Rollout`; only `overlap`, `segment` and `with_masks` ask a segmenter.
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
from samr1_verl.service.client import get_client


@dataclass(frozen=True, eq=False)
class Masks:
    """Predicted and true mask, HxW bool, original frame, without the pixels that do not count."""

    predicted: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Rollout:
    """A response, its row, and the strictly parsed answer in the policy frame, boxes clipped to the image.

    `label` names the row in messages. `masks` is None until `with_masks` was called.
    """

    text: str
    truth: GroundTruth
    view: View
    label: str
    answer: Answer | Unusable
    masks: Masks | None = None

    @property
    def flags(self) -> dict[str, float]:
        """`answer/<reason>`: 1 for the reason why the answer cannot be used, else 0."""
        own = self.answer.reason if isinstance(self.answer, Unusable) else None
        return {f"answer/{reason.value}": float(reason is own) for reason in Reason}

    def pixels(self, coordinates: np.ndarray) -> np.ndarray:
        """Points [..., 2] or boxes [..., 4] of an answer in pixels of the image the policy saw, float64.

        The unit of published thresholds. The same numbers in the frame `absolute`; `thousand` is scaled.
        """
        if self.view.frame == "absolute":
            return np.asarray(coordinates, dtype=np.float64)
        pairs = np.asarray(coordinates, dtype=np.float64).reshape(-1, 2)
        size, policy = _original_wh(self.truth), self.view.policy_size
        points = points_to_policy(points_from_policy(pairs, size, policy, "thousand"), size, policy, "absolute")
        return points.reshape(np.shape(coordinates))

    def true_boxes(self) -> np.ndarray:
        """The row's boxes, [objects, 4] x1 y1 x2 y2, float64, in pixels of the image the policy saw.

        Raises:
            RowError: the row has masks and not one box for each.
        """
        if len(self.truth.boxes) < len(self.truth.masks):
            raise RowError(
                f"{self.label}: ground_truth.boxes holds {len(self.truth.boxes)} boxes for {len(self.truth.masks)} "
                "masks: this reward compares boxes. Prepare the data again with boxes, as "
                "samr1_verl.geometry.masks.box_of gives them"
            )
        boxes = np.asarray(self.truth.boxes, dtype=np.float64).reshape(-1, 4)
        return boxes_to_policy(boxes, _original_wh(self.truth), self.view.policy_size, "absolute")

    def true_points(self, count: int) -> np.ndarray:
        """The first `count` points of each object, [objects, count, 2] XY, in the unit of `true_boxes`.

        Raises:
            RowError: an object has fewer.
        """
        counts = [len(points) for points in self.truth.points]
        if len(counts) != len(self.truth.boxes) or min(counts, default=count) < count:
            raise RowError(
                f"{self.label}: ground_truth.points holds {counts} points per object for {len(self.truth.boxes)} boxes, "
                f"expected at least {count} each: this reward compares points. Prepare the data again with points, as "
                "samr1_verl.geometry.masks.inscribed_points gives them"
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
    """The response and its row, typed. Raises RowError.

    The answer is parsed in the policy frame, and its boxes clipped to the image. Rewards are strict; `lenient` reads it
    as `answers.parse_answer` does for an untrained model.
    """
    truth, view, label = read_row(data_source, ground_truth, extra_info)
    answer = parse_answer(text, caps, lenient=lenient)
    answer = answer if isinstance(answer, Unusable) else within(answer, _extent(truth, view))
    return Rollout(text, truth, view, label, answer)


def prompts_of(rollout: Rollout, objects_policy: Sequence[Prompt]) -> list[Prompt]:
    """Objects of an answer as prompts in the original frame, equal ones once."""
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
    """The answer's masks against the true ones, in pixels; an empty mask for an unusable answer.

    Args:
        segmenter: as `service.client.get_client` takes it.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    image, sha256 = image_of(rollout)
    with _mask_errors_name_the_row(rollout):
        if isinstance(rollout.answer, Unusable):
            true, ignore = rollout.truth.union_and_ignore()
            return PixelCounts.of(np.zeros_like(true), true, ignore)
        prompts_original = prompts_of(rollout, rollout.answer.objects_policy)
        return (await get_client(segmenter).overlap(image, sha256, prompts_original, rollout.truth)).pixels


async def segment(rollout: Rollout, objects_policy: Sequence[Prompt], segmenter: Any) -> list[np.ndarray]:
    """One mask for each object, HxW bool, original frame. Equal objects are decoded once. Raises as `overlap`."""
    image, sha256 = image_of(rollout)
    distinct = list(dict.fromkeys(objects_policy))
    if not distinct:
        return []
    prompts_original = prompts_of(rollout, distinct)
    predictions = await get_client(segmenter).segment(image, sha256, prompts_original)
    with _mask_errors_name_the_row(rollout):
        for prediction in predictions:
            rollout.truth.check_size(prediction.mask.shape)
    mask_of = {target: prediction.mask for target, prediction in zip(distinct, predictions, strict=True)}
    return [mask_of[target] for target in objects_policy]


async def with_masks(rollout: Rollout, segmenter: Any) -> Rollout:
    """The rollout with `masks`: the union of its objects' masks, empty where the answer is unusable.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `overlap`.
    """
    with _mask_errors_name_the_row(rollout):
        union, ignore = rollout.truth.union_and_ignore()
    predicted = await union_of(rollout, segmenter)
    counts = np.ones_like(union) if ignore is None else ~ignore
    return replace(rollout, masks=Masks(predicted & counts, union & counts))


async def union_of(rollout: Rollout, segmenter: Any) -> np.ndarray:
    """The union of the answer's masks, HxW bool, original frame; empty where it is unusable. Raises as `overlap`."""
    predicted = np.zeros(rollout.truth.size, dtype=bool)
    if isinstance(rollout.answer, Answer):
        for mask in await segment(rollout, rollout.answer.objects_policy, segmenter):
            predicted |= mask
    return predicted


def within_image(rollout: Rollout, object_policy: Prompt) -> Prompt | None:
    """One object, clipped to the image as `within` does it, or None where it is no prompt there."""
    answer = within(Answer((object_policy,)), _extent(rollout.truth, rollout.view))
    return None if isinstance(answer, Unusable) else answer.objects_policy[0]


def image_of(rollout: Rollout) -> tuple[str, str]:
    """Path and SHA-256 of the row's image. Raises RowError where it has none."""
    if rollout.view.image is None or rollout.view.sha256 is None:
        raise RowError(
            f"{rollout.label}: extra_info.image and extra_info.sha256 must be there: this reward compares masks"
        )
    return rollout.view.image, rollout.view.sha256


@contextmanager
def _mask_errors_name_the_row(rollout: Rollout) -> Iterator[None]:
    """A mask that does not decode or fit is the row's fault: the error becomes a RowError with the row's label."""
    try:
        yield
    except MaskError as error:
        raise RowError(f"{rollout.label}: {error}") from error


def _original_wh(truth: GroundTruth) -> tuple[int, int]:
    return truth.size[1], truth.size[0]


def _extent(truth: GroundTruth, view: View) -> tuple[float, float]:
    width, height = _original_wh(truth)
    corner = boxes_to_policy(np.array([0, 0, width, height]), (width, height), view.policy_size, view.frame)
    return float(corner[2]), float(corner[3])
