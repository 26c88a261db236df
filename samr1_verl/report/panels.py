"""Which of a run's curves are drawn, and which of them together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samr1_verl.report.run import Curve


@dataclass(frozen=True)
class Series:
    """A tag and its name in the legend."""

    tag: str
    label: str


@dataclass(frozen=True)
class Panel:
    """One chart. `note` says what the figure is, in the reader's words."""

    group: str
    title: str
    note: str
    series: tuple[Series, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Rule:
    """A panel of all tags that match `pattern`. Its group `label`, if it has one, is the legend's name; a group `panel`
    makes a panel for each of its values, and `{}` in the title stands for it."""

    group: str
    title: str
    note: str
    pattern: str
    label: str = ""
    only_nonzero: bool = False


_NO_TERM = r"(?:score|acc|intersection|union|ignored|ignored_predicted|step_share|exposed_seconds)$"
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
    _Rule("Time", "What the reward adds", "Seconds of a step beyond generation", r"reward/exposed_seconds$", "seconds"),
    _Rule("Time", "Share of a step", "What the reward adds, of the whole step", r"reward/step_share$", "share"),
    _Rule("Time", "Embedding cache", "As the segmenter's service counts", r"(?P<label>.*\bcache.*)$"),
    _Rule(
        "Time", "Seconds of a step", "All of it, and its largest parts", r"timing_s/(?P<label>step|gen|update_actor)$"
    ),
)


def panels_of(curves: Sequence[Mapping[str, Curve]]) -> list[Panel]:
    """The panels that the curves of one or more runs fill, in the order of the page."""
    tags = sorted({tag for one in curves for tag in one})
    panels = []
    for rule in _RULES:
        found: dict[str, list[Series]] = {}
        zero: dict[str, list[str]] = {}
        for tag in tags:
            if match := re.match(rule.pattern, tag):
                names = match.groupdict()
                panel, label = names.get("panel", ""), names.get("label") or rule.label
                drawn = not rule.only_nonzero or any(any(one.get(tag, {}).values()) for one in curves)
                found.setdefault(panel, [])
                if drawn:
                    found[panel].append(Series(tag, label))
                else:
                    zero.setdefault(panel, []).append(label)
        for panel, series in found.items():
            never = f". Never: {', '.join(zero[panel])}" if zero.get(panel) else ""
            panels.append(Panel(rule.group, rule.title.format(panel), rule.note + never, tuple(series)))
    return panels
