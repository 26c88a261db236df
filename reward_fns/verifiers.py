"""The rewards of this folder for verifiers 0.4 (`verifiers.v1`): an environment of questions about images.

verifiers finds an environment by the name of a module. Such a module has three lines:

    from reward_fns.samr1 import compute_score
    from reward_fns.verifiers import environment

    Rows, OneRequest, InProcess = environment(compute_score, segmenter={...})
    __all__ = ["InProcess", "OneRequest", "Rows"]

With it on the Python path as samr1_rows.py, verifiers' own command asks any OpenAI-compatible server:

    vf-eval samr1_rows --env.taskset.path rows.jsonl --model … --client.base-url http://localhost:8000/v1 --no-push
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


def environment(compute_score: Callable[..., Awaitable[dict[str, float]]], **reward_kwargs: Any) -> tuple[type, ...]:
    """The classes that an environment's module exports.

    The score is verifiers' reward `reward`. Every other key is a metric, which is logged and has no weight.

    An exception of compute_score ends the rollout as verifiers ends one whose task fails: `trace.ok` is False,
    `trace.errors` ends with a `TaskError`, and `trace.rewards["reward"]` is None. Read `trace.ok` before
    `trace.reward`: verifiers defines that as the sum of the rewards that exist, here 0.

    Args:
        compute_score: a reward of this folder, or any function with the same signature.
        reward_kwargs: keyword arguments of compute_score, as under verl's `reward_kwargs`.

    Returns:
        The taskset, which reads rows of `samr1 data export --for verifiers` from `--env.taskset.path`; the harness,
        which sends the row's messages in one request, from verifiers' own process; and the environment, one agent that
        needs no sandbox. Without it, verifiers would rent a remote one for each rollout.
    """
    import verifiers.v1 as vf
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    certificates = ssl.create_default_context()  # made once: it takes longer than a request

    class Row(vf.TaskData):
        data_source: str
        ground_truth: str
        extra_info: dict[str, Any]

    class File(vf.TasksetConfig):
        path: Path = Path("rows.jsonl")  # verifiers' command needs a default

    class Question(vf.Task[Row, vf.State, vf.TaskConfig]):
        async def setup(self, trace: Any) -> None:
            # verifiers takes a scoring that this limit cut off for a finished rollout, and its reward would be 0.
            if trace.agent.config.timeout.scoring is not None or self.data.timeout.scoring is not None:
                raise ValueError(
                    "timeout.scoring: a reward that it cuts off would count as 0. Leave it out: requests to a "
                    "segmenter have time limits of their own"
                )

        @vf.reward
        async def reward(self, trace: Any) -> float:
            row, text = self.data, _response(trace)
            scores = await compute_score(row.data_source, text, row.ground_truth, dict(row.extra_info), **reward_kwargs)
            trace.record_metrics({key: value for key, value in scores.items() if key != "score"})
            return scores["score"]

    class Rows(vf.Taskset[Question, File]):
        def load(self) -> Iterator[Question]:
            with self.config.path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield Question(Row.model_validate_json(line), self.config.task)

    class OneRequest(vf.Harness[vf.HarnessConfig]):
        APPENDS_SYSTEM_PROMPT, EXECUTES_CODE, NEEDS_CONTAINER = True, False, False

        async def launch(
            self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: Any
        ) -> Any:
            system, prompt = self.resolve_prompt(data)
            messages = [] if system is None else [{"role": "system", "content": system}]
            messages += [_with_images(message.model_dump()) for message in prompt]
            http = DefaultAsyncHttpxClient(verify=certificates)
            async with AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None, http_client=http) as client:
                await client.chat.completions.create(model=ctx.model, messages=messages)
            return vf.ProgramResult(exit_code=0, stdout="", stderr="")  # verifiers saw the answer on its way

    class OneAgent(vf.SingleAgentEnvConfig):
        agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())

    class InProcess(vf.SingleAgentEnv, vf.Env[OneAgent]):
        pass

    return Rows, OneRequest, InProcess


def _with_images(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the image files in it, as data URLs: the server need not share a disk."""
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_with_image(part) for part in message["content"]]}


def _with_image(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image_url" or not part["image_url"]["url"].startswith("file:"):
        return part
    file = Path(url2pathname(urlsplit(part["image_url"]["url"]).path))
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"},
    }


def _response(trace: Any) -> str:
    """The text of the policy's answer, whitespace included: some rewards look at it.

    Raises:
        ValueError: there is no answer, or the server took the thinking out of its text.
    """
    answers = trace.assistant_messages
    if not answers:
        raise ValueError(f"no answer to score: the rollout ended with {trace.stop_condition}")
    if answers[-1].reasoning_content is not None:
        raise ValueError(
            "the server took the thinking out of the answer's text, and the rewards read the whole text. Start it "
            "without a reasoning parser"
        )
    return answers[-1].content or ""
