"""What the reward adds to a training step of the tiny recipe, with encodes ahead of time and without.

Runs `+recipe=samr1_tiny` twice with the segmenter in its own Ray Serve replica and no kept embeddings, so that every
step meets new images, and reads the logged `reward/exposed_seconds` and `timing_s/step`. The first step, in which the
replica starts, is left out. Prints one JSON object as its last line.

    python benchmarks/encode_ahead.py --steps 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("reward/exposed_seconds", "reward/seconds/mean", "reward/seconds/max", "timing_s/step")


def train(steps: int, ahead: bool, folder: Path) -> dict[str, float]:
    """Medians over the steps of one run, and `share`: exposed seconds of all steps over the time of all steps."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        command = [
            *(sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=samr1_tiny", "samr1.service.mode=ray"),
            f"samr1.service.encode_ahead={str(ahead).lower()}",
            "samr1.service.cache_dir=null",
            f"trainer.total_training_steps={steps}",
            *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
            f"trainer.default_local_dir={folder}",
            f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with (folder / "log").open("w") as log:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    values = {tag: [event.value for event in events.Scalars(tag)][1:] for tag in SHOWN}
    medians = {tag: statistics.median(value) for tag, value in values.items()}
    return {**medians, "share": sum(values["reward/exposed_seconds"]) / sum(values["timing_s/step"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder that keeps the runs' logs; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = {}
        for name, ahead in (("off", False), ("on", True)):
            folder = (arguments.out or Path(temporary)) / name
            folder.mkdir(parents=True)
            results[name] = train(arguments.steps, ahead, folder)
            print(f"encode ahead {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in results[name].items()))
    print(json.dumps({"benchmark": "encode_ahead", "steps": arguments.steps, **results}))


if __name__ == "__main__":
    main()
