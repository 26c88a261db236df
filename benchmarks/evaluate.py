"""Samples per second of `samr1 eval` against an evaluation one by one, in one process.

    python benchmarks/evaluate.py                            the tiny policy, 240 sentences about 120 drawn scenes
    python benchmarks/evaluate.py --rows 60 --batch-size 8   fewer, and smaller batches

Open evaluation scripts work one by one: per sentence the policy answers, then SAM encodes the image again. `samr1 eval`
asks the policy in batches, encodes an image once, and makes the masks of one batch while the policy answers the next.
Both answer the same questions with the same weights, and the benchmark ends with an error where their figures differ.
Embeddings are kept in memory, none come from a folder. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from samr1_verl.cli.options import PolicyOption, RecipeOption
from samr1_verl.evaluation.figures import figures
from samr1_verl.evaluation.judge import judged
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.evaluation.run import Evaluation
from samr1_verl.policies.base import Policy
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.policies.load import PolicyChoice, config_for
from samr1_verl.prompts.questions import Questions
from samr1_verl.scoring.sample import Reader, Sample
from samr1_verl.service.client import get_client
from samr1_verl.service.engine import Engine

console = Console()


@dataclass(frozen=True)
class Loaded(PolicyChoice):
    """A choice whose policy is there already, so that no side pays for loading it."""

    loaded: Policy = field(kw_only=True)

    def identity(self) -> dict[str, str]:
        return {"model": "loaded"}

    def load(self) -> Policy:
        return self.loaded


def embedded(config: InferenceConfig, cache_gb: float) -> InferenceConfig:
    """The segmenter in this process, its embeddings in memory and nowhere else."""
    changes = {"mode": "embedded", "cache_gb": cache_gb, "cache_dir": None}
    service = config.segmenter.service.model_copy(update=changes)
    return replace(config, segmenter=config.segmenter.model_copy(update={"service": service}))


async def one_by_one(policy: Policy, config: InferenceConfig, file: Path, rows: int) -> list[Sample]:
    """Judged samples, each sentence for itself: question, answer, encode, decode."""
    questions = Questions(config.prompt, policy.processor, config.processor_kwargs)
    reader, samples = Reader(config.segmenter, config.caps), []
    for index, record in enumerate(read_rows(file, rows)):
        item = questions.item(record, Path(record.image), index)
        (response,) = await policy.answer([item])
        samples.append(judged(await reader.sample(item, response, {})))
    return samples


def timed(config: InferenceConfig, work: Callable[[], list[Sample]]) -> tuple[list[Sample], float, int]:
    """Samples, seconds, and images encoded meanwhile."""
    engine = get_client(config.segmenter)
    assert isinstance(engine, Engine)  # the client of an embedded segmenter
    before, began = engine.counters().encodes, time.perf_counter()
    samples = work()
    return samples, time.perf_counter() - began, engine.counters().encodes - before


def main(
    file: Annotated[Path, typer.Option(help="parquet file of rows")] = Path("data/shapes/test.parquet"),
    policy: PolicyOption = None,
    recipe: RecipeOption = None,
    rows: Annotated[int, typer.Option(min=1, help="number of rows, from the start of the file")] = 240,
    batch_size: Annotated[int, typer.Option(min=1, help="batch size of `samr1 eval`")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="turns of both sides; the fastest of each counts")] = 2,
) -> None:
    """Time both sides on the same rows and print the ratio. The last line is one JSON object."""
    transformers_logging.disable_progress_bar()
    config = config_for(policy, recipe, [], server=False)
    few = embedded(config, 1e-9)  # a cache that holds nothing: every sentence encodes
    loaded = PolicyChoice(few, policy).load()
    sides: dict[str, list[float]] = {"one by one": [], "samr1 eval": []}
    encodes: dict[str, int] = {}
    asyncio.run(one_by_one(loaded, few, file, min(rows, 2)))  # costs of a first call
    for repeat in range(repeats):
        slow, seconds, encodes["one by one"] = timed(few, lambda: asyncio.run(one_by_one(loaded, few, file, rows)))
        sides["one by one"].append(seconds)
        many = embedded(config, 4.0 + repeat)  # another cache is another engine, which knows no image yet
        evaluation = Evaluation(file, Loaded(many, loaded=loaded), many, limit=rows, block=batch_size)
        with tempfile.TemporaryDirectory() as folder:
            run = partial(evaluation.run, Path(folder), False, lambda *_: None)
            fast, seconds, encodes["samr1 eval"] = timed(many, run)
        sides["samr1 eval"].append(seconds)
        if figures(slow) != figures(fast):
            raise SystemExit(f"the two sides differ: {figures(slow)} and {figures(fast)}")
    count = len(slow)
    table = Table(title=f"{count} sentences about {figures(slow)['images']} images")
    for column in ("", "images encoded", "seconds", "samples per second"):
        table.add_column(column, justify="right" if column else "left")
    rates = {name: count / min(turns) for name, turns in sides.items()}
    for name, turns in sides.items():
        table.add_row(name, str(encodes[name]), f"{min(turns):.1f}", f"{rates[name]:.2f}")
    console.print(table)
    result = {"samples_per_s": rates, "ratio": rates["samr1 eval"] / rates["one by one"], "seconds": sides}
    typer.echo(json.dumps({**result, "encodes": encodes, "rows": count, "batch_size": batch_size}))


if __name__ == "__main__":
    typer.run(main)
