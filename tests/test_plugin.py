"""`import verl` registers what the recipes name, in every process, and only where it belongs."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

PROBE = """
import json, sys
import verl
from verl.plugin.platform import PlatformRegistry, get_platform
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
early = sorted({"samr1_verl.training.trainer", "verl.trainer.ppo.v1", "verl.workers.engine"} & set(sys.modules))
print(json.dumps({
    "loss": "samr1" in POLICY_LOSS_REGISTRY,
    "estimator": "samr1" in ADV_ESTIMATOR_REGISTRY,
    "cpu": "cpu" in PlatformRegistry.registered_names(),
    "device": get_platform().device_name,
    "early": early,
}))
"""
TRAINER = """
from verl.trainer.ppo.v1 import get_trainer_cls
print(json.dumps(get_trainer_cls("samr1").__module__))
"""


def in_a_fresh_process(folder: Path, program: str = PROBE, **environment: str) -> list[Any]:
    """The JSON lines that the program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", '"'))]


def test_the_entry_point_and_the_search_path_are_installed():
    assert [point.value for point in entry_points(group="verl.plugins", name="samr1")] == ["samr1_verl.plugin"]
    found = Plugins.instance().discover(SearchPathPlugin)
    assert "hydra_plugins.samr1" in {plugin.__module__ for plugin in found}


@pytest.mark.slow
def test_importing_verl_registers_objective_trainer_and_cpu_platform(tmp_path):
    report, trainer = in_a_fresh_process(tmp_path, PROBE + TRAINER)
    assert trainer == "samr1_verl.training.trainer"
    assert report == {
        "loss": True,
        "estimator": True,
        "cpu": True,
        "device": "cpu",
        "early": [],  # what takes seconds to import waits until it is needed
    }


@pytest.mark.slow
def test_a_process_without_gpus_on_a_gpu_machine_does_not_become_a_cpu_run(tmp_path):
    """Ray hides the GPUs from the driver's task and the reward workers; nvidia-smi still lists them."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-0)'\n")
    tool.chmod(0o755)
    (report,) = in_a_fresh_process(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    assert (report["cpu"], report["device"]) == (False, "cuda")
    forced = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VERL_PLATFORM": "cpu"}
    # Also where a part of the package is imported before verl, which then loads the plug-in in the middle of it.
    (report,) = in_a_fresh_process(tmp_path, f"import samr1_verl.cpu\n{PROBE}", **forced)
    assert (report["cpu"], report["device"]) == (True, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["agent_loop", pytest.param("replay_buffer", marks=pytest.mark.thorough)])
def test_a_part_of_the_training_may_be_imported_first(part, tmp_path):
    """It imports verl's trainers, which import ours, which imports the part again."""
    first = f"import json, samr1_verl.training.{part}\n{TRAINER}"
    assert in_a_fresh_process(tmp_path, first) == ["samr1_verl.training.trainer"]
