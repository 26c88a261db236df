"""What a training step logs about its rewards and groups, from rollouts that lie in a real TransferQueue."""

import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from samr1_verl.training.guard import FAULT, Guard, LostRolloutsError
from samr1_verl.training.replay_buffer import ReplayBuffer
from samr1_verl.training.rollout_metrics import EqualGroups, group_metrics, reward_metrics, time_metrics
from tests.composing import compose_recipe
from tests.errors import refused
from tests.waiting import GUARD_S, wait_until

DRAW = random.Random(0)  # of uids, whose order is not that of submission


def test_each_key_of_the_reward_is_averaged() -> None:
    rewards = [
        {"score": 6.0, "acc": 0.9, "answer/not_json": 0.0},
        {"score": 0, "acc": 0.1, "answer/not_json": True},
    ]
    assert reward_metrics(rewards) == {
        "reward/score": 3.0,
        "reward/acc": pytest.approx(0.5),
        "reward/answer/not_json": 0.5,
    }


def test_rewards_with_different_keys_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"rollout 1: .* \['score'\]") as found:
        reward_metrics([{"score": 1.0, "acc": 0.9}, {"score": 1.0}])
    assert "['acc', 'score']" in str(found.value)


def test_a_component_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"rollout 0: answer .*'not_json'"):
        reward_metrics([{"score": 0.0, "answer": "not_json"}])


def test_a_group_teaches_nothing_when_its_rewards_are_equal_or_it_is_alone() -> None:
    uids = ["a", "b", "a", "c", "b", "b"]
    assert group_metrics(uids, scores=[2, 0, 2, 6, 0, 3], tokens=[3, 1, 4, 9, 1, 1]) == {
        "critic/groups/count": 3,
        "critic/groups/zero_advantage_frac": pytest.approx(2 / 3),
        "critic/groups/size/mean": 2,
        "critic/groups/size/min": 1,
        "critic/groups/tokens/mean": pytest.approx(19 / 3),
        "critic/groups/tokens/max": 9,
        "critic/groups/tokens/min": 3,
    }


def test_equal_groups_are_told_apart_by_whether_their_rollouts_find_the_object() -> None:
    ious = {"lost": [0.5, 0.0], "found": [0.81, 0.99], "between": [0.6, 0.9], "differs": [0.1, 0.9]}
    scores = {"lost": [2, 2], "found": [6, 6], "between": [4, 4], "differs": [2, 6]}
    uids = [uid for uid in ious for _ in range(2)]
    rewards = [{"acc": iou} for uid in ious for iou in ious[uid]]
    flat = [score for uid in ious for score in scores[uid]]
    assert EqualGroups.among(uids, rewards, flat) == EqualGroups(count=3, low=1, high=1)
    assert EqualGroups.among(uids, [{}] * 8, flat) == EqualGroups(count=3), "a reward without a mask IoU"
    assert EqualGroups(3, 1, 1) + EqualGroups(2, 2, 0) == EqualGroups(5, 3, 1)


def test_a_reward_that_ends_before_the_longest_generation_costs_no_time() -> None:
    hidden = time_metrics([1.0, 9.0], [3.0, 0.0])
    assert hidden == {"reward/seconds/mean": 1.5, "reward/seconds/max": 3.0, "reward/exposed_seconds": 0.0}
    assert time_metrics([1.0, 9.0], [3.0, 2.0])["reward/exposed_seconds"] == 2.0


def test_an_asynchronous_trainer_is_told_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"trainer_mode: .*'colocate_async'") as found:
        build_buffer("colocate_async")
    assert "samr1 or sync" in str(found.value)


@pytest.fixture(scope="module")
def transfer_queue(ray_cluster: None) -> Iterator[None]:
    """The queue that verl keeps rollouts in."""
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield
    tq.close()


def put_group(
    partition: str,
    rewards: list[dict[str, float]],
    lengths: list[int],
    status: str = "finished",
    extra_fields: dict[str, Any] | None = None,
    **tag: str,
) -> str:
    """One prompt's rollouts, stored with the keys, tags and fields of verl's AgentLoopWorkerTQ. Returns its uid.

    Args:
        extra_fields: further fields of the agent loop.
    """
    uid = str(uuid.UUID(int=DRAW.getrandbits(128), version=4))
    rows = [
        {
            "uid": uid,
            "response_mask": torch.ones(length, dtype=torch.int64),
            "responses": torch.arange(length),
            "data_source": "test",
            "reward_model": {"ground_truth": "{}"},
            "extra_info": {"index": 7},
            "rm_scores": torch.tensor([0.0] * (length - 1) + [reward["score"]]),
            "extra_fields": {"reward_extra_info": reward, "global_steps": 1, **(extra_fields or {})},
            "metrics": {"generate_sequences": float(length), "compute_score": 0.5},
        }
        for reward, length in zip(rewards, lengths, strict=True)
    ]
    keys = [f"{uid}_{session}_0" for session in range(len(rows))]
    tags = [{"status": "success", "response_len": length} for length in lengths]
    if rows:
        tq.kv_batch_put(keys=keys, partition_id=partition, fields=list_of_dict_to_tensordict(rows), tags=tags)
    tq.kv_batch_put(
        keys=[uid], partition_id=partition, tags=[{"is_prompt": True, "status": status, "global_steps": 1, **tag}]
    )
    return uid


def build_buffer(trainer_mode: str = "sync", refill: Any = None) -> ReplayBuffer:
    """What verl's trainer builds from our recipe, by its own function."""
    trainer = SimpleNamespace(
        config=compose_recipe("samr1"), trainer_mode=trainer_mode, _add_prompts_to_generate=refill
    )
    buffer = PPOTrainer._build_replay_buffer(trainer)
    assert type(buffer) is ReplayBuffer
    return buffer


def test_the_buffer_that_the_recipe_names_logs_what_it_samples(transfer_queue: None) -> None:
    put_group("train", [{"score": 6.0, "acc": 0.9}, {"score": 2.0, "acc": 0.2}, {"score": 1.0, "acc": 0.1}], [3, 1, 5])
    put_group("train", [{"score": 2.0, "acc": 0.4}, {"score": 2.0, "acc": 0.4}], [2, 2], status="failure")
    buffer = build_buffer()
    batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    assert len(batch.keys) == 5
    assert metrics == {
        "reward/score": pytest.approx(13 / 5),
        "reward/acc": pytest.approx(0.4),
        "critic/groups/count": 2,
        "critic/groups/zero_advantage_frac": 0.5,
        "critic/groups/size/mean": 2.5,
        "critic/groups/size/min": 2,
        "critic/groups/tokens/mean": 6.5,
        "critic/groups/tokens/max": 9,
        "critic/groups/tokens/min": 4,
        "reward/seconds/mean": 0.5,
        "reward/seconds/max": 0.5,
        "reward/exposed_seconds": 0.5,
    }
    tq.kv_clear(keys=batch.keys, partition_id="train")


def test_the_second_step_knows_the_rewards_share_of_the_time_since_the_first(transfer_queue: None) -> None:
    buffer, shares = build_buffer(), []
    for _ in range(2):
        put_group("train", [{"score": 6.0}], [3])
        batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=1)
        shares.append(metrics.get("reward/step_share"))
        tq.kv_clear(keys=batch.keys, partition_id="train")
    assert shares[0] is None and shares[1] > 0


def test_validation_is_left_to_verl_and_its_rows_are_kept_once(transfer_queue: None) -> None:
    buffer = build_buffer()
    for score in (6.0, 2.0):
        put_group("val", [{"score": score, "acc": 0.9}], [4])
        batch, metrics = buffer.sample(global_steps=1, partition_id="val", batch_size=1)
        assert len(batch.keys) == 1
        assert metrics == {}
        tq.kv_clear(keys=batch.keys, partition_id="val")
    first, second = buffer.take_validated(1)
    assert first.item == {"data_source": "test", "reward_model": {"ground_truth": "{}"}, "extra_info": {"index": 7}}
    assert first.response_ids == [0, 1, 2, 3]
    assert (first.scores["score"], second.scores["score"]) == (6.0, 2.0)
    assert first.turns == () and buffer.take_validated(1) == []


def test_the_turns_of_a_dialogue_come_with_its_validated_row(transfer_queue: None) -> None:
    buffer, turns = build_buffer(), ["<answer>[1]</answer>", "<answer>done</answer>"]
    put_group("val", [{"score": 6.0}], [4], extra_fields={"turns": turns})
    batch, _ = buffer.sample(global_steps=1, partition_id="val", batch_size=1)
    tq.kv_clear(keys=batch.keys, partition_id="val")
    (row,) = buffer.take_validated(1)
    assert list(row.turns) == turns


EQUAL = [{"score": 2.0, "acc": 0.3}, {"score": 2.0, "acc": 0.2}]
BEST = [{"score": 6.0, "acc": 0.9}, {"score": 6.0, "acc": 0.95}]
UNEQUAL = [{"score": 2.0, "acc": 0.3}, {"score": 6.0, "acc": 0.9}]


def filtered(groups: list[list[dict[str, float]]], **limits: int) -> tuple[ReplayBuffer, list[int]]:
    """A buffer with filter_groups for 2 prompts per step, and the numbers of prompts that it asked for in addition.

    `groups`: the rollouts of the prompts in the order in which they are drawn; the first two lie in the queue already.
    """
    asked: list[int] = []

    def refill(prompts: int) -> None:
        asked.append(prompts)
        for _ in range(prompts):
            put_group("train", groups.pop(0), [1, 1])

    buffer = build_buffer(refill=refill)
    buffer.filter_groups("reward", 2, limits.get("max_batches", 0), 1, refill_failed=False)
    for _ in range(2):
        put_group("train", groups.pop(0), [1, 1])
    return buffer, asked


def test_groups_without_a_gradient_are_replaced_and_counted(transfer_queue: None) -> None:
    buffer, asked = filtered([EQUAL, UNEQUAL, BEST, UNEQUAL])
    batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    assert asked == [2], "verl asks for two prompts in place of one"
    assert metrics["critic/groups/zero_advantage_frac"] == 0, "both groups of the batch have a gradient"
    assert metrics["critic/groups/drawn"] == 4
    assert metrics["critic/groups/drawn_zero_advantage_frac"] == 0.5
    assert metrics["critic/groups/drawn_low_frac"] == metrics["critic/groups/drawn_high_frac"] == 0.25
    assert metrics["critic/groups/useful"] == 2
    assert metrics["critic/groups/replaced_tokens"] == 4, "two groups of two rollouts with one token each"
    assert metrics["training/filter_groups/evicted_samples"] == 2
    tq.kv_clear(keys=batch.keys, partition_id="train")
    assert not tq.kv_list("train").get("train"), "nothing of the replaced groups is left"


def test_a_step_ends_where_no_group_has_a_gradient(transfer_queue: None) -> None:
    buffer, asked = filtered([EQUAL] * 6, max_batches=3)
    batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    assert sum(asked) == 4, "3 batches of 2 prompts in all, and no more"
    assert len(batch.keys) == 4 and metrics["critic/groups/zero_advantage_frac"] == 1
    assert (metrics["critic/groups/drawn"], metrics["critic/groups/drawn_zero_advantage_frac"]) == (6, 1)
    assert (metrics["critic/groups/drawn_low_frac"], metrics["critic/groups/useful"]) == (1, 0)
    assert metrics["critic/groups/replaced_tokens"] == 8, "of four groups; two fill the batch"
    tq.kv_clear(keys=batch.keys, partition_id="train")


def test_in_whole_rounds_groups_are_replaced_when_all_have_ended(
    transfer_queue: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, asked = filtered([EQUAL, UNEQUAL, UNEQUAL, UNEQUAL])
    polls, wait = [], buffer._wait_for_next_poll
    monkeypatch.setattr(buffer, "_wait_for_next_poll", lambda *given: polls.append(given) or wait(*given))
    (equal, other) = [uid for uid, tag in tq.kv_list("train")["train"].items() if tag.get("is_prompt")]
    buffer.order({equal: 0, other: 1}, whole_rounds=True)
    tq.kv_batch_put(keys=[other], partition_id="train", tags=[{"status": "running"}])
    with ThreadPoolExecutor() as pool:
        step = pool.submit(buffer.sample, global_steps=1, partition_id="train", batch_size=2)
        wait_until(lambda: len(polls) > 2 or step.done())
        assert asked == [] and not step.done(), "the group with equal rewards waits for the running one"
        tq.kv_batch_put(keys=[other], partition_id="train", tags=[{"status": "finished"}])
        batch, metrics = step.result(GUARD_S)
    assert asked == [2] and metrics["critic/groups/drawn"] == 4
    tq.kv_clear(keys=batch.keys, partition_id="train")


def test_rollouts_come_in_the_order_of_submission(transfer_queue: None) -> None:
    uids = [put_group("train", UNEQUAL, [1, 1]) for _ in range(6)]
    buffer = build_buffer()
    buffer.order({uid: 5 - place for place, uid in enumerate(uids)}, whole_rounds=False)
    batch, _ = buffer.sample(global_steps=1, partition_id="train", batch_size=6)
    assert batch.keys == [f"{uid}_{session}_0" for uid in reversed(uids) for session in range(2)]
    tq.kv_clear(keys=batch.keys, partition_id="train")


def guarded(max_lost_share: float = 0.0) -> ReplayBuffer:
    buffer = build_buffer()
    buffer.watch(Guard({"train": 2, "val": 1}, max_lost_share, progress_timeout_s=GUARD_S))
    return buffer


def test_a_lost_rollout_ends_the_run_with_its_fault(transfer_queue: None) -> None:
    put_group("train", UNEQUAL, [1, 1])
    put_group("train", UNEQUAL[:1], [1], status="failure", **{FAULT: "SegmenterError: no memory"})
    named = ("training at step 3", "1 of 4", "samr1.max_lost_share is 0.", "SegmenterError: no memory")
    with refused(LostRolloutsError, "rollouts_lost", *named):
        guarded().sample(global_steps=3, partition_id="train", batch_size=2)
    tq.kv_clear(keys=list(tq.kv_list("train")["train"]), partition_id="train")


def test_a_step_that_lost_every_rollout_ends_with_the_fault_too(transfer_queue: None) -> None:
    for _ in range(2):
        put_group("train", [], [], status="failure", **{FAULT: "ActorDiedError: the reward worker"})
    with refused(LostRolloutsError, "rollouts_lost", "4 of 4", "ActorDiedError: the reward worker"):
        guarded().sample(global_steps=3, partition_id="train", batch_size=2)
    tq.kv_clear(keys=list(tq.kv_list("train")["train"]), partition_id="train")


def test_an_allowed_loss_is_counted(transfer_queue: None) -> None:
    put_group("train", UNEQUAL, [1, 1])
    put_group("train", UNEQUAL[:1], [1], status="failure", **{FAULT: "SegmenterError: no memory"})
    batch, metrics = guarded(0.25).sample(global_steps=3, partition_id="train", batch_size=2)
    assert metrics["training/lost_rollouts"] == 1 and len(batch.keys) == 3
    tq.kv_clear(keys=batch.keys, partition_id="train")
    put_group("val", UNEQUAL[:1], [1])
    put_group("val", UNEQUAL[:0], [], status="failure")
    with refused(LostRolloutsError, "rollouts_lost", "validation at step 3", "1 of 2", "unknown"):
        guarded(0.25).sample(global_steps=3, partition_id="val", batch_size=2)
    tq.kv_clear(keys=list(tq.kv_list("val")["val"]), partition_id="val")


def test_an_agent_loop_with_several_rows_for_a_rollout_is_refused(transfer_queue: None) -> None:
    uid = put_group("train", UNEQUAL, [1, 1])
    tq.kv_batch_put(keys=[f"{uid}_1_1"], partition_id="train", tags=[{"status": "success", "response_len": 1}])
    with pytest.raises(ValueError, match=rf"key {uid}_1_1\).*single_turn_agent"):
        build_buffer().sample(global_steps=1, partition_id="train", batch_size=1)
    tq.kv_clear(keys=list(tq.kv_list("train")["train"]), partition_id="train")
