"""What the objective does at its edges; tests/objective holds it against the formula."""

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

from samr1_verl.training import objective
from samr1_verl.training.objective import PolicyLossConfig, compute_advantage

SETTINGS = {"normalizer": "group", "standardize": True, "shuffle_rewards": False}


def run(
    rewards: list[float], lengths: list[int], uids: list[str], width: int = 6, **settings: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's advantage and weight, float64; checks that its tokens agree and that masked ones have none."""
    mask_BT = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    scores_BT = torch.zeros(len(rewards), width)
    for row, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        scores_BT[row, max(length - 1, 0)] = reward
    index = np.array(uids, dtype=object)
    outcome = compute_advantage(scores_BT, mask_BT, {"samr1": {**SETTINGS, **settings}}, index)
    for values_BT in outcome:
        assert torch.equal(values_BT, values_BT[:, :1] * mask_BT)
    weighted_BT, weights_BT = (values_BT.double() for values_BT in outcome)
    weights_B = weights_BT[:, 0]
    return torch.where(weights_B > 0, weighted_BT[:, 0] / weights_B.clamp_min(1e-30), 0), weights_B


def test_verl_finds_both_functions_by_name() -> None:
    assert get_adv_estimator_fn("samr1") is compute_advantage
    assert get_policy_loss_fn("samr1") is objective.compute_policy_loss


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations() -> None:
    advantages, _ = run([6, 2, 1, 1, 0], [3, 1, 2, 2, 5], ["a", "a", "b", "b", "b"])
    std_a, std_b = np.std([6, 2], ddof=1), np.std([1, 1, 0], ddof=1)
    expected = [2 / std_a, -2 / std_a, 1 / 3 / std_b, 1 / 3 / std_b, -2 / 3 / std_b]
    assert advantages.tolist() == pytest.approx(expected, rel=1e-5)


def test_without_standardisation_it_stays_in_the_rewards_unit() -> None:
    advantages, _ = run([6, 2, 1], [3, 1, 2], ["a", "a", "a"], standardize=False)
    assert advantages.tolist() == pytest.approx([3, -1, -2], rel=1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 6.0])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_equal_rewards_and_a_group_of_one_have_advantage_exactly_zero(reward: float, size: int) -> None:
    advantages, weights = run([reward] * size + [1, 2], [2] * (size + 2), ["a"] * size + ["b", "b"])
    assert not advantages[:size].any()
    assert (weights[:size] > 0).all(), "the KL term still holds on to them"
    assert advantages[size:].any()


def test_each_groups_weights_sum_to_the_same_over_its_tokens() -> None:
    """Of B rows and N groups, B/N: a token of a group with few tokens counts more, whichever rollout it is in."""
    lengths = torch.tensor([1, 6, 3, 2, 2])
    _, weights = run([0, 1, 0, 1, 2], lengths.tolist(), ["a", "a", "b", "b", "b"])
    assert weights.tolist() == pytest.approx([5 / 2 / 7] * 2 + [5 / 2 / 7] * 3)
    _, weights = run([0, 1, 0, 1], [1, 1, 6, 6], ["a", "a", "b", "b"])
    assert weights.tolist() == pytest.approx([4 / 2 / 2] * 2 + [4 / 2 / 12] * 2)


def test_a_lost_rollout_leaves_no_trace_in_its_group() -> None:
    advantages, weights = run([6, 2, 0, 3, 3, 4], [3, 1, 2, 4, 1, 1], ["a", "b", "a", "b", "a", "b"])
    without, without_weights = run([6, 2, 3, 3, 4], [3, 1, 4, 1, 1], ["a", "b", "b", "a", "b"])
    assert without[[1, 2, 4]].tolist() == pytest.approx(advantages[[1, 3, 5]].tolist())
    assert without[[0, 3]].tolist() == pytest.approx([3 / np.std([6, 3], ddof=1) / 2, -3 / np.std([6, 3], ddof=1) / 2])
    assert without_weights[[0, 3]].tolist() == pytest.approx([5 / 2 / 4] * 2)
    assert weights[[0, 2, 4]].tolist() == pytest.approx([6 / 2 / 6] * 3)


def test_padding_rows_have_no_weight_and_do_not_count_as_a_group() -> None:
    """verl pads to whole mini-batches with rows of one masked token; the loss divides by them too, so B counts them."""
    advantages, weights = run([6, 0, 0, 0], [2, 4, 0, 0], ["a", "a", "pad", "pad"])
    assert weights.tolist() == pytest.approx([4 / 1 / 6, 4 / 1 / 6, 0, 0])
    assert not advantages[2:].any()


@pytest.mark.parametrize(("normalizer", "expected"), [("batch", [1, 1, 1]), ("sequence", [1, 1 / 6, 1 / 3])])
def test_the_other_normalizers_look_at_no_group(normalizer: str, expected: list[float]) -> None:
    _, weights = run([0, 1, 2], [1, 6, 3], ["a", "a", "b"], normalizer=normalizer)
    assert weights.tolist() == pytest.approx(expected)


def test_a_whole_batch_without_tokens_has_no_weight() -> None:
    advantages, weights = run([0, 0], [0, 0], ["pad", "pad"])
    assert not advantages.any() and not weights.any()


class TestShuffledRewards:
    """The demo's control."""

    UIDS = ("a", "b") * 8
    REWARDS = tuple(float(n) for n in range(16))

    def shuffled(self, rewards: tuple[float, ...] = REWARDS, lengths: list[int] | None = None) -> torch.Tensor:
        """The rewards after shuffling, read off the unstandardised advantages."""
        advantages, _ = run(
            list(rewards), lengths or [3] * 16, list(self.UIDS), standardize=False, shuffle_rewards=True
        )
        means = [np.mean([r for r, u in zip(rewards, self.UIDS, strict=True) if u == uid]) for uid in self.UIDS]
        return advantages + torch.tensor(means)

    def test_every_group_keeps_its_rewards(self) -> None:
        after = self.shuffled().round().tolist()
        assert sorted(after[::2]) == list(self.REWARDS[::2])
        assert sorted(after[1::2]) == list(self.REWARDS[1::2])
        assert after != list(self.REWARDS)

    def test_the_same_batch_is_shuffled_the_same_way_whatever_its_random_uids(self) -> None:
        first = self.shuffled()
        assert torch.equal(first, self.shuffled())
        renamed = [{"a": "z9", "b": "c3"}[uid] for uid in self.UIDS]
        advantages, _ = run(list(self.REWARDS), [3] * 16, renamed, standardize=False, shuffle_rewards=True)
        means = [np.mean(self.REWARDS[::2]), np.mean(self.REWARDS[1::2])] * 8
        assert torch.equal(first, advantages + torch.tensor(means))

    def test_another_batch_is_shuffled_another_way(self) -> None:
        assert not torch.equal(self.shuffled(), self.shuffled(lengths=[3] * 15 + [4]))

    def test_what_a_rollout_earned_does_not_survive(self) -> None:
        """Correlation of the rewards before and after, 400 batches of two groups of 8: its standard error is 0.013."""
        generator = np.random.default_rng(0)
        before = [tuple(float(n) for n in generator.choice([0, 2, 3, 4], 16)) for _ in range(400)]
        after = [self.shuffled(rewards).tolist() for rewards in before]

        def centred(rewards: list) -> np.ndarray:
            values = np.array(rewards).reshape(400, 8, 2)
            return (values - values.mean(1, keepdims=True)).ravel()

        assert abs(np.corrcoef(centred(before), centred(after))[0, 1]) < 0.04


class TestErrors:
    def test_a_reward_that_is_not_finite(self) -> None:
        with pytest.raises(ValueError, match=r"row 1 \(uid b\): .* nan,"):
            run([1, float("nan"), 2], [1, 1, 1], ["a", "b", "a"])

    def test_an_unknown_normalizer(self) -> None:
        with pytest.raises(ValueError, match=r"algorithm.samr1.normalizer: .*'token'.* group"):
            run([1, 2], [1, 1], ["a", "a"], normalizer="token")

    def test_no_settings(self) -> None:
        with pytest.raises(ValueError, match=r"algorithm.samr1: ") as found:
            compute_advantage(torch.zeros(1, 1), torch.ones(1, 1), {}, np.array(["a"]))
        assert all(key in str(found.value) for key in ("absent", "normalizer", "standardize", "shuffle"))

    def test_a_policy_loss_section_without_normalizer(self) -> None:
        with pytest.raises(ValueError, match=r"actor.policy_loss.normalizer: .*'\?\?\?'.* group"):
            PolicyLossConfig(loss_mode="samr1")
        config = PolicyLossConfig(loss_mode="samr1", normalizer="batch")
        with pytest.raises(ValueError, match=r"global_batch_info.batch_num_tokens: found None"):
            objective.reduce_tokens(torch.ones(1, 1), torch.ones(1, 1), config.normalizer, {"dp_size": 1})
