"""A policy behind an OpenAI-compatible server answers like the same policy in this process; faults are told apart."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI

from samr1_verl.config import PromptConfig
from samr1_verl.policies import server as server_module
from samr1_verl.policies.base import PolicyError, Sampling
from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.local import LocalPolicy
from samr1_verl.policies.server import ServerPolicy
from samr1_verl.prompts.questions import item_of
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.rows.record import iter_rows, parse_record, resolve_image
from tests.errors import refused
from tests.policies.chat_server import NAME, ChatServer, serving
from tests.service.servers import free_port

PROMPT = PromptConfig(policy_size=(140, 140), frame="absolute", prompt="tiny")


@pytest.fixture(scope="module")
def local(warm_policy: Path) -> LocalPolicy:
    return LocalPolicy(Files(warm_policy), 48)


@pytest.fixture
def chat(local: LocalPolicy) -> ChatServer:
    return ChatServer(local)


@pytest.fixture
def address(chat: ChatServer) -> Iterator[str]:
    with serving(chat.app) as found:
        yield found


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(server_module.PATIENCE, first_pause_s=0.01, longest_pause_s=0.01)
    monkeypatch.setattr(server_module, "PATIENCE", quick)


def questions(drawn: Path) -> list[dict]:
    file = drawn / "test.parquet"
    records = [parse_record(row, file, number) for number, row in enumerate(iter_rows(file))]
    return [
        item_of(record, str(resolve_image(record, file)), number, PROMPT.policy_size, PROMPT, load_prompt("tiny"))
        for number, record in enumerate(records)
    ]


async def test_it_answers_as_the_same_policy_does_here(
    local: LocalPolicy, chat: ChatServer, address: str, drawn: Path
) -> None:
    items = questions(drawn)
    served = await ServerPolicy(address, NAME, 48, parallel=4).answer(items, seed=5)
    assert served == await local.answer(items) and all("<answer>" in text for text in served)
    assert 1 < chat.most <= 4, "several at a time, and no more than asked for"
    asked = sorted(chat.asked, key=lambda body: body["seed"])
    assert [body["seed"] for body in asked] == list(range(5, 5 + len(items)))
    assert all((body["model"], body["temperature"], body["max_tokens"]) == (NAME, 0.0, 48) for body in asked)


async def test_what_training_tells_the_processor_and_the_template_is_told_here_too(
    warm_policy: Path, chat: ChatServer, address: str, drawn: Path
) -> None:
    extra = {"processor_kwargs": {"min_pixels": 56 * 56, "max_pixels": 112 * 112}, "template_kwargs": {"bos": "x"}}
    items = questions(drawn)[:2]
    told = LocalPolicy(Files(warm_policy), 48, **extra)
    told.processor.chat_template = "{{ bos }}" + told.processor.chat_template
    assert told.inputs(items)["image_grid_thw"].tolist() == [[1, 8, 8]] * 2
    plain = LocalPolicy(Files(warm_policy), 48).inputs(items)
    assert plain["image_grid_thw"].tolist() == [[1, 10, 10]] * 2
    assert (
        told.processor.decode(told.inputs(items)["input_ids"][0])[:6]
        != told.processor.decode(plain["input_ids"][0])[:6]
    )
    await ServerPolicy(address, NAME, 48, **extra).answer(items[:1])
    assert chat.asked[0]["mm_processor_kwargs"] == extra["processor_kwargs"]
    assert chat.asked[0]["chat_template_kwargs"] == extra["template_kwargs"]


async def test_sampling_depends_on_the_seed_alone(warm_policy: Path, drawn: Path) -> None:
    policy = LocalPolicy(Files(warm_policy), 48, Sampling(1.5))
    items = questions(drawn)
    first, again, other = [await policy.answer(items, seed=seed) for seed in (1, 1, 2)]
    assert first == again != other


async def test_a_fault_that_passes_is_tried_again(chat: ChatServer, address: str, drawn: Path) -> None:
    chat.faults = [503, 429, 500]
    policy = ServerPolicy(address, None, 48)
    assert len(await policy.answer(questions(drawn)[:1])) == 1 and len(chat.asked) == 4


async def test_a_fault_that_stays_ends_with_the_row(chat: ChatServer, address: str, drawn: Path) -> None:
    item = questions(drawn)[2]
    row = f"row 2, image {item['extra_info']['image']}"
    chat.faults = [503] * 100
    with refused(PolicyError, "no_answer", row, address, "6 attempts", "status 503", "fault 503"):
        await ServerPolicy(address, NAME, 48).answer([item])
    chat.faults = [400]
    with refused(PolicyError, "request_refused", row, address, "status 400", "fault 400"):
        await ServerPolicy(address, NAME, 48).answer([item])


def test_a_server_that_is_not_there_is_said_before_anything_is_asked() -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    with refused(PolicyError, "server_unreachable", f"{address}/models", "ConnectError", "vllm serve"):
        ServerPolicy(address, NAME, 48)
    with refused(PolicyError, "server_unreachable", "localhost:8000"):
        ServerPolicy("localhost:8000", NAME, 48)


def test_a_model_that_is_not_served_is_said(address: str) -> None:
    with refused(PolicyError, "no_such_model", address, "--model other", f"has {NAME}"):
        ServerPolicy(address, "other", 48)
    with refused(PolicyError, "models_refused", "status 404", "/v1"):
        ServerPolicy(address.removesuffix("/v1"), NAME, 48)


def test_a_server_of_another_kind_is_said() -> None:
    other = FastAPI()
    other.get("/v1/models")(lambda: {"welcome": "here"})
    with serving(other) as address, refused(PolicyError, "no_model_list", address, "welcome"):
        ServerPolicy(address, NAME, 48)


async def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import Request

    seen = []
    other = FastAPI()

    def models(request: Request) -> dict:
        seen.append(request.headers.get("authorization"))
        return {"data": [{"id": NAME}]}

    other.get("/v1/models")(models)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(other) as address:
        ServerPolicy(address, NAME, 48)
    assert seen == ["Bearer secret"]
