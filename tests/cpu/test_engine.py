"""verl's training worker with the CPU engine, without Ray: its log-probs are the rollout's, and equal lengths train."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow  # a verl training worker in a process of its own
TEMPERATURE = 0.7


def roll_out(policy: Path, sentences: list[str], ignore_eos: bool) -> tuple[list, list]:
    """Requests and answers of at most 12 new tokens, one request a sentence."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    from samr1_verl.cpu.generation import Generator, Request, SamplingParams

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy)
    processor = AutoProcessor.from_pretrained(policy)
    tokenizer = processor.tokenizer
    eos = set() if ignore_eos else {tokenizer.eos_token_id}
    generator = Generator(model, processor, eos, tokenizer.pad_token_id)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (140, 140, 3), dtype=np.uint8))
    requests = []
    for sentence in sentences:
        content = [{"type": "image"}, {"type": "text", "text": sentence}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = processor(text=[text], images=[picture])["input_ids"][0]
        requests.append(Request(ids, SamplingParams(max_tokens=12, temperature=TEMPERATURE), [picture]))
    return requests, generator.generate(requests)


def as_verl_joins_them(policy: Path, requests: list, answers: list) -> Any:
    """The batch as a training worker receives it: nested over tokens, images' tensors beside it."""
    from tensordict import NonTensorData, NonTensorStack, TensorDict
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(policy)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy)
    columns: dict[str, list[torch.Tensor]] = {"input_ids": [], "position_ids": [], "prompts": [], "responses": []}
    columns |= {"loss_mask": [], "old_log_probs": [], "advantages": []}
    images = []
    for sign, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        ids = torch.tensor([*request.prompt_ids, *answer.token_ids])
        vision = dict(processor.image_processor(images=list(request.images), return_tensors="pt"))
        kinds = (ids == model.config.image_token_id).long().unsqueeze(0)
        rope, _ = model.model.get_rope_index(
            ids.unsqueeze(0), mm_token_type_ids=kinds, image_grid_thw=vision["image_grid_thw"]
        )
        new = len(answer.token_ids)
        columns["input_ids"].append(ids)
        columns["position_ids"].append(torch.cat([torch.arange(len(ids)).unsqueeze(0), rope[:, 0]]))
        columns["prompts"].append(torch.tensor(request.prompt_ids))
        columns["responses"].append(torch.tensor(answer.token_ids))
        columns["loss_mask"].append(torch.ones(new, dtype=torch.long))
        columns["old_log_probs"].append(torch.tensor(answer.log_probs))
        columns["advantages"].append(torch.full((new,), 1.0 - 2 * (sign % 2)))
        images.append(vision)
    columns["response_mask"] = columns["loss_mask"]
    batch = {k: torch.nested.as_nested_tensor(v, layout=torch.jagged) for k, v in columns.items()}
    data = TensorDict(batch, batch_size=len(requests))
    data["multi_modal_inputs"] = NonTensorStack(*[NonTensorData(vision) for vision in images])
    for key, value in {"temperature": TEMPERATURE, "global_batch_size": len(requests), "pad_token_id": 0}.items():
        data[key] = NonTensorData(value)
    return data


def training_worker(policy: Path) -> Any:
    """verl's TrainingWorker around the CPU engine, alone in its world."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import (
        FSDPActorConfig,
        FSDPEngineConfig,
        FSDPOptimizerConfig,
        HFModelConfig,
        TrainingWorkerConfig,
    )
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(policy),
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_dynamic_bsz=False,
            use_torch_compile=False,
            infer_micro_batch_size_per_gpu=2,
            micro_batch_size_per_gpu=2,
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    worker = TrainingWorker(config)
    worker.reset()
    actor = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=2, ppo_mini_batch_size=4, use_dynamic_bsz=False
    )
    worker.set_loss_fn(functools.partial(ppo_loss, config=actor))
    return worker


def actors_log_probs(worker: Any, data: Any) -> list[list[float]]:
    from verl.utils import tensordict_utils as tu

    data = data.clone()
    tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False)
    log_probs = worker.infer_batch(data)["log_probs"].unbind()
    return [row[len(prompt) - 1 : -1].tolist() for row, prompt in zip(log_probs, data["prompts"].unbind(), strict=True)]


@dataclass(frozen=True)
class Found:
    """What one process with one training worker saw."""

    differences: list[float]  # between the rollout's and the actor's log-probs, a value a token
    lengths: set[int]  # of the sequences it trained on
    grad_norm: float
    gained: list[float]  # by each sequence's log-prob, in the update
    offloaded: list[bool]  # whether the actor's and the reference's parameters wait elsewhere
    computes_in: list[torch.dtype]


def probe(policy: Path) -> Found:
    from verl.utils import tensordict_utils as tu

    various = ["the red circle", "the largest square", "the shape left of the blue triangle", "the white cross"]
    unequal = roll_out(policy, various, ignore_eos=False)
    equal = roll_out(policy, ["the red circle", "the blue square"] * 4, ignore_eos=True)
    worker = training_worker(policy)

    actor = actors_log_probs(worker, as_verl_joins_them(policy, *unequal))
    tokens = zip(actor, (answer.log_probs for answer in unequal[1]), strict=True)
    differences = [abs(a - b) for row, expected in tokens for a, b in zip(row, expected, strict=True)]

    data = as_verl_joins_them(policy, *equal)
    before = [sum(row) for row in actors_log_probs(worker, data)]
    update = data.clone()
    tu.assign_non_tensor(update, mini_batch_size=4, epochs=1)
    metrics = tu.get(worker.train_mini_batch(update), "metrics")
    after = [sum(row) for row in actors_log_probs(worker, data)]

    configs = worker.model_config, dataclasses.replace(worker.engine_config, forward_only=True)
    reference = type(worker.engine)(*configs, worker.optimizer_config, worker.checkpoint_config)
    reference.initialize()
    engines = [worker.engine, reference]
    return Found(
        differences=differences,
        lengths=set(data["input_ids"].offsets().diff().tolist()),
        grad_norm=float(np.mean(metrics["grad_norm"])),
        gained=[b - a for a, b in zip(before, after, strict=True)],
        offloaded=[engine._uses_fsdp2_cpu_offload_policy for engine in engines],
        computes_in=[engine._autocast_dtype for engine in engines],
    )


@pytest.fixture(scope="module")
def found(random_policy: Path) -> Found:
    """verl's engine patches transformers' classes for good, so it is built in a process of its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(probe, random_policy).result(timeout=600)


def test_the_rollouts_log_probs_are_the_actors(found: Found) -> None:
    assert len(found.differences) >= 20
    assert max(found.differences) <= 1e-4


def test_a_batch_of_equally_long_sequences_trains(found: Found) -> None:
    assert len(found.lengths) == 1
    assert 0 < found.grad_norm < float("inf")
    assert np.mean(found.gained[::2]) > np.mean(found.gained[1::2]) + 0.01  # advantages are +1 and -1 in turn


def test_actor_and_reference_compute_in_fp32_and_stay_where_they_are(found: Found) -> None:
    assert found.offloaded == [False, False]
    assert found.computes_in == [torch.float32, torch.float32]
