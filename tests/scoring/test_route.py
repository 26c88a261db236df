"""The route /v1/score: the scores of a plain call, bit for bit; errors for the whole request, and never a score."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest

from examples.score_client import score
from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points
from samr1_verl.rows.record import DataError, Record
from samr1_verl.scoring import route
from samr1_verl.scoring.route import MAX_ANSWERS, Reward, RowFiles, score_route
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from tests.errors import refused
from tests.reward_fns.test_resistance import CORPUS
from tests.row_files import make_record, write_rows
from tests.service.fake import BoxSegmenter
from tests.service.servers import ROOT, TOKEN, free_port, start

SIZE_WH = (64, 48)
TERMS = {"terms": {"mask_iou": 0.7, "s_measure": 0.3, "think": 1.0}}
CONFIGS = {reward: [None] for reward in get_args(Reward)} | {
    "samr1": [None, {"thresholds": {"0.3": 1, "0.6": 2.5}}, TERMS],
    "composed": [TERMS],
    "seg_zero": [None, {"strict": True}],
}


@pytest.fixture
def segmenter() -> BoxSegmenter:
    return BoxSegmenter()


@pytest.fixture
def engine(segmenter: BoxSegmenter) -> Any:
    engine = Engine(segmenter, 1_000_000)
    yield engine
    engine.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three rows: one object, two, none."""
    (tmp_path / "root").mkdir()
    masks = [np.zeros(SIZE_WH[::-1], dtype=bool) for _ in range(2)]
    masks[0][10:30, 8:40], masks[1][32:40, 44:60] = True, True
    masks[0][10:14, 8:12] = False
    records = [record(tmp_path / "root", f"{count}.png", masks[:count]) for count in (1, 2, 0)]
    return write_rows(tmp_path / "root" / "train.parquet", *records)


def record(folder: Path, name: str, masks: list[np.ndarray]) -> Record:
    truth = {
        "masks": [encode_rle(mask) for mask in masks],
        "boxes": [box_of(mask) for mask in masks],
        "points": [inscribed_points(mask) for mask in masks],
    }
    return make_record(folder, name, SIZE_WH, **truth)


@pytest.fixture
async def server(engine: Engine, file: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, [file.parent], TOKEN, Limits(), [score_route(RowFiles([file]))])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=True),
        base_url="http://server",
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as client:
        yield client


def stored(number: int, frame: str = "absolute") -> dict[str, Any]:
    return {"id": f"train:{number}", "policy_size": [128, 96], "frame": frame}


def inline(file: Path, number: int, frame: str = "absolute") -> dict[str, Any]:
    _, row, image = record_of(file, number)
    return {
        "data_source": row.data_source,
        "ground_truth": json.loads(row.ground_truth()),
        "image": {"sha256": row.sha256, "path": str(image)},
        "policy_size": [128, 96],
        "frame": frame,
    }


def record_of(file: Path, number: int) -> tuple[str, Record, Path]:
    row, image = RowFiles([file]).record(f"train:{number}")
    return f"train:{number}", row, image


def answer(*boxes: list[float], key: str = "bbox_2d", point: str = "point_2d") -> str:
    objects = [{"label": "a", key: box, point: [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]} for box in boxes]
    return f"<think>It is here, I see it.</think><answer>{json.dumps(objects)}</answer>"


def corpus() -> list[str]:
    """Usable answers of several qualities, and degenerate ones."""
    draw = np.random.default_rng(0)
    good = [answer([16, 20, 80, 60]), answer([16, 20, 80, 60], [88, 64, 120, 80]), answer([10.5, 18.25, 85.75, 66])]
    loose = []
    for _ in range(20):
        x, y, width, height = draw.uniform(0, 60, 2).tolist() + draw.uniform(5, 40, 2).tolist()
        loose.append(answer([x, y, x + width, y + height]))
    zero = '<think>a</think><answer>{"bbox": [16, 20, 80, 60], "points_1": [20, 30], "points_2": [60, 50]}</answer>'
    return [*good, *loose, zero, "<think>no</think><answer>[]</answer>", *(text for text, _ in CORPUS.values())]


def plain(
    reward: str, config: Any, row: Record, image: Path, frame: str, text: str, engine: Engine
) -> dict[str, float]:
    if isinstance(config, dict) and "thresholds" in config:
        config = {"thresholds": {float(key): value for key, value in config["thresholds"].items()}}
    extra = {"image": str(image), "sha256": row.sha256, "policy_size": [128, 96], "frame": frame}
    call = import_module(f"reward_fns.{reward}").compute_score
    return asyncio.run(call(row.data_source, text, row.ground_truth(), extra, segmenter=engine, reward=config))


@pytest.mark.slow
@pytest.mark.parametrize(("reward", "config"), [(reward, one) for reward in CONFIGS for one in CONFIGS[reward]])
async def test_scores_are_those_of_a_plain_call(reward: str, config: Any, server, file: Path, engine: Engine) -> None:
    texts = corpus()
    numbers = [0] if reward == "seg_zero" else [0, 1, 2]  # Seg-Zero's is for one object
    for frame in ("absolute", "thousand"):
        rows = [stored(0, frame), inline(file, 1, frame), stored(2, frame)][: len(numbers)]
        answers = [{"row": row, "response": text} for row in numbers for text in texts]
        found = []
        for first in range(0, len(answers), 60):  # a request has at most 2 MB
            body = {"reward": reward, "config": config, "rows": rows, "answers": answers[first : first + 60]}
            response = await server.post("/v1/score", json=body)
            assert response.status_code == 200, response.text
            found += response.json()["scores"]
        expected = []
        for number in numbers:
            _, row, image = record_of(file, number)
            for text in texts:
                one = await asyncio.to_thread(plain, reward, config, row, image, frame, text, engine)
                expected.append(one)
        assert found == expected, "equal to the bit: JSON keeps every digit of a float"
        assert len({one["score"] for one in found}) > 2


async def test_an_image_is_encoded_once_for_a_group(server, segmenter: BoxSegmenter) -> None:
    answers = [{"row": row, "response": answer([16, 20, 80, 60 + offset])} for row in (0, 1) for offset in range(16)]
    body = {"reward": "samr1", "rows": [stored(0), stored(0, "thousand")], "answers": answers}
    assert (await server.post("/v1/score", json=body)).status_code == 200
    assert len(segmenter.encoded) == 1


async def test_an_uploaded_image_is_known_by_its_digest(server, file: Path) -> None:
    row = inline(file, 0)
    path = row["image"].pop("path")
    body = {"reward": "samr1", "rows": [row], "answers": [{"row": 0, "response": answer([16, 20, 80, 60])}]}
    missing = await server.post("/v1/score", json=body)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "unknown_image"
    await server.put(f"/v1/images/{row['image']['sha256']}", content=Path(path).read_bytes())
    uploaded = await server.post("/v1/score", json=body)
    body["rows"] = [stored(0)]
    assert uploaded.json() == (await server.post("/v1/score", json=body)).json()


async def test_a_fault_of_the_segmenter_is_an_error_for_the_request(server, segmenter: BoxSegmenter) -> None:
    answers = [{"row": 0, "response": "no answer at all"}, {"row": 1, "response": answer([16, 20, 80, 60])}]
    segmenter.fault = RuntimeError("out of memory")
    response = await server.post(
        "/v1/score", json={"reward": "samr1", "rows": [stored(0), stored(1)], "answers": answers}
    )
    assert response.status_code == 500 and response.json()["error"]["code"] == "segmenter"
    assert "out of memory" in response.json()["error"]["message"] and "scores" not in response.text


async def test_answers_with_many_masks_take_turns(server, file: Path, monkeypatch) -> None:
    texts = [answer(*[[16, 20 + step, 80, 60] for step in range(count)]) for count in (1, 5, 3, 9, 2)]
    body = {"reward": "star", "rows": [stored(1)], "answers": [{"row": 0, "response": text} for text in texts]}
    together = (await server.post("/v1/score", json=body)).json()
    monkeypatch.setattr(route, "MASK_BYTES", 5 * 64 * 48)
    request = route.ScoreRequest.model_validate(body)
    rows = [route._inline(request.rows[0], RowFiles([file]))]
    assert [[one.response for one in part] for part in route._portions(request.answers, rows, 120)] == [
        texts[:1],
        texts[1:2],
        texts[2:3],
        texts[3:4],
        texts[4:],
    ]
    assert (await server.post("/v1/score", json=body)).json() == together
    monkeypatch.setattr(route, "ANSWER_BYTES", 100 * 64 * 48)
    response = await server.post("/v1/score", json=body)
    assert response.status_code == 422, "120 objects an answer"
    named = response.json()["error"]["message"]
    assert "rows.0: 3072 pixels" in named and "120 objects" in named and "368640 bytes" in named
    few = body | {"config": {"caps": {"points": 16, "objects": 100}}}
    assert (await server.post("/v1/score", json=few)).status_code == 200


ALONE = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from score_client import score
found = score(*json.loads(os.environ["ASKED"]))
assert not any(name.startswith(("samr1", "reward_fns", "torch")) for name in sys.modules)
print(json.dumps(found))
"""
ONE = [{"row": 0, "response": "a"}]
REFUSED = {
    "a reward that is none": ({"reward": "../etc"}, 422, "request", "reward"),
    "a reward that ranks": ({"reward": "dr_seg"}, 422, "request", "reward"),
    "a term that is none": ({"config": {"terms": {"beauty": 1}}}, 422, "request", "samr1.reward.terms.beauty"),
    "a key that the reward does not read": ({"config": {"strict": True}}, 422, "request", "samr1.reward.strict"),
    "a threshold that is no number": ({"config": {"thresholds": {"half": 1}}}, 422, "request", "thresholds"),
    "a window": ({"config": {"window": {"path": "/tmp/w", "step": 2}}}, 422, "request", "window"),
    "too many objects": ({"config": {"caps": {"points": 1, "objects": 100_000}}}, 422, "request", "caps above 256"),
    "no term with a weight": ({"reward": "composed"}, 422, "request", "samr1.reward.terms"),
    "no row": ({"rows": []}, 422, "request", "rows"),
    "a row that is none": ({"rows": [stored(3)]}, 404, "request", "'train:3': ", "train:0 to train:2"),
    "another file": ({"rows": [{**stored(0), "id": "../train:0"}]}, 404, "request", "'../train:0'"),
    "a negative row": ({"rows": [{**stored(0), "id": "train:-1"}]}, 404, "request", "'train:-1'"),
    "no answer": ({"answers": []}, 422, "request", "answers"),
    "an answer about no row": ({"answers": [{"row": 1, "response": "a"}]}, 422, "request", "row 1 "),
    "too many answers": ({"answers": ONE * (MAX_ANSWERS + 1)}, 422, "request", "answers"),
    "a response that is too long": ({"answers": [{"row": 0, "response": "a" * 200_001}]}, 422, "request", "response"),
    "no policy size": ({"rows": [{"id": "train:0", "frame": "absolute"}]}, 422, "request", "policy_size"),
    "an unknown key": ({"seed": 3}, 422, "request", "seed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused(name: str, server) -> None:
    changes, status, code, *names = REFUSED[name]
    body = {"reward": "samr1", "rows": [stored(0)], "answers": ONE} | changes
    response = await server.post("/v1/score", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code and all(name in error["message"] for name in names), error
    assert (await server.post("/v1/score", json={"reward": "samr1", "rows": [stored(0)], "answers": ONE})).is_success


async def test_rows_that_cannot_be_scored_are_named(server, file: Path) -> None:
    good = inline(file, 0)
    wrong = {
        "the mask's size": ({**good, "ground_truth": {**good["ground_truth"], "size": [64, 48]}}, 422, "truth"),
        "no image": ({**good, "image": None}, 422, "truth"),
        "outside the roots": ({**good, "image": {**good["image"], "path": "/etc/passwd"}}, 403, "outside_roots"),
        "another image": ({**good, "image": {**good["image"], "sha256": "0" * 64}}, 422, "image"),
    }
    for name, (row, status, code) in wrong.items():
        body = {"reward": "samr1", "rows": [row], "answers": [{"row": 0, "response": answer([16, 20, 80, 60])}]}
        response = await server.post("/v1/score", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), (name, response.text)


async def test_a_token_is_needed(server) -> None:
    response = await server.post("/v1/score", json={}, headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401


def test_two_files_with_one_name_are_refused(file: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other" / "train.parquet")
    with refused(DataError, "shared_file_name", f"{other}: ", file, "train:0"):
        RowFiles([file, other])


@pytest.mark.slow
def test_the_client_without_our_package_scores_by_a_real_server(file: Path, small_sam: Path) -> None:
    port = free_port()
    command = ["-m", "samr1_verl.cli", "serve", "--backend", "onnx", "--path", str(small_sam), "--port", str(port)]
    process = start([*command, "--root", str(file.parent), "--rows", str(file)], port, SAMR1_TOKEN=TOKEN)
    try:
        answers = [{"row": 0, "response": answer([16, 20, 80, 60])}]
        asked = [f"http://127.0.0.1:{port}", "samr1", [stored(0)], answers]
        variables = {"SAMR1_TOKEN": TOKEN, "ASKED": json.dumps(asked)}
        done = subprocess.run(
            [sys.executable, "-I", "-c", ALONE, str(ROOT / "examples")],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        (found,) = json.loads(done.stdout)
        assert found["think"] == 1 and found["format"] == 1 and 0 < found["acc"] <= 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAMR1_TOKEN", "wrong")
            with pytest.raises(OSError, match="401"):
                score(f"http://127.0.0.1:{port}", "samr1", [stored(0)], ONE)
    finally:
        process.terminate()
        process.wait(60)
