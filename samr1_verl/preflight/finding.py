"""The result of a check of `samr1 doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Finding:
    """The result for one subject. `problems` is empty where there is none; each problem says what to do.

    `lines` are shown below the subject, whether there is a problem or not.
    """

    subject: str
    detail: str
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
