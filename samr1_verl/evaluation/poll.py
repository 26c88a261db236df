"""An evaluation with several sampled answers a row: asked once, stored, and counted for every smaller number as well.

OUT/answers/000/…, 001/…    one journal for each number of an answer, resumed as any evaluation is
OUT/predictions.jsonl       the elected masks of all answers
OUT/results.json            their figures, and the curve of the figures against the number of answers

`samr1 data difficulty` uses the answers alone, each with its reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samr1_verl.evaluation.answering import Block, answer_blocks
from samr1_verl.evaluation.ballots import Ballot, elected
from samr1_verl.evaluation.clock import SharedClock
from samr1_verl.evaluation.journal import ANSWERS, CHECKSUMS, PREDICTIONS, Journal, open_journal
from samr1_verl.evaluation.judge import judged
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.evaluation.run import Evaluation, overall_figures
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import MaskError
from samr1_verl.prompts.questions import Questions
from samr1_verl.rows.record import DataError, Record
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.scoring.sample import Reader, Sample, write_samples
from samr1_verl.segmenters.base import Prediction, SegmenterError

REWARD = "reward"  # name of the recipe's reward in a sample's scores


@dataclass(frozen=True)
class Poll:
    """An evaluation whose policy samples, with `votes` answers a row.

    Answers are seeded by row and number. So a poll repeats, and the first answers of a larger poll are those of a
    smaller one.

    Args:
        reward: scores every answer under `REWARD`; None: the answers have no reward.
    """

    evaluation: Evaluation
    votes: int
    reward: RecipeReward | None = None

    def run(self, folder: Path, restart: bool, progress: Callable[[int, int], None]) -> list[list[Ballot]]:
        """As `ask`, and write the elected masks to `folder`/predictions.jsonl."""
        rows = self.ask(folder, restart, progress)
        write_samples([elected(row) for row in rows], folder / PREDICTIONS)
        return rows

    def fingerprint(self) -> dict[str, Any]:
        """As `Evaluation.fingerprint`, with the reward."""
        own = self.evaluation.fingerprint()
        return own if self.reward is None else own | {"reward": self.reward.identity()}

    def ask(self, folder: Path, restart: bool, progress: Callable[[int, int], None]) -> list[list[Ballot]]:
        """All rows' answers, `votes` a row, in the order of the rows. Arguments and errors as for `Evaluation.run`.

        A folder's answers are used again; a poll with more answers asks only for those that are missing. An image is
        encoded once: all answers to a row are segmented while its embedding is in memory.
        """
        asked = self.evaluation
        records = read_rows(asked.file, asked.limit)
        settings = self.fingerprint()
        if (folder / CHECKSUMS).exists():
            raise DataError(
                "made_without_votes", f"{folder}", "holds an evaluation without --votes. Choose another --out"
            )
        with ExitStack() as stack:
            journals = [
                stack.enter_context(
                    open_journal(
                        folder / ANSWERS / f"{number:03}",
                        settings | {"answer": number},
                        len(records),
                        asked.block,
                        restart,
                        Ballot,
                    )
                )
                for number in range(self.votes)
            ]
            total = self.votes * len(records)
            progress(sum(len(journal.samples) for journal in journals), total)
            if missing := _missing(journals):

                def keep(block: Block, ballots: list[Ballot]) -> None:
                    journals[block.number].append(ballots)
                    progress(sum(len(journal.samples) for journal in journals), total)

                asyncio.run(self._answer(records, missing, keep))
            columns = [journal.finish() for journal in journals]
        return [list(row) for row in zip(*columns, strict=True)]

    async def _answer(
        self,
        records: Sequence[Record],
        missing: Sequence[tuple[range, int]],
        keep: Callable[[Block, list[Ballot]], None],
    ) -> None:
        config = self.evaluation.config
        policy = self.evaluation.choice.load()
        questions = Questions(config.prompt, policy.processor, config.processor_kwargs)

        def blocks() -> Iterator[Block]:
            for rows, number in missing:
                items = [questions.item(records[row], Path(records[row].image), row) for row in rows]
                yield Block(items, seed_of(self.evaluation.seed, rows.start, number), number)

        await answer_blocks(policy, blocks(), partial(self._judge, SharedClock()), keep)

    async def _judge(self, clock: SharedClock, block: Block, responses: Sequence[str], seconds: float) -> list[Ballot]:
        config, count = self.evaluation.config, len(block.items)
        reader = Reader(config.segmenter, config.caps, self.evaluation.lenient)
        with clock.task() as task:
            read = await asyncio.gather(
                *(self._read(reader, item, response) for item, response in zip(block.items, responses, strict=True))
            )
        return [Ballot.of(sample, predictions, seconds / count, task.seconds / count) for sample, predictions in read]

    async def _read(self, reader: Reader, item: Mapping[str, Any], response: str) -> tuple[Sample, list[Prediction]]:
        try:
            # Together, so that both find the image's embedding in a small cache.
            (sample, predictions), scores = await asyncio.gather(
                reader.with_objects(item, response, {}), self._scores(item, response)
            )
            sample = judged(sample)
            return sample.model_copy(update={"scores": {**sample.scores, **scores}}), predictions
        except (ImageError, MaskError, SegmenterError) as error:
            row = item["extra_info"]["index"]
            raise type(error).within(f"{self.evaluation.file}: row {row}", error) from error

    async def _scores(self, item: Mapping[str, Any], response: str) -> dict[str, float]:
        return {} if self.reward is None else {REWARD: await self.reward(item, response)}


def seed_of(seed: int, row: int, number: int) -> int:
    """The seed of an answer: 32 bits that differ between rows, numbers and seeds."""
    return int(np.random.SeedSequence([seed, row, number]).generate_state(1)[0])


def _missing(journals: Sequence[Journal[Ballot]]) -> list[tuple[range, int]]:
    """The rows and number of each missing block of answers, by rows: the answers about an image follow each other."""
    missing = [(rows, number) for number, journal in enumerate(journals) for rows in journal.missing()]
    return sorted(missing, key=lambda pair: (pair[0].start, pair[1]))


def steps(votes: int) -> list[int]:
    """The numbers of answers of a curve: 1, 2, 4, … and `votes`."""
    return [*(2**power for power in range(votes.bit_length()) if 2**power < votes), votes]


def curve(rows: Sequence[Sequence[Ballot]], seed: int) -> list[dict[str, Any]]:
    """The figures of the first N answers to every row for each N of `steps`, with their intervals and cost.

    Returns:
        Per N: `votes` (N), the keys of `run.overall_figures`, and `cost`: `answers`, `tokens` (None where a server does
        not say), `policy_seconds` and `segmenter_seconds`: the time in which each of them worked.
    """
    points = []
    for votes in steps(len(rows[0])):
        used = [ballot for row in rows for ballot in row[:votes]]
        tokens = [ballot.tokens for ballot in used if ballot.tokens is not None]
        cost = {
            "answers": len(used),
            "tokens": sum(tokens) if len(tokens) == len(used) else None,
            "policy_seconds": sum(ballot.policy_seconds for ballot in used),
            "segmenter_seconds": sum(ballot.segmenter_seconds for ballot in used),
        }
        samples = [elected(row[:votes]) for row in rows]
        points.append({"votes": votes, **overall_figures(samples, seed), "cost": cost})
    return points
