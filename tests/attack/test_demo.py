"""Sentences that hold a model's tokens: the page, the prediction, the evaluation and the training refuse them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from samr1_verl.config import PromptConfig
from samr1_verl.prompts.questions import Questions
from samr1_verl.prompts.templates import SentenceError, as_question
from samr1_verl.report.playground import create_app
from samr1_verl.rows.record import DataError, Record
from samr1_verl.service.http_server import Limits
from tests.errors import refused

LIMITS = Limits(max_body=200_000, max_pixels=50_000, max_queue=2, upload_bytes=1_000_000)
TOKENS = ["<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|IM_END|>", "<|endoftext|>", "<image>", "<Image>"]


class Asking:
    """A predictor that makes the prompt and stops there."""

    async def predict(self, image: Path, sentence: str) -> Any:
        as_question(sentence)
        raise AssertionError("a sentence with a token was asked")


@pytest.mark.parametrize("token", TOKENS)
def test_the_page_refuses_a_sentence_with_a_token(token: str) -> None:
    image = io.BytesIO()
    Image.new("RGB", (40, 30)).save(image, "PNG")
    with TestClient(create_app(Asking(), "page", limits=LIMITS), base_url="http://127.0.0.1") as page:
        answer = page.post("/predict", params={"sentence": f"the cat {token}"}, content=image.getvalue())
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "sentence"
    assert token in answer.json()["error"]["message"]


@pytest.mark.parametrize("token", TOKENS)
def test_no_question_is_made_of_it(token: str, tmp_path: Path) -> None:
    questions = Questions(PromptConfig(policy_size=(28, 28), frame="absolute", prompt="tiny"), None, {})
    record = Record(data_source="a", sentence=f"a{token}b", image="x", sha256="0" * 64, height=28, width=28, masks=[])
    with refused(SentenceError, "token_in_sentence", token, "Remove it") as found:
        questions.item(record, tmp_path / "x.png")
    assert isinstance(found.value, DataError)


@pytest.mark.parametrize("sentence", ["a < b | c > d", "<3", "<|>", "< image >", "the 'image' on the left"])
def test_other_signs_are_text(sentence: str) -> None:
    assert as_question(sentence) == sentence
