"""verl's vLLM server and its weight updates, without a trainer: the weights it has decide what it generates."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from PIL import Image, ImageOps
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.model import convert_weight_keys
from verl.workers.config import HFModelConfig
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

from data.tiny_world import shapes, tiny_policy
from tests.composing import compose_recipe
from tests.vllm.settings import RECIPE, ROLLOUT, VLLM_ON_CPU

GREEDY = {"temperature": 0.0, "logprobs": True}
SAMPLED = {"temperature": 1.0, "logprobs": True}
LOG_PROB_TOLERANCE = 1e-4
TWO_IMAGES = (f"{ROLLOUT}.engine_kwargs.vllm.limit_mm_per_prompt.image=2", f"{ROLLOUT}.max_model_len=224")


@ray.remote(num_gpus=1)
class Place:
    """Holds the resource that verl asks its training worker for, to start the server beside it."""


@dataclass
class Server:
    """verl's server with verl's sender of weights, and the prompts it is asked."""

    replica: vLLMReplica
    sender: ServerAdapter
    processor: Qwen2_5_VLProcessor
    prompts: list[dict[str, Any]] = field(default_factory=list)
    updates: int = 0

    def load(self, policy: Qwen2_5_VLForConditionalGeneration) -> None:
        """Send all weights of a policy, under the names that verl's engine sends."""
        self.updates += 1
        weights = convert_weight_keys(policy.state_dict(), policy)
        asyncio.run(self.sender.update_weights(iter(weights.items()), global_steps=self.updates))

    def answer(self, params: dict[str, Any]) -> list[TokenOutput]:
        """One answer to each prompt."""
        generate = self.replica.server_handle.generate
        return ray.get(
            [
                generate.remote(
                    prompt["ids"], dict(params), f"{self.updates}-{i}-{params}", image_data=prompt["images"]
                )
                for i, prompt in enumerate(self.prompts)
            ]
        )


@pytest.fixture(scope="module")
def server(random_policy: Path) -> Iterator[Server]:
    config = compose_recipe(RECIPE, *VLLM_ON_CPU, *TWO_IMAGES, f"actor_rollout_ref.model.path={random_policy}")
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model, dataclass_type=HFModelConfig)
    os.environ.update(RANK="0", RAY_LOCAL_WORLD_SIZE="1")  # what verl sets in a training worker
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, _temp_dir=folder)
        replica = vLLMReplica(0, rollout, model, gpus_per_node=1)
        place = Place.remote()
        asyncio.run(replica.init_hybrid(SimpleNamespace(workers=[place])))
        sender = ServerAdapter(rollout, model, device_mesh=None, replica_rank=0)
        processor = Qwen2_5_VLProcessor.from_pretrained(random_policy)
        yield Server(replica, sender, processor, list(ask(processor, count=4)))
        ray.shutdown()


def ask(processor: Qwen2_5_VLProcessor, count: int) -> Iterator[dict[str, Any]]:
    """Prompts about drawn scenes as verl's agent loop makes them: token ids with every image token, and the images.

    Every second one is a dialogue that has seen a second image after an answer.
    """
    drawn = shapes.scenes("val", seed=0)
    for number in range(count):
        scene, rng = next(drawn)
        sentence, _ = shapes.ask(scene, rng)
        image = Image.fromarray(scene.image).resize((tiny_policy.FRAME,) * 2)
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"segment {sentence}"}]}
        chat, images = [question], [image]
        if number % 2:
            answer = {
                "role": "assistant",
                "content": [{"type": "text", "text": "<think>so</think><answer>[]</answer>"}],
            }
            chat, images = [question, answer, question], [image, ImageOps.invert(image)]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, images=images, return_tensors="pt")
        yield {"ids": inputs["input_ids"][0].tolist(), "images": images, "inputs": inputs}


def make_policy(processor: Qwen2_5_VLProcessor, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A random policy in which every parameter differs between seeds, norms and biases too."""
    policy = tiny_policy.build_model(processor.tokenizer, seed).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@torch.no_grad()
def log_probs(policy: Qwen2_5_VLForConditionalGeneration, prompt: dict[str, Any], answer: list[int]) -> torch.Tensor:
    """The policy's log-probs [T, V] at each token of an answer, by transformers.

    Without the image and video tokens, which verl bars vLLM from sampling: its log-probs are over the rest.
    """
    inputs = dict(prompt["inputs"])
    new = torch.tensor([answer])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    logits = policy(**inputs).logits[0, -len(answer) - 1 : -1]
    logits[:, [policy.config.image_token_id, policy.config.video_token_id]] = -torch.inf
    return logits.log_softmax(-1)


def largest_difference(server: Server, policy: Qwen2_5_VLForConditionalGeneration, answers: list[TokenOutput]) -> float:
    """Between the log-probs that came with the answers and the policy's own."""
    differences = []
    for prompt, answer in zip(server.prompts, answers, strict=True):
        expected = log_probs(policy, prompt, answer.token_ids).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        differences.append((torch.tensor(answer.log_probs) - expected).abs().max().item())
    return max(differences)


def test_vllm_loads_the_plug_in_and_needs_it() -> None:
    """When this fails on the first figure, vLLM no longer packs weights and samr1_verl/vllm_plugin.py can go."""
    program = (
        "from vllm import _custom_ops, plugins; before = _custom_ops._supports_onednn; plugins.load_general_plugins(); "
        "print(before, _custom_ops._supports_onednn)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True False", done.stdout + done.stderr


def test_answers_carry_the_policys_log_probs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    policy = make_policy(server.processor, seed=1)
    server.load(policy)
    for params in (GREEDY, SAMPLED):
        answers = server.answer(params)
        assert {answer.extra_fields["global_steps"] for answer in answers} == {server.updates}
        difference = largest_difference(server, policy, answers)
        tokens = sum(len(answer.token_ids) for answer in answers)
        with capsys.disabled():
            print(f"\nlargest log-prob difference over {tokens} tokens, {params}: {difference:.2e}")
        assert difference < LOG_PROB_TOLERANCE


def test_changed_weights_change_what_is_generated_and_the_old_ones_bring_it_back(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (make_policy(server.processor, seed) for seed in (1, 2))
    server.load(first)
    before = server.answer(GREEDY)
    server.load(second)
    after = server.answer(GREEDY)
    server.load(first)
    again = server.answer(GREEDY)
    for prompt, old, new, old_again in zip(server.prompts, before, after, again, strict=True):
        assert old.token_ids != new.token_ids
        assert old.token_ids == old_again.token_ids
        for policy, answer in ((first, old), (second, new)):
            assert answer.token_ids == log_probs(policy, prompt, answer.token_ids).argmax(-1).tolist()
    assert largest_difference(server, second, after) < LOG_PROB_TOLERANCE
    stale = largest_difference(server, first, after)
    with capsys.disabled():
        print(f"\nlargest log-prob difference to the weights from before an update: {stale:.2f}")
    assert stale > 1000 * LOG_PROB_TOLERANCE, "the comparison tells old weights from new ones"


def test_one_changed_weight_is_enough(server: Server) -> None:
    policy = make_policy(server.processor, seed=1)
    server.load(policy)
    before = server.answer(GREEDY)
    token = before[0].token_ids[0]
    with torch.no_grad():
        policy.get_output_embeddings().weight[token] *= -1
    server.load(policy)
    after = server.answer(GREEDY)
    assert after[0].token_ids[0] != token
    assert largest_difference(server, policy, after) < LOG_PROB_TOLERANCE
