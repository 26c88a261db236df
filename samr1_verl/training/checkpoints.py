"""Checkpoints from which a run that was killed at any moment can be resumed, with nothing lost.

verl 0.9.1 names a checkpoint in its file latest_checkpointed_iteration.txt, from which a run resumes. It does so before
the step is validated and its metrics are logged, which a resumed run does not do again; it writes that file in place;
and it removes the old checkpoint before the new one is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from samr1_verl.rows.files import complete

TRACKER = "latest_checkpointed_iteration.txt"  # verl's


def name(folder: Path, step: int) -> None:
    """Name the checkpoint of a step as the one to resume from. The file is replaced as a whole."""
    with complete(folder / TRACKER) as partial:
        partial.write_text(str(step), encoding="utf-8")


def remove(folder: Path, steps: Iterable[int]) -> None:
    """Remove the weights of old checkpoints, as verl does: their data.pt stays."""
    for step in steps:
        shutil.rmtree(folder / f"global_step_{step}" / "actor", ignore_errors=True)
