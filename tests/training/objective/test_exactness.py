"""The registered functions, run as verl runs them, against the formula."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from samr1_verl.training.objective import NORMALIZERS
from tests.training.objective import reference
from tests.training.objective.world import Batch, estimate, exact_loss, make_batch, update, verl_loss

LOW, HIGH = 0.2, 0.3
MAX_LENGTH = 9


# Shrinking a failing batch takes minutes and a smaller one says no more.
BATCHES = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def assert_equal(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    """Loss and gradient agree to 1e-5 of the largest entry of both (a loss alone can cancel out to almost nothing)."""
    found_, expected_ = (torch.cat([torch.tensor([loss]), gradient.flatten()]) for loss, gradient in (found, expected))
    error = (found_ - expected_).abs().max() / expected_.abs().max().clamp_min(1e-12)
    assert error <= 1e-5, f"relative error {error:.2e}: loss {found[0]}, expected {expected[0]}"


def formula(batch: Batch, uids: list[str], beta: float, standardize: bool = True) -> tuple[float, torch.Tensor]:
    """-J averaged over the prompts `uids`, and its gradient."""
    objectives = [
        reference.group_objective(
            [rollout.reward for rollout in batch.groups[uid]],
            [rollout.written(batch.policy_VF) for rollout in batch.groups[uid]],
            [rollout.written(batch.old_VF) for rollout in batch.groups[uid]],
            [rollout.written(batch.ref_VF) for rollout in batch.groups[uid]],
            low=LOW,
            high=HIGH,
            beta=beta,
            standardize=standardize,
        )
        for uid in uids
    ]
    loss = -torch.stack(objectives).mean()
    return loss.item(), torch.autograd.grad(loss, batch.policy_VF)[0]


@st.composite
def cases(draw: st.DrawFn, smallest_group: int = 1) -> dict:
    """A rollout batch, and a way to cut it into mini-batches, ranks and micro-batches."""
    sizes = draw(st.lists(st.integers(smallest_group, 4), min_size=1, max_size=4))
    dp_size, mini_batches = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3]))
    multiple = dp_size * mini_batches
    rows = -(-sum(sizes) // multiple) * multiple + draw(st.sampled_from([0, multiple]))
    rows_per_share = rows // multiple
    divisors = [n for n in range(1, rows_per_share + 1) if rows_per_share % n == 0]
    dynamic = draw(st.booleans())
    return {
        "batch": make_batch(
            [draw(st.lists(st.sampled_from([0.0, 2.0, 3.5, 6.0]), min_size=n, max_size=n)) for n in sizes],
            [draw(st.lists(st.integers(1, MAX_LENGTH), min_size=n, max_size=n)) for n in sizes],
            rows=rows,
            seed=draw(st.integers(0, 2**31)),
            turns=draw(st.booleans()),
        ),
        "split": {
            "dp_size": dp_size,
            "mini_batches": mini_batches,
            "micro_rows": None if dynamic else draw(st.sampled_from(divisors)),
            "max_tokens": draw(st.integers(MAX_LENGTH + 2, 40)) if dynamic else None,
        },
        "standardize": draw(st.booleans()),
        "beta": draw(st.sampled_from([0.0, 0.005, 1.0])),
    }


def mean_over_mini_batches(results: list[tuple[float, torch.Tensor, list]]) -> tuple[float, torch.Tensor]:
    losses, gradients, _ = zip(*results, strict=True)
    return sum(losses) / len(losses), torch.stack(gradients).mean(0)


@settings(BATCHES, max_examples=30)
@given(cases())
def test_loss_and_gradient_are_the_papers_for_any_split(case: dict) -> None:
    batch, beta = case["batch"], case["beta"]
    data = estimate(batch, standardize=case["standardize"])
    results = update(batch, data, exact_loss(beta), **case["split"])
    assert_equal(mean_over_mini_batches(results), formula(batch, list(batch.groups), beta, case["standardize"]))


def test_the_loss_of_a_mini_batch_of_whole_groups_is_the_mean_over_them() -> None:
    batch = make_batch(
        [[6, 0, 2], [0, 3, 3], [1, 2, 3], [4, 4, 0]], [[3, 9, 1], [5, 5, 5], [2, 2, 9], [1, 1, 1]], rows=12
    )
    batch = replace(batch, rollouts=[rollout for group in batch.groups.values() for rollout in group])
    results = update(batch, estimate(batch), exact_loss(0.1), mini_batches=2, micro_rows=2)
    groups = list(batch.groups)
    for (loss, gradient, _), uids in zip(results, (groups[:2], groups[2:]), strict=True):
        assert_equal((loss, gradient), formula(batch, uids, 0.1))


def test_tokens_between_the_turns_of_a_dialogue_count_nowhere() -> None:
    lengths = [[9, 8, 7], [9, 9, 9]]
    batch = make_batch([[6, 0, 2], [0, 3, 3]], lengths, rows=6, turns=True)
    written = sum(int(rollout.written_T.sum()) for rollout in batch.rollouts)
    assert 12 <= written < sum(map(sum, lengths))
    data = estimate(batch)
    assert_equal(mean_over_mini_batches(update(batch, data, exact_loss(0.1))), formula(batch, list(batch.groups), 0.1))
    for rollout in batch.rollouts:  # the text between the turns has other tokens, which changes nothing
        rollout.tokens_T = torch.where(rollout.written_T, rollout.tokens_T, (rollout.tokens_T + 1) % 5)
    changed = update(batch, estimate(batch), exact_loss(0.1))
    assert_equal(mean_over_mini_batches(changed), mean_over_mini_batches(update(batch, data, exact_loss(0.1))))


def test_under_verls_own_trainer_the_policy_term_is_exact_and_kl_a_mean_over_the_mini_batchs_tokens() -> None:
    batch = make_batch([[6, 0], [0, 3, 3]], [[3, 9], [5, 1, 2]], rows=6)
    [(loss, _, metrics)] = update(batch, estimate(batch), verl_loss(use_kl_loss=True, kl_loss_coef=2.0), micro_rows=6)
    real = [rollout for rollout in batch.rollouts if not rollout.padding]
    log_ratio = torch.cat([rollout.log_prob(batch.ref_VF) - rollout.log_prob(batch.policy_VF) for rollout in real])
    kl = (log_ratio.exp() - log_ratio - 1).mean().item()
    assert loss == pytest.approx(formula(batch, list(batch.groups), beta=0)[0] + 2.0 * kl, rel=1e-5)
    assert metrics[0]["kl_loss"].aggregate() == pytest.approx(kl)


VERLS_MODES = {"batch": "token-mean", "sequence": "seq-mean-token-mean"}


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", VERLS_MODES)
@settings(BATCHES, max_examples=10)
@given(case=cases(smallest_group=2), dual_clip=st.sampled_from([1.1, 3.0]))
def test_the_other_normalizers_are_verls_vanilla_loss(normalizer: str, case: dict, dual_clip: float) -> None:
    """verl's own estimator, loss and KL term; a group of one is left out, for verl trains it on its raw reward."""
    batch, beta, split = case["batch"], case["beta"], case["split"]
    changes = {"clip_ratio_c": dual_clip, "loss_agg_mode": VERLS_MODES[normalizer]}
    data = estimate(batch, normalizer=normalizer, standardize=case["standardize"])
    ours = update(batch, data, exact_loss(beta, normalizer=normalizer, **changes), **split)
    data = estimate(batch, estimator="grpo", standardize=case["standardize"])
    loss = verl_loss(normalizer=None, use_kl_loss=beta > 0, kl_loss_coef=beta, **changes)
    verls = update(batch, data, loss, **split)
    assume(all(math.isfinite(loss) for loss, _, _ in verls))  # not so where a mini-batch is all padding
    for found, expected in zip(ours, verls, strict=True):
        assert_equal(found[:2], expected[:2])
        for name in ("actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl"):
            values, verls_values = ([m[name].aggregate() for m in metrics] for metrics in (found[2], expected[2]))
            assert values == pytest.approx(verls_values, rel=1e-4, abs=1e-6)


def test_the_metrics_count_the_tokens_clipped_on_each_side() -> None:
    batch = make_batch([[6, 0, 2, 2], [1, 3, 5, 0]], [[3, 9, 4, 7], [5, 5, 5, 2]], rows=8, step=0.6)
    [(_, _, [metrics])] = update(batch, estimate(batch), verl_loss())
    high = low = total = 0
    for group in batch.groups.values():
        for advantage, rollout in zip(reference.advantages([r.reward for r in group], True), group, strict=True):
            ratio = torch.exp(rollout.log_prob(batch.policy_VF) - rollout.log_prob(batch.old_VF))
            high += int((ratio > 1 + HIGH).sum()) if advantage > 0 else 0
            low += int((ratio < 1 - LOW).sum()) if advantage < 0 else 0
            total += len(ratio)
    assert high > 0 and low > 0, "a case that clips on both sides"
    assert metrics["actor/pg_clipfrac_high"].aggregate() == pytest.approx(high / total)
    assert metrics["actor/pg_clipfrac_low"].aggregate() == pytest.approx(low / total)
    assert metrics["actor/pg_clipfrac"].aggregate() == pytest.approx((high + low) / total)
    assert "actor/pg_clipfrac_lower" not in metrics, "verl's name for the dual clip, which is off"


def test_without_dual_clip_a_large_ratio_of_a_bad_token_is_not_cut() -> None:
    batch = make_batch([[0, 1]], [[4, 4]], rows=2, step=3.0)
    data = estimate(batch)
    [(plain, _, _)] = update(batch, data, verl_loss())
    [(dual, _, _)] = update(batch, data, verl_loss(clip_ratio_c=1.01))
    assert plain == pytest.approx(formula(batch, list(batch.groups), beta=0)[0], rel=1e-5)
    assert dual < plain


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_mini_batch_of_nothing_but_padding_has_loss_and_gradient_zero(normalizer: str) -> None:
    batch = make_batch([[6, 0]], [[3, 9]], rows=4)
    batch = replace(batch, rollouts=sorted(batch.rollouts, key=lambda rollout: rollout.padding))
    data = estimate(batch, normalizer=normalizer)
    [(first, _, _), (second, gradient, _)] = update(batch, data, exact_loss(0.1, normalizer=normalizer), mini_batches=2)
    assert first != 0
    assert second == 0
    assert not gradient.any()
