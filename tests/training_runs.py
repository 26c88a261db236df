"""verl's own command with a tiny recipe of ours, for tests that train, and what it logged."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samr1_verl.rehearsal.process import without_a_cluster

TIMEOUT_S = 900


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for one Ray cluster's sockets, whose paths must stay short."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class World:
    """Scenes, the small SAM, and folders for the run and for Ray's sockets."""

    scenes: Path
    sam: Path
    run: Path
    ray: Path

    def command(self, recipe: str, policy: Path, *overrides: str) -> list[str]:
        """`python -m verl.trainer.main_ppo +recipe=…`."""
        return [
            *(sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={recipe}"),
            f"trainer.default_local_dir={self.run}",
            f"data.train_files={self.scenes / 'train.parquet'}",
            f"data.val_files={self.scenes / 'val.parquet'}",
            f"actor_rollout_ref.model.path={policy}",
            f"samr1.segmenter.path={self.sam}",
            "samr1.segmenter.service.cache_dir=null",
            f"+ray_kwargs.ray_init._temp_dir={self.ray}",
            *overrides,
        ]

    def train(self, recipe: str, policy: Path, *overrides: str, status: int = 0) -> str:
        """The output of the command, which ended with this exit status."""
        done = subprocess.run(
            self.command(recipe, policy, *overrides),
            cwd=self.run.parent,
            env=without_a_cluster(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == status, done.stdout[-8000:] + done.stderr[-8000:]
        return done.stdout + done.stderr

    def logged(self) -> dict[str, dict[int, float]]:
        """Step → value of every metric, over all starts of the run."""
        events = EventAccumulator(str(self.run / "tensorboard"))
        events.Reload()
        return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
