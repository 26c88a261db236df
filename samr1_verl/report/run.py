"""Reading of a run's folder: the logged curves and the samples of its validations."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from samr1_verl import Samr1Error
from samr1_verl.scoring.sample import FOLDER, Sample, read_samples

EVENTS = "tensorboard"  # folder with the log, in a run's folder

Curve = dict[int, float]  # step → value, in the order of the steps


class RunError(Samr1Error, ValueError):
    """A folder from which no report can be made; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A training run. It has curves, samples or both."""

    folder: Path
    curves: dict[str, Curve]  # by tag
    samples: dict[int, list[Sample]]  # by step, in the order of the steps

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.resolve().name


def read_run(folder: Path) -> Run:
    """Read the folder that training wrote (`trainer.default_local_dir`).

    Raises:
        RunError: the folder does not exist, it has neither log nor samples, or a file of samples is not named after its
            step.
        DataError: a line of a file of samples is invalid.
    """
    if not folder.is_dir():
        raise RunError(
            "no_such_folder", f"{folder}", "no such folder. Name the folder of a run: its trainer.default_local_dir"
        )
    run = Run(folder, read_curves(folder), _read_steps(folder / FOLDER))
    if not run.curves and not run.samples:
        raise RunError(
            "not_a_run",
            f"{folder}",
            f"not a run: it has neither a figure in {EVENTS}/ nor a file in {FOLDER}/. Name the folder of a run (its "
            "trainer.default_local_dir) that has finished a step and logs to tensorboard (trainer.logger)",
        )
    return run


def read_curves(folder: Path) -> dict[str, Curve]:
    """All scalars that a run logged to tensorboard, by tag; empty: no log.

    Where a run was resumed from a checkpoint, the log may have several values of a step, of which the last one is used.

    Raises:
        RunError: tensorboard is not installed.
    """
    if not (folder / EVENTS).is_dir():
        return {}
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "not_installed",
            "tensorboard",
            "not installed, and needed to read a run's log. Type: pip install 'samr1-verl[report]'",
        )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / EVENTS), size_guidance={"scalars": 0})  # 0: all scalars
    events.Reload()
    return {
        tag: dict(sorted({event.step: event.value for event in events.Scalars(tag)}.items()))
        for tag in sorted(events.Tags()["scalars"])
    }


def _read_steps(folder: Path) -> dict[int, list[Sample]]:
    files = {}
    for path in folder.glob("*.jsonl"):
        if not path.stem.isdecimal():
            raise RunError(
                "no_step_name", f"{path}", "expected a file named after its step, as 16.jsonl. Move it elsewhere"
            )
        files[int(path.stem)] = path
    return {step: list(read_samples(path)) for step, path in sorted(files.items())}
