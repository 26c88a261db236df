"""The wheel works away from the checkout: recipes, prompts and plug-ins are inside it and found from another folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.rows.convert.sources import write_images, write_refer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (".py", ".typed", ".yaml", ".jinja", ".js", ".css")
ELSEWHERE = """
import importlib.metadata, json, sys
import hydra_plugins.samr1, recipes, reward_fns, samr1_verl, samr1_verl.prompts.templates
modules = [hydra_plugins.samr1, recipes, reward_fns, samr1_verl]
print(json.dumps({
    "files": [module.__file__ for module in modules],
    "prompts": samr1_verl.prompts.templates.prompt_names(),
    "checkout": [entry for entry in sys.path if entry == sys.argv[1]],
}))
"""
# Every reward, in a process that can import neither verl nor Ray nor torch.
REWARD_ALONE = """
import sys
for name in ("verl", "ray", "torch", "vllm"):
    sys.modules[name] = None  # Python then refuses to import it
from reward_fns import dr_seg, refine, samr1, seg_zero, star, vision_reasoner
for reward in (dr_seg, refine, samr1, seg_zero, star, vision_reasoner):
    print(reward.compute_score.__module__, reward.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, which sees this one's packages but not its editable checkout.

    A line of a .pth file puts a folder on sys.path without reading that folder's own .pth files, and one of those is
    what an editable install is.
    """
    environment = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=wheel.parent)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"samr1_verl", "reward_fns", "recipes", "hydra_plugins"}
    for folder in top:
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in SHIPPED}
        assert wanted and wanted <= set(names)
    assert {"recipes/recipe/samr1.yaml", "samr1_verl/prompts/seg_zero.jinja"} <= set(names)
    assert "hydra_plugins/samr1/__init__.py" in names and "hydra_plugins/__init__.py" not in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_modules_come_from_the_wheel(python, tmp_path):
    report = yaml.safe_load(run(python, "-c", ELSEWHERE, ROOT, cwd=tmp_path))
    assert all(Path(file).is_relative_to(python.parents[1]) for file in report["files"])
    assert report["checkout"] == [] and "seg_zero" in report["prompts"]


def test_the_recipe_composes_from_another_folder(python, tmp_path):
    printed = run(python, "-m", "verl.trainer.main_ppo", "+recipe=samr1", "--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(printed[printed.index("actor_rollout_ref:") :])
    assert "recipe" not in config
    assert config["algorithm"]["adv_estimator"] == "samr1"
    assert config["samr1"]["policy_size"] == [840, 840]


def test_rewards_are_imported_without_verl_ray_or_torch(python, tmp_path):
    lines = run(python, "-c", REWARD_ALONE, cwd=tmp_path).splitlines()
    assert len(lines) == 6 and all(str(python.parents[1]) in line for line in lines)


def test_files_in_a_publishers_format_are_converted(python, tmp_path):
    images, annotations = write_images(tmp_path / "train2014"), write_refer(tmp_path / "refcoco")
    words = ["data", "convert", "refcoco", "--annotations", annotations, "--images", images, "--out", "rows"]
    assert "rows/train.parquet: " in run(python.parent / "samr1", *words, "--workers", "1", cwd=tmp_path)
    assert (tmp_path / "rows" / "train.parquet").is_file()


def test_the_command_line_is_installed(python, tmp_path):
    assert "doctor" in run(python.parent / "samr1", "--help", cwd=tmp_path)
