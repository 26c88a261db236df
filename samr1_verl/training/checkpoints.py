"""Checkpoints of which one is whole at every moment, so that a run that is killed at any moment can be resumed.

verl 0.9.1 removes the old checkpoint before the new one is complete and named in its file
latest_checkpointed_iteration.txt, and it writes that file in place. A run that is killed in between cannot be resumed.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from samr1_verl.rows.files import complete

TRACKER = "latest_checkpointed_iteration.txt"  # verl's
LAST_WRITTEN = "data.pt"  # verl's state of the data loader, which it writes after the weights


def name_latest(folder: Path) -> int | None:
    """Mend verl's tracker where a kill left it empty or damaged: it then names the newest whole checkpoint.

    Returns:
        The step that it names; None: there is no tracker, and so no checkpoint that a run could resume from.
    """
    tracker = folder / TRACKER
    if not tracker.exists():
        return None
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal():
        text = str(max(_whole(folder), default=0))
        with complete(tracker) as partial:
            partial.write_text(text, encoding="utf-8")
    return int(text)


def remove(folder: Path, steps: Iterable[int]) -> None:
    """Remove the weights of old checkpoints, as verl does: their data.pt stays."""
    for step in steps:
        shutil.rmtree(folder / f"global_step_{step}" / "actor", ignore_errors=True)


def _whole(folder: Path) -> Iterator[int]:
    for checkpoint in folder.glob("global_step_*"):
        step = checkpoint.name.removeprefix("global_step_")
        if step.isdecimal() and (checkpoint / "actor").is_dir() and zipfile.is_zipfile(checkpoint / LAST_WRITTEN):
            yield int(step)
