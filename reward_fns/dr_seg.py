"""Dr. Seg's distribution-ranked reward: continuous metrics as quantiles of what was seen lately (arXiv 2603.00152).

    R = think (1) + format (2) + look (1) + iou (1) + count (1) + point (1) + non_repetition (1)

VisionReasoner's answers and matching; then the mean IoU of matched boxes, the ratio of the numbers of objects and the
mean point score are each replaced by the share of a first-in-first-out window that is not above them. The window is the
only state in this folder: `Window`, one per process and configuration, kept in the file `window.path` so that a run
continues where it stopped. In a recipe (one reward worker, since there is one window; no validation, whose answers would
enter it):

    samr1.reward.window: {path: runs/dr_seg/window.json, step: 128}
    reward.custom_reward_function:
      path: pkg://reward_fns.dr_seg
      name: compute_score
      reward_kwargs: {segmenter: "${samr1.segmenter}", reward: "${samr1.reward}"}

Departs from the published code in three places. A metric of 0 ranks 0, where the code gives it the share of zeros in
the window, so that no answer earns a rank without merit. Among matchings that earn the same, the one with the larger
IoUs and point scores counts, where the code lets the order of the objects decide. And repetition is VisionReasoner's
rule, without the code's list of placeholder phrases.
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
from reward_fns.boxes import Pairs, best_matching, format_of, pairs_of
from reward_fns.terms import non_repetition, think
from samr1_verl.config import ConfigError, WindowConfig
from samr1_verl.rows.files import complete
from samr1_verl.scoring.rollout import read_rollout

RANKED = ("iou", "count", "point")
WEIGHTS = dict.fromkeys(("think", "format", "look", *RANKED, "non_repetition"), 1.0)  # the code sums them
ARGUMENTS = ArgumentReader(WEIGHTS, reads=["window"])


@dataclass(frozen=True)
class Constants:
    """The reward's constants, from its code; the matching's thresholds are in reward_fns/boxes.py."""

    window: int = 2048  # rows kept, first in, first out
    initial: int = 128  # rows of zeros that it starts with
    digits: int = 1  # ranks are rounded to as many decimals
    near: float = 30.0  # pixels up to which a point scores 1
    far: float = 200.0  # pixels from which it scores 0, linear between


CONSTANTS = Constants()


class Window:
    """The window of metrics, and the rows that wait for the next step.

    Ranks are taken against the rows of earlier steps only: a row waits until `step` of them are there, and then they
    enter together. So the rollouts of one step are ranked alike, in whatever order they finish.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._rows: deque[tuple[float, ...]] = deque([(0.0,) * len(RANKED)] * CONSTANTS.initial, CONSTANTS.window)
        self._waiting: list[tuple[float, ...]] = []
        self._sort()

    def rank(self, row: Sequence[float]) -> list[float]:
        """For each metric of a row the share of the window not above it, in [0, 1], rounded; 0 for a metric of 0."""
        shares = (bisect_right(column, value) / len(column) for column, value in zip(self._columns, row, strict=True))
        return [round(share, CONSTANTS.digits) if value > 0 else 0.0 for share, value in zip(shares, row, strict=True)]

    def add(self, row: Sequence[float]) -> bool:
        """Let a row wait; True when it completed a step and the window moved on."""
        self._waiting.append(tuple(row))
        if len(self._waiting) < self.step:
            return False
        self._rows.extend(self._waiting)
        self._waiting = []
        self._sort()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on: plain lists, JSON-safe."""
        return {"rows": [list(row) for row in self._rows], "waiting": [list(row) for row in self._waiting]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises ValueError where it is none."""
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
        """Write the state; the file is complete or the one before."""
        with complete(path) as partial:
            partial.write_text(json.dumps(self.state_dict()))

    def _sort(self) -> None:
        self._columns = [sorted(column) for column in zip(*self._rows, strict=True)]


_windows: dict[WindowConfig, Window] = {}
_lock = threading.Lock()


def get_window(config: WindowConfig) -> Window:
    """The window of a configuration, made or read from its file on first use in this process. Raises ConfigError."""
    with _lock:
        if config not in _windows:
            window = Window(config.step)
            if config.path is not None and Path(config.path).exists():
                try:
                    window.load_state_dict(json.loads(Path(config.path).read_text()))
                except (OSError, ValueError) as error:
                    raise ConfigError(
                        f"samr1.reward.window.path: {config.path}: {error}. Remove the file to start with a new window"
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
    """Score one response, and let its metrics enter the window.

    Args:
        data_source, solution_str, ground_truth, extra_info: as in `reward_fns.vision_reasoner.compute_score`.
        reward: the recipe's `samr1.reward`: `window` with `step`, the rollouts of one training step, and `path`, the
            file that keeps the window, or None; `terms` and `caps`.
        segmenter: as in `reward_fns.vision_reasoner.compute_score`.
        verls_own: `reward_router_address` and `reward_model_tokenizer`, which verl adds beside a reward model.

    Returns:
        `score`; the components and every further term before their weights; `metric/iou`, `metric/count` and
        `metric/point` before ranking; `acc`, the same as `metric/iou`; the flags `answer/<reason>`.

    Raises:
        ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.vision_reasoner.compute_score`.
        OSError: the window's file cannot be written.
    """
    arguments = ARGUMENTS(reward, segmenter, verls_own)
    config = arguments.config.window
    if config is None:
        raise ConfigError(
            "samr1.reward.window: missing, expected the file of the window and the responses per step, such as "
            "{path: runs/dr_seg/window.json, step: 128}"
        )
    window = get_window(config)
    rollout = read_rollout(data_source, solution_str, ground_truth, extra_info, arguments.caps)
    metrics = metrics_of(pairs_of(rollout))
    components = {
        "think": think(rollout),
        "format": format_of(rollout.text, 1.0, 1.0),
        "look": looks(rollout.text),
        **dict(zip(RANKED, window.rank(metrics), strict=True)),
        "non_repetition": non_repetition(rollout),
    }
    scores = await arguments.score(rollout, components, segmenter, acc=metrics[0])
    with _lock:
        if window.add(metrics) and config.path is not None:
            window.save(Path(config.path))
    return {**scores, **{f"metric/{name}": value for name, value in zip(RANKED, metrics, strict=True)}}


def metrics_of(pairs: Pairs | None) -> tuple[float, float, float]:
    """Mean IoU and mean point score over matched objects, and between them min(M, N) / max(M, N); each in [0, 1]."""
    if pairs is None:
        return 0.0, 0.0, 0.0
    near, far = CONSTANTS.near, CONSTANTS.far
    points = np.clip((far - pairs.distance) / (far - near), 0.0, 1.0)
    # A thousandth of what at most 2 x 120 can sum up to stays below the steps of 1 between matchings.
    at = best_matching(pairs.box_iou + pairs.box_l1 + pairs.point + 1e-3 * (pairs.iou + points))
    return float(pairs.iou[at].mean()), min(pairs.iou.shape) / pairs.larger, float(points[at].mean())


def looks(text: str) -> float:
    """1 where the thinking or the answer holds `<look>…</look>` that is not blank: the look-to-confirm format."""
    for tag in ("think", "answer"):
        _, _, rest = text.partition(f"<{tag}>")
        body, closed, _ = rest.partition(f"</{tag}>")
        _, _, inner = body.partition("<look>")
        look, ended, _ = inner.partition("</look>")
        if closed and ended and look.strip():
            return 1.0
    return 0.0
