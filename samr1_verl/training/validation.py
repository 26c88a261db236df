"""Additions to verl's validation: gIoU and cIoU by two protocols, and samples.

Metrics, per data source, where the reward's scores have pixel counts:

    val-core/<data source>/giou/<protocol>, val-core/<data source>/ciou/<protocol>          protocols: LOGGED

Samples: RUN/samples/STEP.jsonl, with the same rows at every validation, spread evenly over the validation files.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl import Samr1Error
from samr1_verl.answers import Reason
from samr1_verl.config import Samr1Config
from samr1_verl.geometry.giou import PROTOCOLS, Answered, PixelCounts, giou_ciou
from samr1_verl.rows.ground_truth import read_row
from samr1_verl.scoring.sample import FOLDER, Reader, Sample, write_samples
from samr1_verl.scoring.turns import Response

LOGGED = ("lisa", "segzero")  # the other protocols are figures of `samr1 eval`
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validated:
    """A validation row with its response."""

    item: Mapping[str, Any]  # data_source, reward_model and extra_info of the data set's item
    response_ids: Sequence[int]  # tokens of the response
    scores: Mapping[str, float]  # scores of the reward, by name
    turns: Sequence[str] = ()  # their texts, where the policy looked at its mask; then `response_ids` has looks as well


def lost_rows(dataset: Sequence[Mapping[str, Any]], rows: Sequence[Validated], times: int) -> list[Mapping[str, Any]]:
    """The items of the data set whose rollouts were lost, once per lost rollout.

    Args:
        dataset: every item is validated `times` times.
        rows: the rollouts that came back.
    """
    came_back = Counter(row.item["extra_info"]["index"] for row in rows)
    if len(rows) == times * len(dataset):
        return []  # opens no row of the data set
    return [item for item in dataset for _ in range(times - came_back[item["index"]])]


def protocol_metrics(rows: Sequence[Validated], lost: Sequence[Mapping[str, Any]] = ()) -> dict[str, float]:
    """gIoU and cIoU, in [0, 1], per data source and protocol.

    A lost rollout counts as an unusable answer. Where the reward compares no masks, no row has pixel counts, and
    there are no metrics.
    """
    counts: dict[str, list[PixelCounts]] = defaultdict(list)
    for row in rows:
        if (pixels := PixelCounts.in_scores(row.scores, _answered(row.scores))) is not None:
            counts[row.item["data_source"]].append(pixels)
    for item in lost if counts else ():
        counts[item["data_source"]].append(_unanswered(item))
    metrics: dict[str, float] = {}
    for source, of_source in counts.items():
        for protocol in LOGGED:
            found = giou_ciou(of_source, PROTOCOLS[protocol])
            metrics |= {f"val-core/{source}/{name}/{protocol}": found[name] for name in ("giou", "ciou")}
    return metrics


def _answered(scores: Mapping[str, float]) -> Answered:
    """The state of an answer by the reward's flags `answer/<reason>`."""
    flagged = next((reason for reason in Reason if scores.get(f"answer/{reason.value}")), None)
    return "objects" if flagged is None else "nothing" if flagged is Reason.NO_TARGET else "unusable"


def _unanswered(item: Mapping[str, Any]) -> PixelCounts:
    """The counts of an unusable answer about an item of the data set."""
    truth, _, _ = read_row(item["data_source"], item["reward_model"]["ground_truth"], item["extra_info"])
    union, ignore = truth.union_and_ignore()
    return PixelCounts.of(np.zeros_like(union), union, ignore, "unusable")


class SampleWriter:
    """Writes the samples of a run.

    Args:
        config: `samples` is the number of rows; `segmenter` makes their masks, in the place that it names. With the
            mode `embedded` this process loads its own segmenter.
        run: the run's folder.
        tokenizer: the policy's tokenizer.
    """

    def __init__(self, config: Samr1Config, run: Path, tokenizer: Any):
        self._config, self._run, self._tokenizer = config, run, tokenizer
        self._reader = Reader(config.segmenter, config.reward.usable())

    def chosen(self, dataset: Sequence[Mapping[str, Any]]) -> list[int]:
        """The `index` of each row that becomes a sample; these rows are spread evenly over the data set."""
        places = np.linspace(0, len(dataset) - 1, min(self._config.samples, len(dataset)))
        return [dataset[int(place)]["index"] for place in places.round()]

    def write(self, rows: Sequence[Validated], step: int) -> None:
        """Write the samples of a validation. An error is logged and does not end the training; no file is written."""
        try:
            samples = asyncio.run(self._samples(rows))
            write_samples(samples, self._run / FOLDER / f"{step}.jsonl")
        except (Samr1Error, OSError):
            _log.exception("the samples of step %d are not written", step)

    async def _samples(self, rows: Sequence[Validated]) -> list[Sample]:
        return await asyncio.gather(*(self._reader.sample(row.item, self._response(row), row.scores) for row in rows))

    def _response(self, row: Validated) -> Response:
        return Response(row.turns or self._tokenizer.decode(row.response_ids, skip_special_tokens=True))


def first_of_each(rows: Sequence[Validated], chosen: Sequence[int]) -> list[Validated]:
    """The first response to each chosen row, in the order of `chosen`, without rows whose rollout failed."""
    first: dict[int, Validated] = {}
    for row in rows:
        first.setdefault(row.item["extra_info"]["index"], row)
    return [first[index] for index in chosen if index in first]
