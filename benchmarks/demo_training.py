"""Training runs of a tiny recipe by verl's own command, with progress and peak memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import typer
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from samr1_verl.rehearsal.process import kill

RECIPE = "samr1_tiny"
STEP = re.compile(r"\bstep:(\d+) - .*?\breward/score:([-\d.e]+)")
SAMPLE_S = 5.0


def training_command(overrides: Sequence[str], recipe: str = RECIPE) -> list[str]:
    """verl's own command for a recipe."""
    return [sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={recipe}", *overrides]


class MemorySampler:
    """Peak of the memory of this process and all below it, in GB (1e9 bytes).

    Resident sets are summed with every shared page divided among its users (Linux' PSS): a plain sum counts the
    libraries and Ray's object store once per process.
    """

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        own = psutil.Process()
        while True:
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak_gb = max(self.peak_gb, total / 1e9)
            if self._stop.wait(SAMPLE_S):
                return


class Training:
    """The training of one run folder; verl resumes from its last checkpoint where there is one.

    Args:
        overrides: of the recipe, as on the command line.
        config: the recipe with them, composed.
        run: its `trainer.default_local_dir`.
        console: shows progress.
        recipe: its name.
    """

    def __init__(
        self, overrides: Sequence[str], config: DictConfig, run: Path, console: Console, recipe: str = RECIPE
    ) -> None:
        self.command = training_command(overrides, recipe)
        self.run, self.console = run, console
        self.log = run / "train.log"
        self.steps = self._steps(config)

    @staticmethod
    def _steps(config: DictConfig) -> int:
        if config.trainer.total_training_steps:
            return int(config.trainer.total_training_steps)
        import pyarrow.parquet as pq

        rows = pq.read_metadata(config.data.train_files).num_rows
        return rows // config.data.train_batch_size * config.trainer.total_epochs

    def last_step(self) -> int:
        """Step of the last checkpoint, 0 where there is none."""
        latest = self.run / "latest_checkpointed_iteration.txt"
        return int(latest.read_text()) if latest.exists() else 0

    def policy_folder(self) -> Path:
        """The last checkpoint's policy in the hub's format."""
        return self.run / f"global_step_{self.last_step()}" / "actor" / "huggingface"

    def finish(self, until: Callable[[str], bool] = lambda line: False) -> None:
        """Train up to the last step, with a progress bar; a finished run is left as it is.

        Args:
            until: whether the training ends after a line of its output.
        """
        start = self.last_step()
        if start >= self.steps:
            return
        shown = " ".join(["python", *self.command[1:]])
        self.console.print(f"$ {shown}" + (f"   # from step {start}" if start else ""))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with self.log.open("a") as log, Progress(*columns, console=self.console) as progress:
            task = progress.add_task("starting verl and Ray", total=self.steps, completed=start)
            process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
            )
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                if match := STEP.search(line):
                    step, reward = int(match[1]), float(match[2])
                    progress.update(task, completed=step, description=f"training, reward {reward:.2f}")
                if until(line):
                    kill(process)
                    return
        if process.wait() or self.last_step() < self.steps:
            self.console.print("".join(self.log.read_text().splitlines(keepends=True)[-30:]), markup=False)
            self.console.print(f"Training ended early (exit status {process.returncode}); the whole log is {self.log}.")
            self.console.print("The same command resumes from the last checkpoint; --restart begins anew.")
            raise typer.Exit(1)


def stored(file: Path) -> dict[str, Any]:
    """A JSON object from a file, empty where there is none."""
    return json.loads(file.read_text()) if file.exists() else {}
