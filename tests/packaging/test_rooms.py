"""The contracts of import-linter hold, and each of them fails for what it forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).with_name("lint-imports")
FLAT = {"__init__.py", "answers.py", "config.py", "plugin.py", "vllm_plugin.py"}


def lint(folder: Path) -> tuple[int, str]:
    """Exit status and output of import-linter on a copy of the packages."""
    done = subprocess.run(
        [COMMAND, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("samr1_verl", "reward_fns"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy: Path) -> None:
    status, output = lint(copy)
    assert status == 0, output


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("geometry/frames.py", "from samr1_verl.service.client import get_client", "Rooms import one way"),
        ("training/trainer.py", "from samr1_verl.preflight.checks import advice", "Rooms import one way"),
        ("prompts/questions.py", "from samr1_verl.policies.load import config_for", "Rooms import one way"),
        ("helpers.py", "", "every module lies in one"),
        ("utils/__init__.py", "", "every module lies in one"),
        ("scoring/rollout.py", "import reward_fns.terms", "Nothing in samr1_verl imports a reward"),
        ("cpu/engine.py", "from samr1_verl.config import ACTOR", "The CPU backend imports no other room"),
        ("service/engine.py", "import samr1_verl.cpu.engine", "Only the plug-in, the preflight and the rehearsal"),
        ("rows/record.py", "import torch", "need neither verl nor Ray nor torch"),
        ("geometry/masks.py", "import samr1_verl.geometry.giou", "No files import each other in a circle"),
    ],
)
def test_a_file_in_the_wrong_room_or_an_import_the_wrong_way_fails(
    copy: Path, file: str, line: str, contract: str
) -> None:
    path = copy / "samr1_verl" / file
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.is_file() else ""
    path.write_text(f"{text}\n{line}\n")
    status, output = lint(copy)
    broken = " ".join(output.split("Broken contracts")[-1].split())
    assert status == 1 and contract in broken, output


def test_few_modules_lie_beside_the_rooms() -> None:
    assert {path.name for path in (ROOT / "samr1_verl").glob("*.py")} == FLAT
