"""The charts of a run: which curves are drawn, and which of them in one chart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samr1_verl.report.run import Curve


@dataclass(frozen=True)
class Series:
    """A curve's tag in the log and its name in the legend."""

    tag: str
    label: str


@dataclass(frozen=True)
class Panel:
    """A chart. `note` explains its figure to the reader."""

    group: str
    title: str
    note: str
    series: tuple[Series, ...]

    def as_json(self) -> dict[str, Any]:
        """The panel in JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Rule:
    """A panel of all tags that match `pattern`.

    The pattern's group `label` is the name in the legend. Its group `panel` makes one panel per value, which replaces
    `{}` in the title.
    """

    group: str
    title: str
    note: str
    pattern: str
    label: str = ""  # name in the legend, where the pattern has no group `label`
    only_nonzero: bool = False  # draw no curve whose values are all 0; the note names them


_NO_TERM = r"(?:score|acc|intersection|union|ignored|ignored_predicted|step_share|exposed_seconds|turns|done)$"
_SOURCE = r"(?P<panel>[^/]+(?:/[^/]+)*?)"
_RULES = (
    _Rule("Rollouts", "Reward", "Mean over the rollouts of a step", r"reward/score$", "reward"),
    _Rule(
        "Rollouts",
        "Terms of the reward",
        "Mean over the rollouts of a step",
        rf"reward/(?!{_NO_TERM})(?P<label>[^/]+)$",
    ),
    _Rule("Rollouts", "Mask IoU", "Mean over the rollouts of a step, unusable answers as 0", r"reward/acc$", "IoU"),
    _Rule(
        "Rollouts", "Mask IoU by turn", "If every rollout stopped after the turn", r"reward/acc/turn_(?P<label>\d+)$"
    ),
    _Rule("Rollouts", "Turns", "Mean over the rollouts of a step", r"reward/turns$", "turns"),
    _Rule("Rollouts", "Dialogues that end with done", "Share of the rollouts", r"reward/done$", "share"),
    _Rule(
        "Rollouts", "Unusable answers", "Share of the rollouts, by reason", r"reward/answer/(?P<label>.+)$", "", True
    ),
    _Rule(
        "Rollouts",
        "Groups without a gradient",
        "Share of groups whose rewards are all equal",
        r"critic/groups/zero_advantage_frac$",
        "share",
    ),
    _Rule(
        "Validation",
        "gIoU, {}",
        "Mean IoU over the validation rows, by protocol",
        rf"val-core/{_SOURCE}/giou/(?P<label>.+)$",
    ),
    _Rule("Validation", "cIoU, {}", "Sum of I over sum of U, by protocol", rf"val-core/{_SOURCE}/ciou/(?P<label>.+)$"),
    _Rule(
        "Validation", "Mask IoU, {}", "Mean over the validation rows", rf"val-core/{_SOURCE}/acc/(?P<label>mean@\d+)$"
    ),
    _Rule(
        "Validation",
        "Mask IoU by turn, {}",
        "If every dialogue stopped after the turn",
        rf"val-(?:aux|core)/{_SOURCE}/acc/turn_(?P<label>\d+)/mean@\d+$",
    ),
    _Rule(
        "Validation",
        "Reward, {}",
        "Mean over the validation rows",
        rf"val-(?:aux|core)/{_SOURCE}/reward/(?P<label>mean@\d+)$",
    ),
    _Rule(
        "Validation",
        "Unusable answers, {}",
        "Share of the validation rows, by reason",
        rf"val-(?:aux|core)/{_SOURCE}/answer/(?P<label>.+)/mean@\d+$",
        "",
        True,
    ),
    _Rule("Policy", "KL to the reference", "k3 estimate, per token", r"actor/kl_loss$", "KL"),
    _Rule(
        "Policy", "Clip fractions", "Share of tokens whose ratio was clipped", r"actor/pg_clipfrac_(?P<label>high|low)$"
    ),
    _Rule("Policy", "Response length", "Tokens", r"response_length/(?P<label>mean|max|min)$"),
    _Rule("Policy", "Entropy", "Of the next token, nats", r"actor/entropy$", "entropy"),
    _Rule("Policy", "Gradient norm", "Before clipping", r"actor/grad_norm$", "norm"),
    _Rule(
        "Time",
        "Reward latency",
        "Seconds from answer to reward, queues included",
        r"reward/seconds/(?P<label>mean|max)$",
    ),
    _Rule(
        "Time",
        "Time added by the reward",
        "Seconds of a step in addition to generation",
        r"reward/exposed_seconds$",
        "seconds",
    ),
    _Rule("Time", "Share of a step", "Time added by the reward / time of the step", r"reward/step_share$", "share"),
    _Rule("Time", "Embedding cache", "Counters of the segmenter's service", r"(?P<label>.*\bcache.*)$"),
    _Rule(
        "Time",
        "Seconds of a step",
        "The whole step, and its largest parts",
        r"timing_s/(?P<label>step|gen|update_actor)$",
    ),
)


def panels_of(curves: Sequence[Mapping[str, Curve]]) -> list[Panel]:
    """The panels of the curves of one or more runs, in the order of the page.

    Args:
        curves: per run, the curves by tag.
    """
    tags = sorted({tag for run in curves for tag in run})
    panels = []
    for rule in _RULES:
        drawn: dict[str, list[Series]] = {}
        zero: dict[str, list[str]] = {}
        for tag in tags:
            if match := re.match(rule.pattern, tag):
                names = match.groupdict()
                panel, label = names.get("panel", ""), names.get("label") or rule.label
                drawn.setdefault(panel, [])
                if not rule.only_nonzero or any(any(run.get(tag, {}).values()) for run in curves):
                    drawn[panel].append(Series(tag, label))
                else:
                    zero.setdefault(panel, []).append(label)
        for panel, series in drawn.items():
            never = f". Never: {', '.join(zero[panel])}" if zero.get(panel) else ""
            panels.append(Panel(rule.group, rule.title.format(panel), rule.note + never, tuple(series)))
    return panels
