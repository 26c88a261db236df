"""The playground's server: its answers and its refusals."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.policies.base import PolicyError
from samr1_verl.report.playground import Example, create_app, examples_from
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import Sample, Turn
from samr1_verl.segmenters.base import SegmenterError
from samr1_verl.service.http_server import Limits
from samr1_verl.service.wire import WirePrompt
from tests.errors import refused

LIMITS = Limits(max_body=200_000, max_pixels=50_000, max_queue=2, upload_bytes=1_000_000)


class Half:
    """A predictor whose mask is the left half; it counts how often it is asked at the same time."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error, self.seconds, self.running, self.most = error, seconds, 0, 0

    async def predict(self, image, sentence):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        if self.error is not None:
            raise self.error
        width, height = open_image(image).size
        mask = np.zeros((height, width), dtype=bool)
        mask[:, : width // 2] = True
        return Sample(
            index=0,
            data_source="predict",
            category="",
            sentence=sentence,
            image=str(image),
            sha256=sha256_of(image),
            size=(height, width),
            response="<think>half</think>",
            reason=None,
            shapes=(WirePrompt(box=(0, 0, width / 2, height), points=((1, 1),), labels=(1,)),),
            mask=encode_rle(mask),
            truth=None,
            ignore=None,
            scores={},
        )


def png(width=60, height=40):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def client(predictor=None, **more):
    app = create_app(predictor or Half(), "playground", limits=LIMITS, **more)
    return TestClient(app, base_url="http://127.0.0.1:8770", raise_server_exceptions=False)


def ask(web, body=None, sentence="left", **headers):
    return web.post("/predict", params={"sentence": sentence}, content=png() if body is None else body, headers=headers)


def message(answer):
    return answer.json()["error"]["message"]


def test_an_answer_holds_what_the_page_draws():
    answer = ask(client(), sentence=" the left half ").json()
    (row,) = answer["rows"]
    assert row["sentence"] == "the left half" and row["size"] == [40, 60] and row["truth"] is None
    assert answer["sample"]["shapes"] == [{"box": [0, 0, 30, 40], "points": [[1, 1]], "labels": [1]}]
    mask = decode_rle(answer["masks"][answer["sample"]["mask"]], (40, 60))
    assert mask[:, :30].all() and not mask[:, 30:].any()
    assert answer["images"][0]["src"].startswith("data:image/webp;base64,")


def test_an_answer_of_several_turns_holds_every_mask():
    class Dialogue(Half):
        async def predict(self, image, sentence):
            sample = await super().predict(image, sentence)
            nothing = encode_rle(np.zeros(sample.size, dtype=bool))
            told = [("first", nothing), ("second", sample.mask), ("done", None)]
            turns = tuple(Turn(text=text, reason=None, shapes=(), mask=mask) for text, mask in told)
            return sample.model_copy(update={"turns": turns})

    answer = ask(client(Dialogue())).json()
    first, second, done = answer["sample"]["turns"]
    assert [turn["response"] for turn in (first, second, done)] == ["first", "second", "done"]
    assert second["mask"] == answer["sample"]["mask"] and done["mask"] is None
    assert not decode_rle(answer["masks"][first["mask"]], (40, 60)).any()
    assert "turns" not in ask(client()).json()["sample"]


@pytest.mark.parametrize(
    ("body", "sentence", "status", "names"),
    [
        (b"no image", "left", 422, ["unreadable"]),
        pytest.param(png()[:70], "left", 422, ["unreadable"], id="cut off"),
        (b"", "left", 422, ["unreadable"]),
        pytest.param(png(300, 200), "left", 422, ["300x200 pixels", "50000"], id="too many pixels"),
        pytest.param(b"x" * 200_001, "left", 413, ["200000 bytes"], id="too many bytes"),
        (None, "", 422, ["sentence"]),
        (None, " \n ", 422, ["sentence"]),
        pytest.param(None, "x" * 1001, 422, ["sentence"], id="long sentence"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(body, sentence, status, names):
    answer = ask(client(), body, sentence)
    assert answer.status_code == status and all(name in message(answer) for name in names)


def test_a_body_without_a_length_is_bounded_too():
    answer = ask(client(), (b"x" * 1000 for _ in range(300)))
    assert answer.status_code == 413 and "200000 bytes" in message(answer)


@pytest.mark.parametrize("error", [kind("is_ill", "it", "is ill") for kind in (SegmenterError, PolicyError)])
def test_a_fault_is_told_and_is_no_answer(error):
    answer = ask(client(Half(error)))
    assert answer.status_code == 500 and message(answer) == str(error)


def test_other_names_and_other_sites_are_refused():
    web = client()
    assert web.get("/", headers={"Host": "evil.example:8770"}).status_code == 400
    assert ask(web, Host="evil.example").status_code == 400
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null"):
        refused = ask(web, Origin=origin)
        assert refused.status_code == 403 and origin in message(refused)
    assert ask(web, Origin="http://127.0.0.1:8770").status_code == 200
    assert web.get("/", headers={"Host": "localhost:8770"}).status_code == 200


def test_the_page_forbids_what_it_does_not_need():
    answer = client().get("/")
    assert "connect-src &#39;self&#39;" in answer.text and "default-src &#39;none&#39;" in answer.text
    assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/docs", "/openapi.json", "/examples/0", "/examples/-1"):
        assert client().get(path).status_code == 404


async def test_the_policy_is_asked_one_at_a_time_and_a_crowd_is_asked_to_wait():
    from httpx import ASGITransport, AsyncClient

    half = Half(seconds=0.2)
    app = create_app(half, "playground", limits=LIMITS)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8770") as web:
        answers = await asyncio.gather(*(web.post("/predict?sentence=a", content=png()) for _ in range(5)))
    assert half.most == 1
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503]


def test_examples_are_rows_of_a_data_file(drawn, tmp_path):
    offered = examples_from(drawn / "test.parquet")
    assert len(offered) == 6 and all(one.image.is_file() for one in offered)
    web = client(examples=offered)
    assert web.get("/examples/1").content == offered[1].image.read_bytes()
    assert offered[1].sentence in web.get("/").text
    assert create_app(Half(), "<b>", [Example(offered[0].image, "</script>")])
    with refused(DataError, "no_such_file", tmp_path / "none.parquet"):
        examples_from(tmp_path / "none.parquet")
