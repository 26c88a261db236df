"""A stored response: image, sentence, answer, masks and scores.

A file has one sample per line, as JSON. Training writes RUN/samples/STEP.jsonl with the same validation rows every
time. `samr1 eval` writes all of its predictions, and `samr1 predict` writes one sample per image. Coordinates and
masks are in the original frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from samr1_verl.answers import CAPS, Answer, Caps, Unusable
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.files import complete
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.rollout import Rollout, predictions_of, prompts_of, read_rollout
from samr1_verl.scoring.turns import answers_of, turns_in
from samr1_verl.segmenters.base import Prediction
from samr1_verl.service.wire import WirePrompt

FOLDER = "samples"  # in a training run's folder


class Turn(BaseModel):
    """A turn of a policy that looks at its mask. The fields are those of a sample."""

    model_config = ConfigDict(frozen=True)

    text: str  # untrusted
    reason: str | None
    shapes: tuple[WirePrompt, ...]
    mask: str | None  # None: the turn says `done` and keeps the mask of the turn before


class Sample(BaseModel):
    """A stored response. Masks are compressed COCO RLE counts of `size` (H, W)."""

    model_config = ConfigDict(frozen=True)

    index: int  # number of the row in its data set
    data_source: str
    category: str
    sentence: str
    image: str  # path
    sha256: str  # digest of the image file
    size: tuple[int, int]  # (H, W) of the image
    response: str  # the policy's text: untrusted
    reason: str | None  # the reason why the answer is unusable (answers.Reason); None: it is usable
    shapes: tuple[WirePrompt, ...]  # the answer's objects; empty for an unusable answer
    mask: str  # union of the predicted masks
    truth: str | None  # union of the true masks; None: unknown
    ignore: str | None  # pixels that do not count; None: all count
    scores: dict[str, float]  # scores of the reward or the evaluation, by name
    turns: tuple[Turn, ...] = ()  # of a dialogue with several turns, whose last answer is `response`; empty: one turn
    tokens: int | None = None  # generated tokens of all turns; None: unknown

    def after(self, turn: int) -> Sample:
        """The sample of a policy that stops after so many turns, at least one. Its scores stay those of all turns."""
        told = self.turns[:turn]
        answers = [one for one in told if one.mask is not None]
        if not answers:
            return self
        last = answers[-1]
        fields = {"response": last.text, "reason": last.reason, "shapes": last.shapes, "mask": last.mask}
        return self.model_copy(update={**fields, "turns": told})


@dataclass(frozen=True, eq=False)
class _Answer:
    """An answer with the segmenter's results for its objects, in their order; equal objects as well."""

    rollout: Rollout
    predictions: list[Prediction]

    def fields(self) -> dict[str, Any]:
        """The fields that a sample and a turn share."""
        answer, mask = self.rollout.answer, np.zeros(self.rollout.truth.size, dtype=bool)
        for prediction in self.predictions:
            mask |= prediction.mask
        objects_policy = answer.objects_policy if isinstance(answer, Answer) else ()
        return {
            "reason": answer.reason.value if isinstance(answer, Unusable) else None,
            "shapes": tuple(map(WirePrompt.of, prompts_of(self.rollout, objects_policy))),
            "mask": encode_rle(mask),
        }


@dataclass(frozen=True)
class Reader:
    """Makes samples from responses.

    Args:
        segmenter: the recipe's `samr1.segmenter` or a client, as for `service.client.get_client`.
        caps: maximum number of points and objects of a usable answer, as in the reward.
        lenient: parse answers leniently, as `answers.parse_answer` does for an untrained model; rewards are strict.
    """

    segmenter: Any
    caps: Caps = CAPS
    lenient: bool = False

    async def sample(self, item: Mapping[str, Any], response: str, scores: Mapping[str, float]) -> Sample:
        """The sample of a response, with the answer's mask; an unusable answer has an empty mask.

        Args:
            item: an item of SegmentationDataset, with `data_source`, `reward_model` and `extra_info`.
            response: the text, without special tokens; of a `turns.Response` every turn is read and segmented.
            scores: scores to store, by name.

        Raises:
            ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
            MaskError: a true mask does not decode.
        """
        return (await self.with_objects(item, response, scores))[0]

    async def with_objects(
        self, item: Mapping[str, Any], response: str, scores: Mapping[str, float]
    ) -> tuple[Sample, list[Prediction]]:
        """As `sample`, with the segmenter's results for the answer's objects, in their order; equal objects as well."""
        extra, turns = item["extra_info"], turns_in(response)
        texts = answers_of(turns)
        answers = await asyncio.gather(*(self._answer(item, text) for text in texts))
        truth, fields = answers[-1].rollout.truth, [answer.fields() for answer in answers]
        true_mask, _ = truth.union_and_ignore()
        told = [Turn(text=text, **of_answer) for text, of_answer in zip(texts, fields, strict=True)]
        told += [Turn(text=text, reason=None, shapes=(), mask=None) for text in turns[len(texts) :]]  # `done`
        sample = Sample(
            index=extra["index"],
            data_source=item["data_source"],
            category=extra["category"],
            sentence=extra["sentence"],
            image=extra["image"],
            sha256=extra["sha256"],
            size=truth.size,
            response=texts[-1],
            truth=encode_rle(true_mask) if truth.masks or not truth.boxes else None,
            ignore=truth.ignore,
            scores=dict(scores),
            turns=tuple(told) if len(told) > 1 else (),
            tokens=getattr(response, "tokens", None),
            **fields[-1],
        )
        return sample, answers[-1].predictions

    async def _answer(self, item: Mapping[str, Any], text: str) -> _Answer:
        row = (item["data_source"], text, item["reward_model"]["ground_truth"], item["extra_info"])
        rollout = read_rollout(*row, self.caps, lenient=self.lenient)
        objects_policy = rollout.answer.objects_policy if isinstance(rollout.answer, Answer) else ()
        return _Answer(rollout, await predictions_of(rollout, objects_policy, self.segmenter))


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Write samples, one JSON line per sample. The file appears under its name when it is complete."""
    with complete(path) as part:
        part.write_text("".join(f"{sample.model_dump_json()}\n" for sample in samples))


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, in order. Raises DataError for an invalid line; the message names file and line."""
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Sample.model_validate_json(line)
            except ValidationError as error:
                raise DataError(
                    "invalid_sample", f"{path}: line {number}", f"{error.errors()[0]['msg']}, expected a sample as JSON"
                ) from error
