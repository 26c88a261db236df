"""Sampled answers are drawn from all tokens, as a training's rollouts are, and their tokens are counted."""

from pathlib import Path

import pytest
import torch

from samr1_verl.policies.base import Sampling
from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.inference_config import InferenceConfig, compose_recipe
from samr1_verl.policies.load import PolicyChoice
from samr1_verl.policies.local import LocalPolicy
from samr1_verl.policies.server import ServerPolicy
from tests.policies.chat_server import NAME, ChatServer, serving
from tests.policies.test_server import questions

FLAT = 1e6  # temperature at which all tokens are equally probable


def drawn_tokens(policy: LocalPolicy, drawn: Path) -> set[int]:
    """The first tokens of 400 answers to one question."""
    inputs = policy.inputs(questions(drawn)[:1])
    torch.manual_seed(0)
    tokens = policy.model.generate(**inputs, num_return_sequences=400)
    return set(tokens[:, inputs["input_ids"].shape[1]].tolist())


@pytest.mark.thorough
def test_every_token_can_be_drawn(warm_policy: Path, drawn: Path) -> None:
    vocabulary = LocalPolicy(Files(warm_policy), 1).model.config.text_config.vocab_size
    assert vocabulary > 100
    assert len(drawn_tokens(LocalPolicy(Files(warm_policy), 1, Sampling(FLAT)), drawn)) > 60
    assert len(drawn_tokens(LocalPolicy(Files(warm_policy), 1, Sampling(FLAT, top_k=7)), drawn)) == 7
    assert len(drawn_tokens(LocalPolicy(Files(warm_policy), 1, Sampling(FLAT, top_p=0.1)), drawn)) < vocabulary / 5


def test_no_image_token_is_written_as_in_a_training(warm_policy: Path, drawn: Path) -> None:
    policy = LocalPolicy(Files(warm_policy), 4)
    config, wanted = policy.model.config, policy.processor.tokenizer.convert_tokens_to_ids("<think>")
    liked = torch.tensor([config.image_token_id, config.video_token_id, wanted])
    bump = torch.tensor([90.0, 80.0, 70.0])
    policy.model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_add(-1, liked, bump.expand(*logits.shape[:-1], 3))
    )
    inputs = policy.inputs(questions(drawn)[:1])
    tokens = policy.model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert tokens.tolist() == [wanted] * 4


def test_the_recipes_rollouts_say_how_answers_are_drawn(warm_policy: Path) -> None:
    rollout = "actor_rollout_ref.rollout"
    assert InferenceConfig.of(compose_recipe("samr1_tiny")).sampling == Sampling(1.0, top_k=0, top_p=1.0)
    changed = [f"{rollout}.temperature=0.7", f"{rollout}.top_k=20", f"{rollout}.top_p=0.9"]
    config = InferenceConfig.of(compose_recipe("samr1_tiny", changed))
    assert config.sampling == Sampling(0.7, top_k=20, top_p=0.9)
    sampled = PolicyChoice(config, str(warm_policy), temperature=1.0).identity()
    assert (sampled["temperature"], sampled["top_k"], sampled["top_p"]) == (1.0, 20, 0.9)
    assert "top_k" not in PolicyChoice(config, str(warm_policy)).identity(), "without effect on greedy answers"


@pytest.mark.slow
async def test_tokens_of_answers_are_counted(warm_policy: Path, drawn: Path) -> None:
    policy, items = LocalPolicy(Files(warm_policy), 48), questions(drawn)
    replies = await policy.answer(items)
    for reply in replies:
        assert reply.tokens == len(policy.processor.tokenizer(reply)["input_ids"]) + 1, "the end is a token"
    cut = await LocalPolicy(Files(warm_policy), 5).answer(items)
    assert [reply.tokens for reply in cut] == [5] * len(items)

    chat = ChatServer(policy)
    with serving(chat.app) as address:
        asked = ServerPolicy(address, NAME, 48, Sampling(0.5, top_k=9, top_p=0.8))
        served = await asked.answer(items, seed=3)
        assert [reply.tokens for reply in served] == [reply.tokens for reply in replies]
        assert all((body["temperature"], body["top_k"], body["top_p"]) == (0.5, 9, 0.8) for body in chat.asked)
        assert sorted(body["seed"] for body in chat.asked) == list(range(3, 3 + len(items)))
        chat.counts = False
        assert [reply.tokens for reply in await ServerPolicy(address, NAME, 48).answer(items[:1])] == [None]
        assert "top_k" not in chat.asked[-1], "only vLLM knows it"
