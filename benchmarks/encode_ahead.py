"""Time that the reward adds to a training step of the tiny recipe, with encodes ahead of time and without.

    python benchmarks/encode_ahead.py --steps 5

Runs `+recipe=samr1_tiny` twice with the segmenter in its own Ray Serve replica and no kept embeddings, so that every
step meets new images, and reads the logged `reward/exposed_seconds` and `timing_s/step`. The first step, in which the
replica starts, does not count. Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks.demo_training import training_command
from benchmarks.places import ROOT, ray_folder
from samr1_verl.report.run import read_curves

SHOWN = ("reward/exposed_seconds", "reward/seconds/mean", "reward/seconds/max", "timing_s/step")


def overrides(steps: int, ahead: bool, folder: Path) -> list[str]:
    """Of the recipe, for a run in `folder`."""
    service = "samr1.segmenter.service"
    return [
        *(f"{service}.mode=ray", f"{service}.encode_ahead={str(ahead).lower()}", f"{service}.cache_dir=null"),
        f"trainer.total_training_steps={steps}",
        *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
        f"trainer.default_local_dir={folder}",
    ]


def train(steps: int, ahead: bool, folder: Path) -> dict[str, float]:
    """Medians over the steps of one run, and `share`: exposed seconds of all steps over the time of all steps."""
    with ray_folder() as sockets:
        command = training_command([*overrides(steps, ahead, folder), f"+ray_kwargs.ray_init._temp_dir={sockets}"])
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with (folder / "log").open("w") as log:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    curves = read_curves(folder)
    values = {tag: list(curves[tag].values())[1:] for tag in SHOWN}
    medians = {tag: statistics.median(value) for tag, value in values.items()}
    return {**medians, "share": sum(values["reward/exposed_seconds"]) / sum(values["timing_s/step"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps per run; default: 5")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs' logs; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = {}
        for name, ahead in (("off", False), ("on", True)):
            folder = (arguments.out or Path(temporary)).absolute() / name
            folder.mkdir(parents=True)
            results[name] = train(arguments.steps, ahead, folder)
            print(f"encode ahead {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in results[name].items()))
    print(json.dumps({"benchmark": "encode_ahead", "steps": arguments.steps, **results}))


if __name__ == "__main__":
    main()
