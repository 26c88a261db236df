"""Lost rollouts and dead workers: both end a run with a message, where verl trains on or waits for ever.

A rollout is lost when an exception ends it: of the segmenter, of the reward, of the rollout server. verl then marks the
group as failed and goes on with the rest of it. A worker that dies with its rollouts leaves them "running" for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from samr1_verl import Samr1Error

_log = logging.getLogger(__name__)
FAULT = "fault"  # key of a prompt's tag in TransferQueue: the message of the exception that ended one of its rollouts
PING_S = 10.0  # seconds between two signs of life of every worker


class LostRolloutsError(Samr1Error, RuntimeError):
    """Rollouts are lost, or will never finish."""


class Guard:
    """Counts the lost rollouts of each batch, and raises where the run must end.

    Args:
        rollouts_per_prompt: by TransferQueue's partition, `train` and `val`.
        max_lost_share: `samr1.max_lost_share`, in [0, 1].
        progress_timeout_s: `samr1.progress_timeout_s`.
    """

    def __init__(self, rollouts_per_prompt: Mapping[str, int], max_lost_share: float, progress_timeout_s: float):
        self._per_prompt, self._max_share, self._timeout = rollouts_per_prompt, max_lost_share, progress_timeout_s
        self._workers: dict[str, Any] = {}  # Ray actors by the name for messages
        self._pings: dict[Any, str] = {}  # running calls
        self._faults: list[str] = []
        self.start()

    def add_workers(self, kind: str, actors: Sequence[Any]) -> None:
        """Watch Ray actors, which are called `kind` and a number in messages."""
        self._workers |= {f"{kind} {number}": actor for number, actor in enumerate(actors)}

    def start(self) -> None:
        """Begin a batch of rollouts."""
        self._finished, self._moved, self._pinged = -1, time.monotonic(), -PING_S

    def poll(self, finished: int) -> None:
        """Look for dead workers, and for a batch that no longer moves.

        Args:
            finished: a number that changes whenever a rollout finishes.

        Raises:
            LostRolloutsError: a worker has died, or nothing finished for `progress_timeout_s` seconds.
        """
        now = time.monotonic()
        if finished != self._finished:
            self._finished, self._moved = finished, now
        elif now - self._moved > self._timeout:
            raise LostRolloutsError(
                "no_progress",
                "samr1.progress_timeout_s",
                f"found {self._timeout:g}, and no rollout finished for {now - self._moved:.0f} s. The log of the "
                "rollout server or of the segmenter's service names the cause. Where one answer takes longer, raise it",
            )
        if now - self._pinged >= PING_S:
            self._pinged = now
            self._ping()

    def _ping(self) -> None:
        """Ask every worker for a sign of life, and wait at most a second: a dead one answers at once."""
        waiting = set(self._pings.values())
        for name, actor in self._workers.items():
            if name not in waiting:
                self._pings[actor.__ray_call__.remote(_alive)] = name
        done, _ = ray.wait(list(self._pings), num_returns=len(self._pings), timeout=1.0) if self._pings else ([], [])
        for call in done:
            name = self._pings.pop(call)
            try:
                ray.get(call)
            except ActorDiedError as error:
                raise LostRolloutsError(
                    "worker_died",
                    f"the {name}",
                    f"died, and its rollouts with it: {str(error).strip()}. Where Ray ended it for memory, lower "
                    "data.train_batch_size or the number of workers. The run resumes from its last checkpoint",
                ) from error

    def read_faults(self, tags: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep the messages of lost rollouts from the tags of a partition, until `check`."""
        self._faults = [tag[FAULT] for tag in tags.values() if FAULT in tag]

    def check(self, partition: str, step: int, prompts: int, rollouts: int) -> dict[str, float]:
        """The metric `training/lost_rollouts` or `validation/lost_rollouts` of a batch.

        Args:
            partition: `train` or `val`.
            step: the training step.
            prompts: prompts of the batch.
            rollouts: finished rollouts of the batch.

        Raises:
            LostRolloutsError: more than the allowed share is missing.
        """
        expected = prompts * self._per_prompt[partition]
        lost, faults = expected - rollouts, self._faults
        phase = "training" if partition == "train" else "validation"
        if lost > self._max_share * expected:
            fault = faults[0] if faults else "unknown; the log of the agent loop worker has it"
            raise LostRolloutsError(
                "rollouts_lost",
                f"{phase} at step {step}",
                f"{lost} of {expected} rollouts were lost, samr1.max_lost_share is {self._max_share:g}. The first "
                f"fault: {fault}. A lost rollout is never scored. Mend the fault and start the run again, it resumes "
                "from its last checkpoint; or raise samr1.max_lost_share",
            )
        if lost:
            _log.warning("%s at step %d: %d of %d rollouts were lost: %s", phase, step, lost, expected, faults[:1])
        return {f"{phase}/lost_rollouts": float(lost)}


def _alive(_: Any) -> None:
    """Return: the sign of life."""
