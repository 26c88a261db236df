"""What true prompts earn: the frozen segmenter is prompted with the truth's own boxes and points.

No published code does this. A row whose mask the segmenter does not draw with true prompts hardly pays any
policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from samr1_verl.answers import Reason, Unusable
from samr1_verl.evaluation.journal import open_journal
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.masks import MaskError
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.prompts.answer_form import AnswerForm, like, response
from samr1_verl.prompts.questions import item_of
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.rows.record import DataError, Record
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.scoring.rollout import overlap, read_rollout
from samr1_verl.segmenters.base import SegmenterError

BLOCK = 16  # rows that are segmented together
REACH = 0.05  # of a box's width and height: the most by which an edge of a jittered box moves
THOUGHT = "The description fits one place of the image, and this is where it lies."  # of every response


class Reached(BaseModel):
    """The best response to a row that is made from its truth, and what it earns."""

    model_config = ConfigDict(frozen=True)

    index: int  # number in the order of the work: rows about one image follow each other
    row: int  # number of the row in its file
    data_source: str
    response: str  # in pixels of the original image
    reason: str | None  # why no policy can name the row's objects (answers.Reason); None: one can
    counts: dict[str, float]  # pixels, under the names of geometry.giou.COUNTS
    reward: float

    @property
    def iou(self) -> float:
        """The mask IoU in [0, 1], as in rewards; 1 where there is no target, and the response says so."""
        return _iou(self.counts, self.reason)


def _iou(counts: Mapping[str, float], reason: str | None) -> float:
    return counts["intersection"] / counts["union"] if counts["union"] else float(reason == Reason.NO_TARGET.value)


@dataclass(frozen=True)
class Ceiling:
    """The measurement of a file's rows.

    Args:
        file: parquet file of rows with masks, boxes and points.
        config: prompt and segmenter. The form of the answers is the prompt's: Seg-Zero's has one box and two
            points an object, VisionReasoner's and StAR's one point.
        reward: of the recipe.
        limit: number of rows, from the first; None: all.
        jitter: number of further responses a row, with every edge of their boxes moved by up to REACH; the best counts.
        seed: of the jitter.
    """

    file: Path
    config: InferenceConfig
    reward: RecipeReward
    limit: int | None = None
    jitter: int = 0
    seed: int = 0

    def run(self, folder: Path, restart: bool, progress: Callable[[int, int], None]) -> list[Reached]:
        """Measure all rows. Returns the results in the order of the rows; those of an earlier start are kept.

        Each image is encoded once: the rows about one image are measured one after the other.

        Args:
            folder: folder of the measurement. restart: discard its results.
            progress: called with the number of finished rows and the number of all rows.

        Raises:
            DataError: the file, a row or the folder cannot be used.
            ConfigError: the segmenter cannot be loaded.
            ImageError, MaskError, SegmenterError: an image, a true mask or the segmenter fails; the message names the
                row.
        """
        records = read_rows(self.file, self.limit)
        for row, record in enumerate(records):
            self._check(record, row)
        order = _by_image(records)
        with open_journal(folder, self.fingerprint(), len(records), BLOCK, restart, Reached) as journal:
            progress(len(journal.samples), len(records))
            if missing := list(journal.missing()):

                async def measure() -> None:
                    for block in missing:
                        rows = ((index, order[index]) for index in block)
                        reached = await asyncio.gather(*(self._reach(i, row, records[row]) for i, row in rows))
                        journal.append(reached)
                        progress(len(journal.samples), len(records))

                asyncio.run(measure())
            return sorted(journal.finish(), key=lambda reached: reached.row)

    def item(self, record: Record, row: int) -> dict[str, Any]:
        """The item of a row for reward and segmenter: the policy sees the image as it is."""
        prompt = self.config.prompt.model_copy(update={"frame": "absolute"})
        return item_of(record, record.image, row, (record.width, record.height), prompt, load_prompt(prompt.prompt))

    def _check(self, record: Record, row: int) -> None:
        """Raises DataError where a row has no true prompt for each of its masks."""
        need = AnswerForm(like(self.config.prompt.prompt)).points
        where, objects = f"{self.file}: row {row}", len(record.masks)
        if len(record.boxes) != objects:
            raise DataError(
                "boxes_missing",
                where,
                f"holds {len(record.boxes)} boxes for {objects} masks, expected one a mask: the segmenter is prompted "
                "with them. Prepare the data again with boxes, as samr1_verl.geometry.masks.box_of gives them",
            )
        counts = [len(points) for points in record.points] or [0] * objects
        if objects and min(counts) < need:
            raise DataError(
                "points_missing",
                where,
                f"holds {counts} points for its {objects} objects, expected at least {need} each: the segmenter is "
                "prompted with them. Prepare the data again with points, as samr1_verl.geometry.masks.inscribed_points "
                "gives them",
            )

    async def _reach(self, index: int, row: int, record: Record) -> Reached:
        item = self.item(record, row)
        try:
            tried = [await self._try(item, text) for text in self._responses(record, row)]
            text, reason, counts = max(tried, key=lambda one: _iou(one[2], one[1]))  # the first of equal ones
            earned = await self.reward(item, text)
        except (ImageError, MaskError, SegmenterError) as error:
            raise type(error).within(f"{self.file}: row {row}", error) from error
        return Reached(
            index=index,
            row=row,
            data_source=record.data_source,
            response=text,
            reason=reason,
            counts=counts,
            reward=earned,
        )

    async def _try(self, item: Mapping[str, Any], text: str) -> tuple[str, str | None, dict[str, float]]:
        truth, extra = item["reward_model"]["ground_truth"], item["extra_info"]
        rollout = read_rollout(item["data_source"], text, truth, extra, self.config.caps)
        reason = rollout.answer.reason.value if isinstance(rollout.answer, Unusable) else None
        return text, reason, (await overlap(rollout, self.config.segmenter)).scores()

    def _responses(self, record: Record, row: int) -> Iterator[str]:
        """The response with the row's own prompts, then those with jittered boxes."""
        form, rng = AnswerForm(like(self.config.prompt.prompt)), np.random.default_rng([self.seed, row])
        boxes = np.asarray(record.boxes, dtype=np.float64).reshape(-1, 4)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        last = np.tile([record.width, record.height], 2)
        for number in range(1 + (self.jitter if record.masks else 0)):
            moved = boxes + (rng.uniform(-REACH, REACH, boxes.shape) * sides if number else 0)
            prompts = zip(np.clip(moved, 0, last).tolist(), record.points, strict=False)
            yield response(THOUGHT, form.answer([form.entry(box, points) for box, points in prompts]))

    def fingerprint(self) -> dict[str, Any]:
        """Everything that a result depends on, in JSON values, as `run.Evaluation.fingerprint`."""
        config = self.config
        return {
            "file": str(self.file.absolute()),
            "file_sha256": sha256_of(self.file),
            "limit": self.limit,
            "form": like(config.prompt.prompt),
            "segmenter": config.segmenter.model_dump(mode="json", exclude={"service"}),
            "reward": self.reward.identity(),
            "caps": config.caps.model_dump(),
            "jitter": self.jitter,
            "seed": self.seed,
        }


def _by_image(records: Sequence[Record]) -> list[int]:
    """The numbers of the rows, by images in the order of their first rows."""
    first: dict[str, int] = {}
    for row, record in enumerate(records):
        first.setdefault(record.sha256, row)
    return sorted(range(len(records)), key=lambda row: (first[records[row].sha256], row))
