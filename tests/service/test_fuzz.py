"""Property-based: whatever comes over the wire, the server answers in its schema, never status 500, and goes on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from starlette.testclient import TestClient

from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.scoring.route import RowFiles, score_route
from samr1_verl.segmenters import Prompt
from samr1_verl.service.engine import Engine
from samr1_verl.service.http_server import Limits, create_app
from samr1_verl.service.wire import WirePrompt
from tests.row_files import write_rows
from tests.service.fake import BoxSegmenter, image_file
from tests.service.servers import TOKEN

FOLDER = Path(tempfile.mkdtemp(prefix="samr1_fuzz_"))
IMAGE, DIGEST = image_file(FOLDER, 7)
ROUTES = [score_route(RowFiles([write_rows(FOLDER / "train.parquet")]))]
APP = create_app(Engine(BoxSegmenter(), 1_000_000), [FOLDER], TOKEN, Limits(max_body=100_000), ROUTES)
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CLIENT = TestClient(APP, headers=HEADERS, raise_server_exceptions=False)
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))

schema = schemathesis.openapi.from_asgi("/openapi.json", APP, headers=HEADERS)


@pytest.mark.slow
@schema.parametrize()
@QUICK
def test_every_operation_answers_in_its_schema(case: Any) -> None:
    response = case.call(headers=HEADERS)
    case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])


numbers = st.one_of(st.integers(-5, 25), st.floats(allow_nan=True, allow_infinity=True), st.integers())
values = st.recursive(st.none() | st.booleans() | numbers | st.text(max_size=9), st.lists, max_leaves=6)
points = st.lists(st.lists(numbers, min_size=1, max_size=3), max_size=4)
prompts = st.fixed_dictionaries(
    {}, optional={"box": st.lists(numbers, min_size=3, max_size=5), "points": points, "labels": st.lists(values)}
)
truths = st.fixed_dictionaries(
    {"size": st.sampled_from([[10, 20], [20, 10], [0, 1], [10**9, 10**9]]), "masks": st.lists(st.text(max_size=40))}
)
requests = st.fixed_dictionaries(
    {"image": st.just({"sha256": DIGEST, "path": str(IMAGE)}), "prompts": st.lists(prompts, max_size=3)},
    optional={"truth": truths | values, "masks": values},
)


@given(requests)
@QUICK
def test_nearly_right_requests_are_answered_or_refused(request: dict[str, Any]) -> None:
    content = json.dumps(request)  # NaN and Infinity included, which JSON has not
    answer = CLIENT.post("/v1/segment", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 422), answer.text
    assert (answer.status_code == 200) != ("error" in answer.json())


shown = {
    "policy_size": st.sampled_from([[20, 10], [0, 1], [10**9, 1]]),
    "frame": st.sampled_from(["absolute", "thousand"]),
}
known = st.sampled_from([*["train:0"] * 9, "train:1", "train:-1", "train:²", ":", "other:0"])
stored = st.fixed_dictionaries({"id": known, **shown})
image = st.sampled_from([{"sha256": DIGEST, "path": str(IMAGE)}, {"sha256": DIGEST}, {"sha256": "0" * 64}, None])
inline = st.fixed_dictionaries({"ground_truth": truths | values, "image": image, **shown})
said = st.sampled_from(
    ['<think>a</think><answer>{"bbox": [1, 1, 9, 9], "points": [[2, 2]]}</answer>', "", "<answer>[]</answer>"]
)
spoken = st.integers(0, 9).flatmap(lambda number: values if number == 9 else said)  # mostly right, so that some pass
answers = st.fixed_dictionaries({"row": st.sampled_from([0, 0, 0, 0, 0, 1, -1]), "response": spoken})
constants = st.fixed_dictionaries(
    {},
    optional={
        "terms": st.dictionaries(st.sampled_from(["seg", "mask_iou", "no"]), numbers, max_size=2),
        "thresholds": st.dictionaries(st.sampled_from(["0.5", "1", "nan", "half"]), numbers, max_size=2),
        "caps": st.fixed_dictionaries({"points": numbers, "objects": numbers}),
    },
)
named = st.integers(0, 2).flatmap(lambda number: inline if number == 2 else stored)
scored = st.fixed_dictionaries(
    {
        "reward": st.sampled_from(["samr1", "composed", "seg_zero", "vision_reasoner", "star", "dr_seg"]),
        "rows": st.lists(named, min_size=1, max_size=2),
        "answers": st.lists(answers, min_size=1, max_size=3),
        "config": st.integers(0, 3).flatmap(lambda number: (st.none(), st.none(), constants, values)[number]),
    }
)


@given(scored)
@QUICK
def test_nearly_right_answers_are_scored_or_refused(request: dict[str, Any]) -> None:
    answer = CLIENT.post("/v1/score", content=json.dumps(request), headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 404, 422), answer.text
    if answer.status_code == 200:
        assert len(answer.json()["scores"]) == len(request["answers"])


inside = st.tuples(st.floats(0, 20), st.floats(0, 10))


@given(st.lists(inside, min_size=1, max_size=5), st.integers(0, 9), st.integers(0, 19))
@QUICK
def test_a_sound_request_gets_the_masks_of_its_prompts(coordinates: list[tuple[float, float]], y: int, x: int) -> None:
    labels = (1,) * len(coordinates)
    prompts = [Prompt((x, y, x + 1, y + 1), tuple(coordinates), labels), Prompt(None, tuple(coordinates), labels)]
    assert [WirePrompt.of(prompt).prompt() for prompt in prompts] == prompts
    truth = np.zeros((10, 20), bool)
    truth[y, x] = True
    body = {
        "image": {"sha256": DIGEST, "path": str(IMAGE)},
        "prompts": [WirePrompt.of(prompt).model_dump() for prompt in prompts],
    }
    body |= {"truth": {"size": [10, 20], "masks": [encode_rle(truth)]}, "masks": True}
    answer = CLIENT.post("/v1/segment", json=body).json()
    masks = [decode_rle(one["mask"], (10, 20)) for one in answer["predictions"]]
    found = [{(int(row), int(column)) for row, column in np.argwhere(mask)} for mask in masks]
    assert found == [{(y, x)}, {(min(int(py), 9), min(int(px), 19)) for px, py in coordinates}]
    assert answer["overlap"]["intersection"] == 1 and answer["overlap"]["union"] == len(found[0] | found[1])
