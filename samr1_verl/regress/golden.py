"""The golden file of `samr1 regress`: a recorded run, its repetitions, and where it was recorded."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats

from samr1_verl.regress.training import RegressError, Run
from samr1_verl.rows.files import complete

PACKAGES = ("verl", "torch", "transformers", "numpy", "onnxruntime", "vllm", "ray", "tensordict", "Pillow")
# Comparison within tolerances:
FALSE_ALARM = 0.01  # chance that an equal training is called different, were its values normally distributed
FLOOR = 1e-4  # relative: what other rounding may change in a metric whose repetitions are equal
# Other rounding may change one token, and with it one answer of a step's few.
ANSWERS = ("reward/", "critic/", "val-", "response", "global_seqlen/", "actor/pg_clipfrac")
ANSWERS_FLOOR = 0.05
EXTREMES = ("/min", "/max", "_min", "_max", "/minmax_diff")  # values of one answer or token, which are not compared


class Place(BaseModel):
    """What decides whether the same run gives the same bits."""

    model_config = ConfigDict(frozen=True)

    processor: str
    instructions: str  # the widest that torch uses
    threads: int  # processors of this process, from which libraries choose their threads
    accelerator: str
    python: str
    packages: dict[str, str]

    @classmethod
    def here(cls) -> Place:
        accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        return cls(
            processor=_processor(),
            instructions=torch.backends.cpu.get_cpu_capability(),
            threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            accelerator=accelerator,
            python=platform.python_version(),
            packages=dict(_installed()),
        )

    def differences(self, other: Place) -> list[str]:
        """What differs, one entry each: `torch 2.11.0, now 2.12.0`."""
        mine, theirs = ({**place.model_dump(exclude={"packages"}), **place.packages} for place in (self, other))
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return [f"{name} {mine.get(name, 'missing')}, now {theirs.get(name, 'missing')}" for name in names]


class Golden(BaseModel):
    """A recorded run."""

    model_config = ConfigDict(extra="forbid")

    version: int = 1
    recipe: str
    overrides: list[str]
    steps: int
    place: Place
    run: Run
    repetitions: list[Run]  # with other random numbers: `rollout.seed` is raised by 1, 2, …

    def save(self, path: Path) -> None:
        with complete(path) as partial:
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Raises RegressError: the file is missing, or no golden file."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        except (OSError, ValueError) as error:
            reason = str(error)
        raise RegressError(
            "no_golden_file",
            f"{path}",
            f"not a golden file ({reason}). Record one with samr1 regress record RECIPE --out {path}",
        )


class Difference(NamedTuple):
    """The first value of a run that is not as recorded."""

    step: int
    name: str
    recorded: str
    found: str

    def __str__(self) -> str:
        where = "after the last step" if self.step < 0 else f"step {self.step}"
        return f"{where}: {self.name} was {self.recorded}, is {self.found}"


def first_difference(golden: Golden, run: Run, exact: bool) -> Difference | None:
    """The first step and, in it, the first metric by name, that differ from the recorded run.

    Args:
        golden: the recorded run.
        run: the run of now.
        exact: every metric is equal to the bit, samples and weights have the same digests. Otherwise each metric lies
            in its `interval`.
    """
    for step in sorted(golden.run.metrics | run.metrics):
        recorded, found = golden.run.metrics.get(step, {}), run.metrics.get(step, {})
        for name in sorted(recorded | found):
            if not _agree(golden, step, name, found.get(name), exact):
                expected = repr(recorded.get(name)) if exact else _interval_text(golden, step, name)
                return Difference(step, name, expected, repr(found.get(name)))
        if exact and golden.run.samples.get(step) != run.samples.get(step):
            return Difference(step, "samples", str(golden.run.samples.get(step)), str(run.samples.get(step)))
    if exact and golden.run.weights != run.weights:
        return Difference(-1, "weights", golden.run.weights, run.weights)
    return None


def _agree(golden: Golden, step: int, name: str, found: float | None, exact: bool) -> bool:
    recorded = golden.run.metrics.get(step, {}).get(name)
    both_nan = recorded is not None and recorded != recorded and found is not None and found != found
    if exact or both_nan:
        return recorded == found or both_nan
    if recorded is None or name.endswith(EXTREMES):  # another version may log more
        return True
    if found is None:
        return False
    low, high = interval(golden, step, name)
    return low <= found <= high


def interval(golden: Golden, step: int, name: str) -> tuple[float, float]:
    """The values of a metric that count as equal across machines and versions.

    A prediction interval by Student's t around the mean of all recorded runs. Their variance is pooled over the steps,
    because a step has few runs. The level is that of FALSE_ALARM for all values of the comparison together, by
    Bonferroni.
    """
    runs = (golden.run, *golden.repetitions)
    by_step = {
        at: [run.metrics[at][name] for run in runs if name in run.metrics.get(at, {})] for at in golden.run.metrics
    }
    squares = sum(statistics.pvariance(values) * len(values) for values in by_step.values() if values)
    freedom = sum(max(len(values) - 1, 0) for values in by_step.values())
    values = by_step[step]
    mean, compared = statistics.fmean(values), sum(map(len, golden.run.metrics.values()))
    margin = 0.0
    if freedom:
        factor = float(stats.t.isf(FALSE_ALARM / (2 * compared), freedom))
        margin = factor * math.sqrt(squares / freedom * (1 + 1 / len(values)))
    floor = ANSWERS_FLOOR if name.startswith(ANSWERS) else FLOOR
    margin = max(margin, floor * max(*map(abs, values), 1.0))
    return mean - margin, mean + margin


def _interval_text(golden: Golden, step: int, name: str) -> str:
    if name not in golden.run.metrics.get(step, {}):
        return "None"
    low, high = interval(golden, step, name)
    return f"{golden.run.metrics[step][name]!r} (from {low:.6g} to {high:.6g})"


def _processor() -> str:
    """Its name; Python's own function does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _installed() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
