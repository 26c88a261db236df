"""A policy's answer for any image and sentence: reasoning, box, points and mask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samr1_verl.geometry.images import ImageFile
from samr1_verl.policies.base import Policy
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.prompts.questions import Questions
from samr1_verl.rows.record import Record
from samr1_verl.scoring.sample import Reader, Sample

DATA_SOURCE = "predict"


class Predictor:
    """A policy and a segmenter for questions about images outside a data set.

    Args:
        policy: the policy.
        config: prompt, processor and segmenter.
        lenient: read answers leniently, as `answers.parse_answer` does for an untrained model.
        batch_size: maximum number of questions that the policy answers together.

    Raises:
        ConfigError: the policy's processor does not keep the configured image size.
    """

    def __init__(self, policy: Policy, config: InferenceConfig, lenient: bool = False, batch_size: int = 16) -> None:
        self._policy, self._batch_size = policy, batch_size
        self._reader = Reader(config.segmenter, config.caps, lenient)
        self._questions = Questions(config.prompt, policy.processor, config.processor_kwargs)

    async def predict(self, image: str | Path, sentence: str) -> Sample:
        """The sample of one question, without truth and scores. Raises as `predict_all`."""
        return (await self.predict_all([(image, sentence)]))[0]

    async def predict_all(self, questions: Sequence[tuple[str | Path, str]]) -> list[Sample]:
        """The samples of (image, sentence) pairs, in their order, numbered from 0, without truth and scores.

        Raises:
            ImageError: a file is missing or no image; raised before the first question.
            PolicyError: the policy does not answer.
            ConfigError, SegmenterError: the segmenter cannot be loaded, or fails.
        """
        items = [self._item(Path(image), sentence, number) for number, (image, sentence) in enumerate(questions)]
        samples: list[Sample] = []
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            responses = await self._policy.answer(batch)
            samples += await asyncio.gather(*map(self._sample, batch, responses))
        return samples

    def _item(self, image: Path, sentence: str, number: int) -> dict[str, Any]:
        path = image.expanduser().absolute()
        file = ImageFile.read(path)
        width, height = file.rgb().size
        record = Record(
            data_source=DATA_SOURCE,
            sentence=sentence,
            image=str(path),
            sha256=file.sha256,
            height=height,
            width=width,
            masks=[],
        )
        return self._questions.item(record, path, number)

    async def _sample(self, item: dict[str, Any], response: str) -> Sample:
        sample = await self._reader.sample(item, response, {})
        return sample.model_copy(update={"truth": None})
