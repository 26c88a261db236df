"""Wrong set-ups, each made for real and shown to `samr1 doctor`: its message has key, found, expected and next step.

Set-ups that need a GPU are made of the report that a machine with one would give.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.preflight import doctor, probe
from samr1_verl.preflight.gpus import examine_gpus, pinned_versions
from tests.composing import compose_recipe
from tests.row_files import make_record, write_rows

ROOMY = ["--gpu-gb", "80", "--host-gb", "512", "--disk-gb", "1000"]
H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "total": 85 * 10**9, "free": 84 * 10**9, "error": None}
GPUS = {"torch": "2.11.0+cu130", "torch_cuda": "13.0", "driver": "580.65", "driver_cuda": "13.0", "installed": 8}
GPUS |= {"devices": [H100] * 8}


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report comes from this process; tests/preflight/test_doctor.py has those that need a fresh interpreter."""
    monkeypatch.setattr(doctor, "_probe", probe.probe)


@pytest.fixture
def inputs(tmp_path: Path, random_policy: Path, small_sam: Path) -> dict[str, str]:
    """Overrides by key, with which everything that samr1_tiny reads is there."""
    rows = write_rows(tmp_path / "rows.parquet")
    return {
        "data.train_files": str(rows),
        "data.val_files": str(rows),
        "actor_rollout_ref.model.path": str(random_policy),
        "samr1.segmenter.path": str(small_sam),
    }


def diagnose(recipe: str, inputs: dict[str, object], *options: str) -> str:
    """The doctor's output. Its exit status is 1."""
    overrides = [f"{key}={value}" for key, value in inputs.items()]
    result = CliRunner().invoke(app, ["doctor", "--recipe", recipe, *options, *overrides])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.output
    return result.output


def assert_says(output: str, *parts: str) -> None:
    missing = [part for part in parts if part not in output]
    assert not missing, f"{missing} not in:\n{output}"


def test_rows_whose_image_is_gone(inputs, tmp_path):
    write_rows(tmp_path / "rows.parquet", make_record(tmp_path, "gone.png"))
    (tmp_path / "gone.png").unlink()
    assert_says(
        diagnose("samr1_tiny", inputs, *ROOMY),
        "data.train_files",
        "1 of 1 images",
        "gone.png",
        f"relative to {tmp_path}",
    )


def test_a_policy_without_weights(inputs, tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    inputs["actor_rollout_ref.model.path"] = str(tmp_path / "policy")
    output = diagnose("samr1_tiny", inputs, *ROOMY)
    assert_says(output, "actor_rollout_ref.model.path", "*.safetensors", "data/tiny_world/warm_up.py")


def test_a_segmenter_without_weights(inputs, tmp_path):
    inputs["samr1.segmenter.path"] = str(tmp_path / "no_sam")
    assert_says(diagnose("samr1_tiny", inputs, *ROOMY), "✗ segmenter", str(tmp_path / "no_sam"), "Type: make weights")


def test_a_policy_of_another_frame(inputs, tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    (tmp_path / "policy" / "model.safetensors").touch()
    inputs["actor_rollout_ref.model.path"] = str(tmp_path / "policy")
    output = diagnose("samr1_tiny", inputs, *ROOMY)
    assert_says(output, "samr1.frame is absolute", "Qwen3-VL", "Set samr1.frame=thousand")


def test_rollouts_by_vllm_where_it_is_not_installed(inputs, monkeypatch):
    monkeypatch.setattr("samr1_verl.preflight.checks.importlib.util.find_spec", lambda name: None)
    output = diagnose("samr1", inputs, *ROOMY)
    assert_says(output, "actor_rollout_ref.rollout.name is vllm", "not installed", "pip install 'samr1-verl[vllm")


def test_a_segmenter_beside_the_training_that_reserves_nothing(inputs):
    output = diagnose("samr1", {**inputs, "samr1.segmenter.service.mode": "embedded"}, *ROOMY)
    assert_says(output, "samr1.segmenter.service.mode is embedded", "samr1.segmenter.service.mode=ray")


def test_a_gpu_that_is_too_small(inputs):
    output = diagnose("samr1", {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-7B-Instruct"}, "--gpu-gb", "24")
    assert_says(
        output,
        "✗ memory per GPU",
        "24.00 GB free (--gpu-gb)",
        "actor_rollout_ref.rollout.gpu_memory_utilization is 0.5",
        "vLLM gets 12.00 GB",
    )
    assert_says(output, "expected at least 18.", "set actor_rollout_ref.actor.fsdp_config.offload_policy=true")


def test_a_host_that_is_too_small(inputs):
    output = diagnose("samr1", {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-7B-Instruct"}, "--host-gb", "64")
    assert_says(
        output,
        "✗ host memory per node",
        "64.00 GB free (--host-gb)",
        "actor_rollout_ref.ref.fsdp_config.model_dtype=bf16",
    )


def test_a_disk_that_is_too_small(inputs):
    output = diagnose("samr1", {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-7B-Instruct"}, "--disk-gb", "100")
    assert_says(output, "✗ disk", "checkpoints in runs/samr1", "100.00 GB free", "trainer.default_local_dir")


def test_a_cluster_that_does_not_answer(inputs):
    output = diagnose("samr1_tiny", {**inputs, "+ray_kwargs.ray_init.address": "127.0.0.1:1"}, *ROOMY)
    assert_says(output, "ray_kwargs.ray_init.address", "127.0.0.1:1", "ray start --head")


GPU_SETUPS = {
    "a kernel that fails": (
        {"devices": [H100, {**H100, "error": "AcceleratorError: CUDA error: no kernel image is available\n"}]},
        ["GPU 1 (NVIDIA H100", "AcceleratorError: CUDA error", "CUDA_VISIBLE_DEVICES"],
    ),
    "a driver that is too old": (
        {"driver": "550.54", "driver_cuda": "12.4"},
        ["driver 550.54", "CUDA 12.4", "2.11.0+cu130", "CUDA 13.0", "a driver for CUDA 13 "],
    ),
    "torch without CUDA": (
        {"torch": "2.11.0+cpu", "torch_cuda": None, "devices": []},
        ["torch 2.11.0+cpu", "without CUDA", "8 GPUs", "pip install --force-reinstall torch"],
    ),
    "GPUs that torch does not see": (
        {"devices": []},
        ["8 GPUs", "sees none", "CUDA_VISIBLE_DEVICES", "nvidia-smi"],
    ),
    "a GPU without bfloat16": (
        {"devices": [{**H100, "name": "Tesla T4", "capability": [7, 5]}]},
        ["GPU 0 (Tesla T4)", "compute capability 7.5", "at least 8.0", "a newer GPU"],
    ),
}


@pytest.mark.parametrize("setup", GPU_SETUPS)
def test_gpus(setup):
    change, parts = GPU_SETUPS[setup]
    findings = list(examine_gpus(compose_recipe("samr1"), GPUS | change))
    (problem,) = [problem for finding in findings for problem in finding.problems]
    assert_says(problem, *parts)


def test_sound_gpus_are_shown_and_a_recipe_for_the_cpu_asks_none():
    findings = list(examine_gpus(compose_recipe("samr1"), GPUS))
    assert [finding.problems for finding in findings] == [[], [], []]
    assert findings[1].detail == "580.65, CUDA 13.0" and findings[2].detail == "8 x NVIDIA H100 80GB HBM3"
    older = GPUS | {"driver_cuda": "13.2", "torch_cuda": "13.0"}
    assert all(not finding.problems for finding in examine_gpus(compose_recipe("samr1"), older))
    assert list(examine_gpus(compose_recipe("samr1_tiny"), GPUS)) == []


def test_versions_that_verl_does_not_pin(monkeypatch):
    installed = {"vllm": "0.25.0", "torch": "2.11.0+cu130", "verl": "0.9.1"}
    monkeypatch.setattr("samr1_verl.preflight.gpus.version", lambda name: installed.get(name, "5.9.0"))
    pins = ["vllm==0.24.0; extra == 'vllm'", "torch==2.11.0; extra == 'vllm'", "sglang==0.5.12; extra == 'sglang'"]
    monkeypatch.setattr("samr1_verl.preflight.gpus.requires", lambda name: pins)
    finding = pinned_versions("vllm")
    (problem,) = finding.problems
    assert_says(problem, "vllm is 0.25.0,", "verl 0.9.1", "==0.24.0 for vllm.", "pip install 'vllm==0.24.0'")
    assert finding.detail == "torch 2.11.0+cu130"  # a local version fits a pin without one


def test_the_installed_verl_still_pins_its_engines():
    from importlib.metadata import requires

    pinned = [line for line in requires("verl") if 'extra == "vllm"' in line]
    assert any(line.startswith("vllm==") for line in pinned) and any(line.startswith("torch==") for line in pinned)
