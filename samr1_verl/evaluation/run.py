"""One evaluation from rows to results; an interrupted evaluation resumes at the first block without predictions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samr1_verl.evaluation.answering import answer_all
from samr1_verl.evaluation.figures import CONFIDENCE, RESAMPLES, figures, intervals, reasons, tables
from samr1_verl.evaluation.journal import RESULTS, open_journal
from samr1_verl.evaluation.judge import judged
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.evaluation.turns import turn_figures
from samr1_verl.geometry.giou import PROTOCOLS
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.masks import MaskError
from samr1_verl.policies.base import Policy
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.policies.load import PolicyChoice
from samr1_verl.prompts.questions import Questions
from samr1_verl.prompts.templates import prompt_identity
from samr1_verl.rows.files import complete
from samr1_verl.scoring.sample import Reader, Sample
from samr1_verl.segmenters.base import SegmenterError


@dataclass(frozen=True)
class Evaluation:
    """A policy and the rows on which it is evaluated.

    Args:
        file: parquet file of rows.
        choice: the policy; it is loaded only where a row has no prediction yet.
        config: prompt, processor and segmenter.
        limit: number of rows, from the first; None: all.
        lenient: read answers leniently, as `answers.parse_answer` does.
        block: number of rows that the policy answers together.
        seed: seed of the sampling and of the bootstrap.
    """

    file: Path
    choice: PolicyChoice
    config: InferenceConfig
    limit: int | None = None
    lenient: bool = False
    block: int = 16
    seed: int = 0

    def run(self, folder: Path, restart: bool, progress: Callable[[int, int], None]) -> list[Sample]:
        """Evaluate all rows and write `folder`/predictions.jsonl. Returns the judged samples in the order of the rows.

        Args:
            folder: folder of the evaluation; its predictions from an earlier start are kept.
            restart: discard these predictions.
            progress: called with the number of finished rows and the number of all rows.

        Raises:
            DataError: the file, a row or the folder cannot be used.
            ConfigError: the recipe or the segmenter cannot be used.
            PolicyError: the policy cannot be loaded, or does not answer.
            ImageError, MaskError, SegmenterError: an image, a true mask or the segmenter fails; the message names the
                row.
        """
        records = read_rows(self.file, self.limit)
        with open_journal(folder, self.fingerprint(), len(records), self.block, restart, Sample) as journal:
            progress(len(journal.samples), len(records))
            if missing := list(journal.missing()):
                policy = self.choice.load()
                questions = Questions(self.config.prompt, policy.processor, self.config.processor_kwargs)

                def keep(samples: list[Sample]) -> None:
                    journal.append(samples)
                    progress(len(journal.samples), len(records))

                blocks = (
                    [questions.item(records[index], Path(records[index].image), index) for index in block]
                    for block in missing
                )
                asyncio.run(self._answer(policy, blocks, keep))
            return journal.finish()

    async def _answer(self, policy: Policy, blocks: Any, keep: Callable[[list[Sample]], None]) -> None:
        await answer_all(policy, blocks, self._judge, keep, self.seed)

    async def _judge(self, item: Mapping[str, Any], response: str) -> Sample:
        reader = Reader(self.config.segmenter, self.config.caps, self.lenient)
        try:
            return judged(await reader.sample(item, response, {}))
        except (ImageError, MaskError, SegmenterError) as error:
            raise type(error).within(f"{self.file}: row {item['extra_info']['index']}", error) from error

    def fingerprint(self) -> dict[str, Any]:
        """Everything that an answer, its mask or its scores depend on, in JSON values.

        Predictions of two starts are mixed only where it is equal.
        """
        config = self.config
        return {
            "file": str(self.file.absolute()),
            "file_sha256": sha256_of(self.file),
            "limit": self.limit,
            "policy": self.choice.identity(),
            "prompt": config.prompt.model_dump(mode="json") | prompt_identity(config.prompt.prompt),
            "processor": config.processor_kwargs,
            "template": config.template_kwargs,
            "segmenter": config.segmenter.model_dump(mode="json", exclude={"service"}),
            "parsing": "lenient" if self.lenient else "strict",
            "caps": config.caps.model_dump(),
            "batch_size": self.block,
            "seed": self.seed,
        }


def results_of(samples: list[Sample], protocol: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json.

    Its keys: `protocol`; the keys of `figures`, with `giou_ci` and `ciou_ci` per protocol; `giou`, `ciou` and their
    intervals by `protocol` once more at the top; `unusable`, `bootstrap`, `settings` and `tables`; and `turns`, as
    `turn_figures` returns them, where the policy looks at its mask.
    """
    turns = turn_figures(samples)
    overall = overall_figures(samples, seed)
    return {
        "protocol": protocol,
        **{name: value for name, value in overall[protocol].items() if name.removesuffix("_ci") in ("giou", "ciou")},
        **overall,
        "unusable": reasons(samples),
        "bootstrap": {"over": "images", "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": seed},
        **({} if turns is None else {"turns": turns}),
        "settings": dict(settings),
        "tables": tables(samples),
    }


def overall_figures(samples: list[Sample], seed: int) -> dict[str, Any]:
    """`figures` of all samples, with the interval of each under `<figure>_ci`."""
    overall = figures(samples)
    for name in PROTOCOLS:
        overall[name] |= {f"{key}_ci": value for key, value in intervals(samples, name, seed).items()}
    return overall


def store_results(results: Mapping[str, Any], folder: Path) -> Path:
    """Write results.json and return its path. The file appears under its name when it is complete."""
    with complete(folder / RESULTS) as part:
        part.write_text(f"{json.dumps(results, indent=2)}\n")
    return folder / RESULTS
