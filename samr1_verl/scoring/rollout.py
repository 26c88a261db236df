"""One response against its row: what every reward of this folder looks at.

Scores are pure functions of a `Rollout`; only `with_masks` asks a segmenter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samr1_verl.answers import Answer, Reason, Target, Unusable, parse_answer, within
from samr1_verl.config import ConfigError
from samr1_verl.geometry.frames import boxes_from_policy, boxes_to_policy, points_from_policy, points_to_policy
from samr1_verl.rows.ground_truth import GroundTruth, RowError, View, read_row
from samr1_verl.geometry.masks import MaskError
from samr1_verl.segmenters.base import Prompt
from samr1_verl.service.client import get_client

VERLS_OWN = ("reward_router_address", "reward_model_tokenizer")  # what verl adds beside a reward model


@dataclass(frozen=True, eq=False)
class Masks:
    """Predicted and true mask, HxW bool, original frame, without the pixels that do not count."""

    predicted: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Rollout:
    """A response, its row, and the strictly parsed answer in the policy frame, boxes clipped to the image.

    `row` names the row in messages. `masks` is None until `with_masks` was asked.
    """

    text: str
    truth: GroundTruth
    view: View
    row: str
    answer: Answer | Unusable
    masks: Masks | None = None

    @property
    def flags(self) -> dict[str, float]:
        """`answer/<reason>`: 1 for the reason why the answer cannot be used, else 0."""
        found = self.answer.reason if isinstance(self.answer, Unusable) else None
        return {f"answer/{one.value}": float(one is found) for one in Reason}

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
                f"{self.row}: ground_truth.boxes holds {len(self.truth.boxes)} boxes for {len(self.truth.masks)} "
                "masks: this reward compares boxes. Prepare the data again with boxes, as samr1_verl.geometry.masks.box_of "
                "gives them"
            )
        boxes = np.asarray(self.truth.boxes, dtype=np.float64).reshape(-1, 4)
        return boxes_to_policy(boxes, _original_wh(self.truth), self.view.policy_size, "absolute")

    def true_points(self, count: int) -> np.ndarray:
        """The first `count` points of each object, [objects, count, 2] XY, in the unit of `true_boxes`.

        Raises:
            RowError: an object has fewer.
        """
        found = [len(points) for points in self.truth.points]
        if len(found) != len(self.truth.boxes) or min(found, default=count) < count:
            raise RowError(
                f"{self.row}: ground_truth.points holds {found} points an object for {len(self.truth.boxes)} boxes, "
                f"expected at least {count} each: this reward compares points. Prepare the data again with points, as "
                "samr1_verl.geometry.masks.inscribed_points gives them"
            )
        points = np.asarray([points[:count] for points in self.truth.points], dtype=np.float64).reshape(-1, count, 2)
        return points_to_policy(points, _original_wh(self.truth), self.view.policy_size, "absolute")


def read_rollout(
    data_source: str, text: str, ground_truth: str, extra_info: Mapping[str, Any], max_points: int, max_objects: int
) -> Rollout:
    """The response and its row, typed. Raises RowError."""
    truth, view, row = read_row(data_source, ground_truth, extra_info)
    return Rollout(text, truth, view, row, read_answer(text, truth, view, max_points, max_objects))


def read_answer(
    text: str, truth: GroundTruth, view: View, max_points: int, max_objects: int, lenient: bool = False
) -> Answer | Unusable:
    """The answer in the policy frame, its boxes clipped to the image; rewards are strict."""
    answer = parse_answer(text, lenient=lenient, max_points=max_points, max_objects=max_objects)
    return answer if isinstance(answer, Unusable) else within(answer, _extent(truth, view))


def prompts_of(answer: Answer, truth: GroundTruth, view: View) -> list[Prompt]:
    """The answer's objects as prompts in the original frame, equal ones once."""
    geometry = (_original_wh(truth), view.policy_size, view.frame)
    return [
        Prompt(
            None if target.box is None else tuple(boxes_from_policy(np.array(target.box), *geometry).tolist()),
            tuple(map(tuple, points_from_policy(np.array(target.points).reshape(-1, 2), *geometry).tolist())),
            target.labels,
        )
        for target in dict.fromkeys(answer.targets)
    ]


async def with_masks(rollout: Rollout, segmenter: Any, service: Any) -> Rollout:
    """The rollout with `masks`: the union of its objects' masks, empty where the answer is unusable.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
    """
    union, ignore = true_union(rollout)
    predicted = np.zeros_like(union)
    if isinstance(rollout.answer, Answer):
        for mask in await segment(rollout, list(rollout.answer.targets), segmenter, service):
            predicted |= mask
    counts = np.ones_like(union) if ignore is None else ~ignore
    return replace(rollout, masks=Masks(predicted & counts, union & counts))


async def segment(rollout: Rollout, targets: list[Target], segmenter: Any, service: Any) -> list[np.ndarray]:
    """One mask for each target, HxW bool, original frame. Equal targets are decoded once. Raises as `with_masks`."""
    image, sha256 = image_of(rollout)
    distinct = list(dict.fromkeys(targets))
    if not distinct:
        return []
    prompts = prompts_of(Answer(tuple(distinct)), rollout.truth, rollout.view)
    predictions = await get_client(segmenter, service).segment(image, sha256, prompts)
    mask_of = {target: one.mask for target, one in zip(distinct, predictions, strict=True)}
    for mask in mask_of.values():
        if mask.shape != rollout.truth.size:
            raise RowError(
                f"{rollout.row}: the image is {mask.shape[0]}x{mask.shape[1]} (HxW), ground_truth.size is "
                f"{rollout.truth.size[0]}x{rollout.truth.size[1]}. Prepare the data again from this image"
            )
    return [mask_of[target] for target in targets]


def within_image(rollout: Rollout, target: Target) -> Target | None:
    """One object held against the image as `within` does it, or None where it is no prompt there."""
    found = within(Answer((target,)), _extent(rollout.truth, rollout.view))
    return None if isinstance(found, Unusable) else found.targets[0]


def image_of(rollout: Rollout) -> tuple[str, str]:
    """Path and SHA-256 of the row's image. Raises RowError where it has none."""
    if rollout.view.image is None or rollout.view.sha256 is None:
        raise RowError(
            f"{rollout.row}: extra_info.image and extra_info.sha256 must be there: this reward compares masks"
        )
    return rollout.view.image, rollout.view.sha256


def true_union(rollout: Rollout) -> tuple[np.ndarray, np.ndarray | None]:
    """Union of the true masks, and the pixels that do not count or None; HxW bool, original frame. Raises RowError."""
    try:
        return rollout.truth.union_and_ignore()
    except MaskError as error:
        raise RowError(f"{rollout.row}: {error}") from error


def check_keywords(given: Mapping[str, Any], *expected: str) -> None:
    """Raises ConfigError for keyword arguments that are neither the reward's nor verl's own."""
    if unknown := sorted(set(given) - set(VERLS_OWN)):
        raise ConfigError(f"reward_kwargs.{unknown[0]}: no such key, expected {', '.join(expected)}")


def _original_wh(truth: GroundTruth) -> tuple[int, int]:
    return truth.size[1], truth.size[0]


def _extent(truth: GroundTruth, view: View) -> tuple[float, float]:
    width, height = _original_wh(truth)
    corner = boxes_to_policy(np.array([0, 0, width, height]), (width, height), view.policy_size, view.frame)
    return float(corner[2]), float(corner[3])
