"""What the two starts of a rehearsal logged, and whether rewards, gradients, weight updates and resume were seen."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samr1_verl import Samr1Error
from samr1_verl.rehearsal.replacements import STEPS

Metrics = dict[int, dict[str, float]]  # by step; step 0 has a validation only
DIFFERENCE = "training/rollout_probs_diff_mean"  # mean |p_rollout - p_actor| of the sampled tokens
ACC = re.compile(r"reward/acc(/turn_\d+)?")  # mean mask IoU; of each turn of a dialogue
NOISE = 1e-5  # of DIFFERENCE in fp32
TIMES = {
    "gen": "generation and rewards",
    "reward": "reward model",
    "old_log_prob": "log-probs",
    "ref": "reference log-probs",
    "adv": "advantages",
    "update_actor": "update",
    "update_weights": "weights to the rollout",
    "save_checkpoint": "checkpoint",
    "testing": "validation",
    "step": "step without validation",
}


class RehearsalError(Samr1Error, RuntimeError):
    """A rehearsal whose training did not end, or did not log what it must."""


@dataclass(frozen=True)
class Check:
    """One of the four things that must be seen, and the figures in which it was looked for."""

    name: str
    seen: bool
    detail: str


@dataclass(frozen=True)
class Start:
    """One start of the training: metrics by step, and greedy validation answers by step and row."""

    metrics: Metrics
    answers: dict[int, dict[str, str]]


def read_start(metrics: Path, validation: Path) -> Start:
    """Read the log and the validations of a start. Raises RehearsalError where the log is missing or broken."""
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        by_step: Metrics = {}
        for line in lines:
            by_step.setdefault(int(line["step"]), {}).update(line["data"])
    except (OSError, ValueError, KeyError) as error:
        raise RehearsalError("no_training_log", f"{metrics}", f"not the log of a training ({error})") from error
    answers = {}
    for file in sorted(validation.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        answers[int(file.stem)] = {f"{row['input']}{row['gts']}": row["output"] for row in rows}
    return Start(by_step, answers)


def examine(first: Start, second: Start, masks: bool) -> list[Check]:
    """The four checks. masks: whether the reward compares masks, so that the segmenter must have answered.

    Raises:
        RehearsalError: a step is missing in the log.
    """
    steps = {step: first.metrics.get(step, {}) for step in range(1, STEPS + 1)}
    if missing := [step for step, values in steps.items() if "actor/grad_norm" not in values]:
        raise RehearsalError("missing_step", "the log", f"has no step {missing[0]}, found {sorted(first.metrics)}")
    return [
        _rewards([*steps.values()], masks),
        _gradients([*steps.values()]),
        _weights(steps, first.answers),
        _resume(first, second),
    ]


def _rewards(steps: Sequence[Mapping[str, float]], masks: bool) -> Check:
    low, high = ([values[f"critic/score/{name}"] for values in steps] for name in ("min", "max"))
    lost = sum(values.get("training/lost_rollouts", 0.0) for values in steps)
    differ = [values.get("critic/groups/zero_advantage_frac", 0.0) for values in steps]
    # Of any turn: a stand-in's last answer is seldom usable, and the check is about the segmenter.
    acc = [max((iou for name, iou in values.items() if ACC.fullmatch(name)), default=0.0) for values in steps]
    seen = all(map(math.isfinite, [*low, *high])) and max(high) > min(low) and min(differ) < 1 and lost == 0
    detail = f"scores from {min(low):.3g} to {max(high):.3g}, {lost:.0f} rollouts lost, "
    detail += f"groups without a gradient: {', '.join(f'{share:.0%}' for share in differ)}"
    if masks:
        seen &= max(acc) > 0
        detail += f", mean mask IoU {', '.join(f'{value:.2g}' for value in acc)}"
    if turns := [values["reward/turns"] for values in steps if "reward/turns" in values]:
        seen &= max(turns) > 1
        detail += f", turns {', '.join(f'{value:.3g}' for value in turns)}"
    return Check("rewards", seen, detail)


def _gradients(steps: Sequence[Mapping[str, float]]) -> Check:
    norms = [values["actor/grad_norm"] for values in steps]
    seen = all(math.isfinite(norm) and norm > 0 for norm in norms)
    return Check("gradients", seen, f"gradient norms {', '.join(f'{norm:.3g}' for norm in norms)}")


def _weights(steps: Mapping[int, Mapping[str, float]], answers: Mapping[int, Mapping[str, str]]) -> Check:
    """After an update the rollout agrees with the actor as well as before it, and answers in another way."""
    before, after = (steps[step].get(DIFFERENCE, math.nan) for step in (1, STEPS))
    changed, total = _changed(answers), len(answers.get(0, {}))
    seen = after <= max(NOISE, 3 * before) and bool(changed)
    return Check(
        "weight updates",
        seen,
        f"mean difference of rollout and actor probabilities {before:.2g} before and {after:.2g} after an update, "
        f"{len(changed)} of {total} greedy answers changed by the updates",
    )


def _resume(first: Start, second: Start) -> Check:
    """The second start continues with the next step, and answers as the policy at the end of the first start."""
    changed = _changed(first.answers)
    resumed = second.answers.get(STEPS, {})
    same = [row for row in changed if resumed.get(row) == first.answers[STEPS].get(row)]
    trained = sorted(step for step, values in second.metrics.items() if "actor/grad_norm" in values)
    seen = trained == [STEPS + 1] and len(same) > len(changed) / 2
    return Check(
        "resume",
        seen,
        f"trained step {', '.join(map(str, trained)) or 'none'} after {STEPS}; {len(same)} of the {len(changed)} "
        "changed answers are the same after the resume",
    )


def _changed(answers: Mapping[int, Mapping[str, str]]) -> list[str]:
    """The validation rows whose greedy answer differs between step 0 and the last step of the first start."""
    last = answers.get(STEPS, {})
    return [row for row, answer in answers.get(0, {}).items() if row in last and last[row] != answer]


def times(metrics: Metrics) -> dict[str, list[float]]:
    """Seconds of each part of a step, in the order of the steps."""
    found = {}
    for name, title in TIMES.items():
        values = [values[f"timing_s/{name}"] for values in metrics.values() if f"timing_s/{name}" in values]
        if values:
            found[title] = [round(value, 1) for value in values]
    return found
