"""The table trainer x version x reward x answers x differences, from the results that the checks stored.

python -m tests.trainers.table FOLDER    print it; exit status 1 where a score differs or a trainer is missing
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reward_fns import dr_seg
from tests.trainers.corpus import REWARDS, Batch, arguments, batches, compute_score, segmenter

TRAINERS = ("verl", "route", "trl", "verifiers", "swift")
RESULTS = "results.jsonl"


def check_scores(
    folder: Path,
    trainer: str,
    version: str,
    scores_of: Callable[[Any, dict[str, Any], Batch], Sequence[float]],
    as_stored: Callable[[float], float] = float,
    rewards: Sequence[str] = tuple(REWARDS),
) -> None:
    """Score the corpus through a trainer, store the number of differences, and fail where there is one.

    Args:
        folder: of the corpus.
        scores_of: the scores of a batch through the trainer; it receives compute_score and its keyword arguments.
        as_stored: a score as the trainer stores it, for trainers that round to float32.
        rewards: those that the trainer can have.
    """
    differences = {}
    for reward in rewards:
        dr_seg._windows.clear()  # of another trainer's check in this process
        engine = segmenter()
        pairs = [
            (found, as_stored(expected["score"]))
            for batch in batches(folder, reward)
            for found, expected in zip(
                scores_of(compute_score(reward), arguments(reward, engine), batch), batch.scores, strict=True
            )
        ]
        engine.close()
        differences[reward] = sum(found != expected for found, expected in pairs)
        line = {"trainer": trainer, "version": version, "reward": reward, "answers": len(pairs)}
        with (folder / RESULTS).open("a") as results:
            results.write(json.dumps({**line, "differences": differences[reward]}) + "\n")
    assert not any(differences.values()), differences


def main(folder: Path) -> int:
    """Print the table. Returns the exit status."""
    results = [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]
    print("| trainer | version | reward | answers | differences |\n|---|---|---|---|---|")
    for line in sorted(
        results, key=lambda line: (TRAINERS.index(line["trainer"]), list(REWARDS).index(line["reward"]))
    ):
        print("| {trainer} | {version} | {reward} | {answers:,} | {differences} |".format_map(line))
    missing = set(TRAINERS) - {line["trainer"] for line in results}
    print(f"not run: {', '.join(sorted(missing)) or 'none'}")
    return int(bool(missing) or any(line["differences"] for line in results))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
