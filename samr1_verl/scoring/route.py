"""The route /v1/score of `samr1 serve`: rewards of responses, for trainers that call a remote reward.

A request names a reward of reward_fns, and has rows and answers. All answers of a group name one row. A request is
answered as a whole: a fault of one row or of the segmenter is an error, and never a score.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from fastapi import FastAPI, HTTPException
from pydantic import FailFast, Field, PositiveInt, ValidationError, field_validator

from samr1_verl.answers import Caps
from samr1_verl.config import RewardConfig
from samr1_verl.geometry.frames import Frame
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.rows.record import DataError, Record, read_table, record_at, resolve_image
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.segmenters.base import Prediction
from samr1_verl.service.engine import Engine
from samr1_verl.service.images import Images
from samr1_verl.service.wire import MAX_POINTS, MAX_PROMPTS, Identity, ImageRef, Wire

MAX_ROWS, MAX_ANSWERS = 256, 1024  # per request
MAX_CHARACTERS = 200_000  # of a response
MASK_BYTES = 256_000_000  # of masks that answers need together, one byte per pixel; a single answer may need more
ANSWER_BYTES = 4_000_000_000  # of masks that an answer with the most objects may need
# Not Dr. Seg's: it ranks an answer among the training's earlier ones, so no answer has a reward of its own.
Reward = Literal["samr1", "composed", "seg_zero", "vision_reasoner", "star"]


class _Shown(Wire):
    policy_size: tuple[PositiveInt, PositiveInt] = Field(description="[W, H] of the image that the policy saw")
    frame: Frame = Field(description="absolute: pixels of that image; thousand: 0 to 1000")


class InlineRow(_Shown):
    """A row in full."""

    data_source: str = Field(default="remote", min_length=1, max_length=200)
    ground_truth: GroundTruth
    image: ImageRef | None = Field(default=None, description="needed by rewards that compare masks")


class StoredRow(_Shown):
    """A row of one of the server's data files."""

    id: str = Field(max_length=300, description="NAME:ROW, such as train:17 for row 17, from 0, of train.parquet")


class ScoredAnswer(Wire):
    row: int = Field(ge=0, description="index in `rows`, from 0")
    response: str = Field(max_length=MAX_CHARACTERS, description="the policy's text, without special tokens")


class ScoreRequest(Wire):
    """Answers, the rows that they are about, and the reward with its constants."""

    reward: Reward = Field(description="module of reward_fns")
    config: RewardConfig | None = Field(default=None, description="samr1.reward of a recipe; null: its own values")
    rows: Annotated[list[InlineRow | StoredRow], FailFast()] = Field(min_length=1, max_length=MAX_ROWS)
    answers: Annotated[list[ScoredAnswer], FailFast()] = Field(min_length=1, max_length=MAX_ANSWERS)

    @field_validator("config", mode="before")
    @classmethod
    def _thresholds(cls, value: Any) -> Any:
        """JSON has no numbers as keys."""
        if isinstance(value, Mapping) and isinstance(tiers := value.get("thresholds"), Mapping):
            return {**value, "thresholds": {_number(key): score for key, score in tiers.items()}}
        return value

    @field_validator("config")
    @classmethod
    def _few_objects(cls, value: RewardConfig | None) -> RewardConfig | None:
        caps = Caps(points=MAX_POINTS, objects=MAX_PROMPTS)
        if value is None or value.caps is None:
            return value
        if value.caps.objects > caps.objects or value.caps.points > caps.points:
            raise ValueError(f"caps above {caps.objects} objects of {caps.points} points")
        return value


class ScoreAnswer(Wire):
    segmenter: Identity
    scores: list[dict[str, float]] = Field(description="per answer `score` and the reward's other keys")


def _number(key: str) -> float | str:
    try:
        return float(key)
    except ValueError:
        return key


class RowFiles:
    """The rows of data files that requests may name.

    Args:
        files: parquet files of rows with different names.

    Raises:
        DataError: a file cannot be read, or two have one name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._tables: dict[str, tuple[Path, pa.Table]] = {}
        for file in files:
            if file.stem in self._tables:
                raise DataError(
                    "shared_file_name",
                    f"{file}",
                    f"{self._tables[file.stem][0]} has the same name, so {file.stem}:0 would be two rows. Rename one "
                    "of them",
                )
            self._tables[file.stem] = (file, read_table(file))

    def record(self, id: str) -> tuple[Record, Path]:
        """A row, and the path of its image. Raises HTTPException where there is no such row."""
        name, _, number = id.rpartition(":")
        file, table = self._tables.get(name, (None, None))
        if file is None or table is None or not number.isdecimal() or int(number) >= table.num_rows:
            known = ", ".join(f"{one}:0 to {one}:{table.num_rows - 1}" for one, (_, table) in self._tables.items())
            raise HTTPException(404, f"id {id!r}: no such row, expected {known or 'a server with --rows'}")
        record = record_at(table, int(number), file)
        return record, resolve_image(record, file)


class Held:
    """The engine as a reward's segmenter, for the images of one request."""

    def __init__(self, engine: Engine, files: Mapping[str, Path | None]) -> None:
        self._engine, self._files = engine, files

    async def segment(self, image: str, sha256: str, prompts: Sequence[Prompt]) -> list[Prediction]:
        """As `engine.Engine.segment`; the path that a request names is not read."""
        return await self._engine.segment(self._files[sha256], sha256, prompts)

    async def overlap(self, image: str, sha256: str, prompts: Sequence[Prompt], truth: GroundTruth) -> Overlap:
        """As `engine.Engine.overlap`; the path that a request names is not read."""
        return await self._engine.overlap(self._files[sha256], sha256, prompts, truth)


def score_route(files: RowFiles) -> Callable[[FastAPI, Engine, Images], None]:
    """A function that adds the route to an application, as `http_server.create_app` takes it."""

    rules = {name: import_module(f"reward_fns.{name}").ARGUMENTS for name in get_args(Reward)}

    def add(app: FastAPI, engine: Engine, images: Images) -> None:
        @app.post("/v1/score")
        async def score(request: ScoreRequest) -> ScoreAnswer:
            """Rewards of responses, all in one answer, in the order of the request."""
            if (last := max(answer.row for answer in request.answers)) >= len(request.rows):
                raise HTTPException(422, f"answers: row {last} is named, and there are {len(request.rows)} rows")
            rows = [_inline(row, files) for row in request.rows]
            objects = rules[request.reward].read(request.config).caps.objects
            portions = list(_portions(request.answers, rows, objects))
            async with AsyncExitStack() as stack:
                held = {
                    row.image.sha256: await stack.enter_async_context(images.use(row.image.path, row.image.sha256))
                    for row in rows
                    if row.image is not None
                }
                arguments = {"segmenter": Held(engine, held), "reward": request.config}
                reward = RecipeReward(
                    {"path": f"pkg://reward_fns.{request.reward}", "name": "compute_score", "reward_kwargs": arguments}
                )
                # In a thread of its own: matching and parsing take time, and other requests wait in this one.
                scores = await asyncio.to_thread(asyncio.run, _score(reward, rows, portions))
            return ScoreAnswer(segmenter=engine.identity, scores=scores)

    return add


def _inline(row: InlineRow | StoredRow, files: RowFiles) -> InlineRow:
    if isinstance(row, InlineRow):
        return row
    record, image = files.record(row.id)
    try:
        return InlineRow(
            data_source=record.data_source,
            ground_truth=GroundTruth.model_validate_json(record.ground_truth()),
            image=ImageRef(sha256=record.sha256, path=str(image)),
            policy_size=row.policy_size,
            frame=row.frame,
        )
    except ValidationError as error:
        raise HTTPException(422, f"id {row.id!r}: {error.errors()[0]['msg']}") from error


def _portions(answers: Sequence[ScoredAnswer], rows: Sequence[InlineRow], objects: int) -> Iterator[list[ScoredAnswer]]:
    """The answers in portions whose masks fit into MASK_BYTES; some rewards have all masks of an answer in memory.

    Args:
        objects: maximum number of objects of an answer.

    Raises:
        HTTPException: an answer with so many objects would need more than ANSWER_BYTES.
    """
    pixels = [math.prod(row.ground_truth.size) for row in rows]
    for index, count in enumerate(pixels):
        if count * objects > ANSWER_BYTES:
            raise HTTPException(
                422,
                f"rows.{index}: {count} pixels and {objects} objects are {count * objects} bytes of masks, expected at "
                f"most {ANSWER_BYTES}. Set a smaller config.caps.objects",
            )
    portion: list[ScoredAnswer] = []
    size = 0
    for answer in answers:
        more = pixels[answer.row] * min(objects, answer.response.count("{"))  # one brace an object, at least
        if portion and size + more > MASK_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(answer)
        size += more
    yield portion


async def _score(
    reward: RecipeReward, rows: Sequence[InlineRow], portions: Sequence[Sequence[ScoredAnswer]]
) -> list[dict[str, float]]:
    items = [_item(index, row) for index, row in enumerate(rows)]
    scores: list[dict[str, float]] = []
    for portion in portions:
        scores += await asyncio.gather(*(reward.scores(items[answer.row], answer.response) for answer in portion))
    return scores


def _item(index: int, row: InlineRow) -> dict[str, Any]:
    # The path names the row in messages alone: `Held` has the file.
    image, sha256 = (None, None) if row.image is None else (row.image.path or "an upload", row.image.sha256)
    return {
        "data_source": row.data_source,
        "reward_model": {"ground_truth": row.ground_truth.model_dump_json()},
        "extra_info": {
            "image": image,
            "sha256": sha256,
            "policy_size": list(row.policy_size),
            "frame": row.frame,
            "index": index,
        },
    }
