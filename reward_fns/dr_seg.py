"""Dr. Seg's distribution-ranked reward: continuous metrics become quantiles of recent metrics (arXiv 2603.00152).

    R = think (1) + format (2) + look (1) + iou (1) + count (1) + point (1) + non_repetition (1)

Answers and matching are VisionReasoner's. Three metrics are ranked: the mean IoU of matched boxes, the ratio of the
numbers of objects, and the mean point score. The rank of a metric is the share of a first-in-first-out window that is
not above it. `Window` is the only state in this folder, with one object per process and configuration; the file
`window.path` keeps it for a resumed run. A recipe needs a single reward worker, since there is one window, and no
validation, whose answers would enter the window:

    samr1.reward.window: {path: runs/dr_seg/window.json, step: 128}
    reward.custom_reward_function:
      path: pkg://reward_fns.dr_seg
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}

Three differences to the published code, each so that a wrong answer gets no reward. A metric of 0 has rank 0; in the
code its rank is the share of zeros in the window. A metric that is no number, from a NaN in the answer, is 0; in the
code its rank is 1. Among matchings with equal sums, the matching with the larger IoUs and point scores is used; in the
code the order of the objects decides.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward_fns.arguments import ArgumentReader
from reward_fns.boxes import format_of
from reward_fns.dr_seg_terms import looks, metrics_of, non_repetition
from reward_fns.terms import no_target
from samr1_verl.config import ConfigError, WindowConfig
from samr1_verl.rows.files import complete
from samr1_verl.scoring.rollout import read_rollout

RANKED = ("iou", "count", "point")
WEIGHTS = dict.fromkeys(("think", "format", "look", *RANKED, "non_repetition"), 1.0)  # the code sums them
ARGUMENTS = ArgumentReader(WEIGHTS, reads=["window", "strict"])


@dataclass(frozen=True)
class Constants:
    """The window's constants, from the reward's code; those of the terms are in reward_fns/dr_seg_terms.py."""

    window: int = 2048  # number of rows in the window
    initial: int = 128  # number of rows of zeros in a new window
    digits: int = 1  # number of decimals of a rank


CONSTANTS = Constants()


class Window:
    """The window of metrics, and the rows that will enter it after the running step.

    A rank compares with rows of earlier steps only: `step` rows are collected first, and then enter together. So ranks
    do not depend on the order in which the rollouts of a step finish.

    Args:
        step: number of rollouts per training step.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._rows: deque[tuple[float, ...]] = deque([(0.0,) * len(RANKED)] * CONSTANTS.initial, CONSTANTS.window)
        self._waiting: list[tuple[float, ...]] = []
        self._sort()

    def rank(self, row: Sequence[float]) -> list[float]:
        """The rank of each metric of a row: the share of the window that is not above it, in [0, 1], rounded.

        The rank of a metric of 0 is 0.
        """
        shares = (bisect_right(column, value) / len(column) for column, value in zip(self._columns, row, strict=True))
        return [round(share, CONSTANTS.digits) if value > 0 else 0.0 for share, value in zip(shares, row, strict=True)]

    def add(self, row: Sequence[float]) -> bool:
        """Collect a row. Returns True where it completed a step, whose rows are now in the window."""
        self._waiting.append(tuple(row))
        if len(self._waiting) < self.step:
            return False
        self._rows.extend(self._waiting)
        self._waiting = []
        self._sort()
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`: lists of numbers, which JSON can hold."""
        return {"rows": [list(row) for row in self._rows], "waiting": [list(row) for row in self._waiting]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`. Raises ValueError for anything else."""
        try:
            rows, waiting = (
                np.array(state[key], dtype=np.float64).reshape(-1, len(RANKED)) for key in ("rows", "waiting")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no window ({error}), expected rows and waiting of {len(RANKED)} numbers") from error
        if not len(rows) or not np.isfinite(rows).all() or not np.isfinite(waiting).all():
            raise ValueError("no window: expected finite numbers and at least one row")
        self._rows = deque(map(tuple, rows.tolist()), CONSTANTS.window)
        self._waiting = list(map(tuple, waiting.tolist()))
        self._sort()

    def save(self, path: Path) -> None:
        """Write the state to a file; the old file is replaced when the new one is complete."""
        with complete(path) as partial:
            partial.write_text(json.dumps(self.state_dict()))

    def _sort(self) -> None:
        self._columns = [sorted(column) for column in zip(*self._rows, strict=True)]


_windows: dict[WindowConfig, Window] = {}
_lock = threading.Lock()


def get_window(config: WindowConfig) -> Window:
    """The window of a configuration. The first call in a process makes it, or reads it from its file.

    Raises:
        ConfigError: the file is unreadable.
    """
    with _lock:
        if config not in _windows:
            window = Window(config.step)
            if config.path is not None and Path(config.path).exists():
                try:
                    window.load_state_dict(json.loads(Path(config.path).read_text()))
                except (OSError, ValueError) as error:
                    raise ConfigError(
                        "unreadable_window",
                        f"samr1.reward.window.path: {config.path}",
                        f"{error}. Remove the file to start with a new window",
                    ) from error
            _windows[config] = window
        return _windows[config]


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    reward: Mapping[str, Any],
    segmenter: Any = None,
    **verls_own: Any,
) -> dict[str, float]:
    """Score one response, and add its metrics to the window.

    Args:
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.vision_reasoner.compute_score`.
        reward: the recipe's `samr1.reward`: `window`, `terms`, `caps` and `strict`. `window.step` is the number of
            rollouts per training step, `window.path` the file that keeps the window; None: memory only.
        segmenter: as in `reward_fns.vision_reasoner.compute_score`.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds where it has a reward model.

    Returns:
        All floats: `score`; the components and every further term before their weights; `metric/iou`, `metric/count`
        and `metric/point`, the metrics before ranking; `acc`, equal to `metric/iou`, or 1 for `[]` on a row without an
        object; the flags `answer/<reason>`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.vision_reasoner.compute_score`.
        OSError: the window's file cannot be written.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    config = arguments.config.window
    if config is None:
        raise ConfigError(
            "no_window",
            "samr1.reward.window",
            "missing, expected the file of the window and the number of responses per step, such as {path: "
            "runs/dr_seg/window.json, step: 128}",
        )
    window = get_window(config)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    graded = arguments.graded(rollout)
    right = no_target(rollout)
    metrics = metrics_of(graded, count_unread=not arguments.config.strict or bool(right))
    components = {
        "think": arguments.think(rollout),
        "format": format_of(graded.text, 1.0, 1.0),
        "look": looks(rollout.text),
        **dict(zip(RANKED, window.rank(metrics), strict=True)),
        "non_repetition": non_repetition(rollout.text),
    }
    scores = await arguments.score(rollout, components, segmenter, acc=metrics[0] or right)
    with _lock:
        if window.add(metrics) and config.path is not None:
            window.save(Path(config.path))
    return {**scores, **{f"metric/{name}": value for name, value in zip(RANKED, metrics, strict=True)}}
