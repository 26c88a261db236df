"""The golden files of the tiny recipes, tests/regress/golden/<recipe>.json, and how they are recorded.

    python -m tests.regress.golden_files                  record all of them again
    python -m tests.regress.golden_files star_tiny        one of them

A change that is meant to change training changes them. Record them then, and commit them with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from data.tiny_world import shapes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "regress" / "golden"
RECIPES = ("samr1_tiny", "seg_zero_tiny", "vision_reasoner_tiny", "star_tiny")
STEPS, REPETITIONS = 3, 3


def draw(folder: Path) -> Path:
    """Few scenes of the tiny world: 8 for training, 4 for each held-out split."""
    shapes.main(folder, train=8, val=4, test=4, seed=0)
    return folder


def furnish(folder: Path, scenes: Path, sam: Path) -> Path:
    """A folder like the root of a checkout, in which a tiny recipe finds its inputs without an override."""
    (folder / "data" / "weights").mkdir(parents=True)
    for link, target in (
        ("shapes", scenes),
        ("weights/small_sam", sam),
        ("checkpoints", ROOT / "data" / "checkpoints"),
    ):
        (folder / "data" / link).symlink_to(target)
    return folder


def main(recipes: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = furnish(Path(folder) / "root", draw(Path(folder) / "shapes"), ROOT / "data" / "weights" / "small_sam")
        for recipe in recipes or RECIPES:
            options = [f"--out={FOLDER / recipe}.json", f"--steps={STEPS}", f"--repeat={REPETITIONS}"]
            command = [sys.executable, "-m", "samr1_verl.cli", "regress", "record", recipe, *options]
            subprocess.run(command, cwd=place, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
