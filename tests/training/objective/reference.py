"""The paper's objective written down a second time: plain autograd, one whole group at a time, nothing of verl."""

import torch


def advantages(rewards: list[float], standardize: bool) -> list[float]:
    """A_i of one group; 0 where there is nothing to compare."""
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if len(rewards) == 1 or len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    if not standardize:
        return centred
    std = (sum(value**2 for value in centred) / (len(rewards) - 1)) ** 0.5
    return [value / (std + 1e-6) for value in centred]


def token_terms(
    log_prob: torch.Tensor, old: torch.Tensor, ref: torch.Tensor, advantage: float, low: float, high: float, beta: float
) -> torch.Tensor:
    """What one rollout puts into the sum over t: min(…) - β·k3."""
    terms = []
    for t in range(len(log_prob)):
        ratio = torch.exp(log_prob[t] - old[t])
        clipped = torch.clip(ratio, 1 - low, 1 + high)
        k3 = torch.exp(ref[t] - log_prob[t]) - (ref[t] - log_prob[t]) - 1
        terms.append(torch.min(ratio * advantage, clipped * advantage) - beta * k3)
    return torch.stack(terms)


def group_objective(
    rewards: list[float],
    log_probs: list[torch.Tensor],
    olds: list[torch.Tensor],
    refs: list[torch.Tensor],
    *,
    low: float,
    high: float,
    beta: float,
    standardize: bool,
) -> torch.Tensor:
    """J of one prompt."""
    scale = 1 / sum(len(log_prob) for log_prob in log_probs)
    total = torch.zeros((), dtype=torch.float64)
    for advantage, log_prob, old, ref in zip(advantages(rewards, standardize), log_probs, olds, refs, strict=True):
        total = total + token_terms(log_prob, old, ref, advantage, low, high, beta).sum()
    return scale * total
