"""The corpus through verl's own reward manager: the scores of plain calls, to the bit."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import verl
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from samr1_verl.segmenters import SegmenterError
from tests.errors import refused
from tests.service.fake import BoxSegmenter
from tests.trainers.corpus import Batch, arguments, batches, compute_score
from tests.trainers.corpus import segmenter as boxes
from tests.trainers.table import check_scores


class Texts:
    """A tokenizer with one token per text, because no tokenizer keeps every text of the corpus."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return self._texts[int(ids[0])]


async def through_verl(call: Any, kwargs: dict[str, Any], batch: Batch) -> list[float]:
    """verl binds reward_kwargs in the same way."""
    config = OmegaConf.create({"reward": {"custom_reward_function": {"path": "pkg://reward_fns"}}})
    manager = NaiveRewardManager(config, Texts(batch.answers), partial(call, **kwargs))
    return [
        (await manager.run_single(rollout(batch.item, number)))["reward_score"] for number in range(len(batch.answers))
    ]


def rollout(item: dict[str, Any], number: int) -> DataProto:
    """One rollout as it reaches a reward worker."""
    return DataProto.from_dict(
        tensors={"responses": torch.tensor([[number]]), "attention_mask": torch.ones(1, 1, dtype=torch.long)},
        non_tensors={
            key: np.array([value], dtype=object)
            for key, value in {**item, "extra_info": dict(item["extra_info"])}.items()
            if key != "raw_prompt"
        },
    )


@pytest.mark.slow
def test_scores_are_those_of_a_plain_call(corpus: Path) -> None:
    check_scores(corpus, "verl", verl.__version__, lambda *of: asyncio.run(through_verl(*of)))


def test_a_fault_of_the_segmenter_is_an_error(corpus: Path) -> None:
    engine = boxes()
    engine._segmenter.fault = RuntimeError("out of memory")
    with refused(SegmenterError, "encode_failed", "out of memory"):
        asyncio.run(through_verl(compute_score("samr1"), arguments("samr1", engine), next(batches(corpus, "samr1"))))
    assert isinstance(engine._segmenter, BoxSegmenter)
    engine.close()
