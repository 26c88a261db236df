"""A response as one can look at it: the image, the sentence, what was answered, segmented and earned.

One JSON line each. Training writes RUN/samples/STEP.jsonl, the same validation rows every time; `samr1 eval` writes
all of its predictions; `samr1 predict` one for each sentence. Coordinates and masks are in the original frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from samr1_verl.scoring.rollout import prompts_of, read_answer
from samr1_verl.answers import Unusable
from samr1_verl.rows.ground_truth import Box, Point, RowError, read_row
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.record import DataError
from samr1_verl.rows.files import complete
from samr1_verl.service.client import get_client

FOLDER = "samples"  # of a training run's folder


class Shape(BaseModel):
    """One object of an answer: box x1 y1 x2 y2 or None; points (x, y), each labelled 1 (on the object) or 0."""

    model_config = ConfigDict(frozen=True)

    box: Box | None
    points: tuple[Point, ...]
    labels: tuple[int, ...]


class Sample(BaseModel):
    """One response. Masks are compressed COCO RLE counts of `size` (H, W)."""

    model_config = ConfigDict(frozen=True)

    index: int  # of the row in its data set
    data_source: str
    category: str
    sentence: str
    image: str  # path
    sha256: str
    size: tuple[int, int]
    response: str  # whatever the policy wrote: untrusted text
    reason: str | None  # why the answer cannot be used (answers.Reason), or None
    shapes: tuple[Shape, ...]  # empty for an unusable answer
    mask: str  # union of the predicted masks
    truth: str | None  # union of the true ones; None where nothing is known of it
    ignore: str | None  # pixels that do not count
    scores: dict[str, float]  # what the reward or the evaluation says, by name


async def look(
    item: Mapping[str, Any],
    response: str,
    scores: Mapping[str, float],
    segmenter: Any,
    service: Any,
    max_points: int,
    max_objects: int,
    lenient: bool = False,
) -> Sample:
    """A response to an item of SegmentationDataset, with the mask it asks for; an empty one where it is unusable.

    Args:
        item: `data_source`, `reward_model` and `extra_info` of the data set's item.
        response: the text, special tokens removed.
        scores: kept as they are.
        segmenter, service: the recipe's `samr1.segmenter` and `samr1.service`.
        max_points, max_objects: of a usable answer, as the reward has them.
        lenient: read the answer as `answers.parse_answer` does for an untrained model; rewards are strict.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`; MaskError for a truth
            that does not decode.
    """
    extra = item["extra_info"]
    truth, view, row = read_row(item["data_source"], item["reward_model"]["ground_truth"], extra)
    answer = read_answer(response, truth, view, max_points, max_objects, lenient)
    true_mask, _ = truth.union_and_ignore()
    predicted, prompts = np.zeros(truth.size, dtype=bool), []
    if not isinstance(answer, Unusable):
        prompts = prompts_of(answer, truth, view)
        found = await get_client(segmenter, service).segment(extra["image"], extra["sha256"], prompts)
        predicted = np.logical_or.reduce([one.mask for one in found])
        if predicted.shape != truth.size:
            raise RowError(
                f"{row}: the image is {predicted.shape[0]}x{predicted.shape[1]} (HxW), ground_truth.size is "
                f"{truth.size[0]}x{truth.size[1]}. Prepare the data again from this image"
            )
    return Sample(
        index=extra["index"],
        data_source=item["data_source"],
        category=extra["category"],
        sentence=extra["sentence"],
        image=extra["image"],
        sha256=extra["sha256"],
        size=truth.size,
        response=response,
        reason=answer.reason.value if isinstance(answer, Unusable) else None,
        shapes=tuple(
            Shape(box=prompt.box_original, points=prompt.points_original, labels=prompt.labels) for prompt in prompts
        ),
        mask=encode_rle(predicted),
        truth=encode_rle(true_mask) if truth.masks or not truth.boxes else None,
        ignore=truth.ignore,
        scores=dict(scores),
    )


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """One JSON line each; the file appears when it is whole."""
    with complete(path) as part:
        part.write_text("".join(f"{sample.model_dump_json()}\n" for sample in samples))


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, in order. Raises DataError, which names file and line."""
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Sample.model_validate_json(line)
            except ValidationError as error:
                raise DataError(
                    f"{path}: line {number}: {error.errors()[0]['msg']}, expected a sample as JSON"
                ) from error
