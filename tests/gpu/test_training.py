"""The segmenter's replicas beside a training that has reserved every GPU, and a short training itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from ray import serve

from samr1_verl.rehearsal.process import without_a_cluster
from samr1_verl.service.ray_client import RayClient
from tests.gpu.conftest import show
from tests.segmenters.test_transformers import FORMS, config_of
from tests.segmenters.tiny_sams import save_all
from tests.service.fake import image_file


@pytest.mark.thorough
async def test_a_replica_shares_a_gpu_that_is_reserved(device: str, ray_folder: Path, tmp_path: Path) -> None:
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    ray.shutdown()  # the cluster that modules share; the next one starts it again
    ray.init(num_cpus=4, num_gpus=gpus, include_dashboard=False, _temp_dir=str(ray_folder))
    try:
        if gpus:
            ray.get(ray.util.placement_group([{"GPU": 1}] * gpus).ready())
            assert ray.available_resources().get("GPU", 0) == 0
        placed = {"gpus": "shared" if gpus else 0, "cpus": 0, "min_replicas": 1, "max_replicas": 1}
        service = {"mode": "ray", "cache_gb": 0.1, "cache_dir": None, "ray": placed}
        client = RayClient(config_of(save_all(tmp_path)["sam2"], device="auto", service=service))
        (prediction,) = await client.segment(*image_file(tmp_path, 7, (48, 90)), FORMS["box"])
        handle = await client._started()
        place = (await handle.environment.remote())["place"]
        show("replica", device, place=place)
        assert prediction.mask.shape == (48, 90)
        assert f"device {device}" in place
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.gpu
@pytest.mark.slow
def test_a_recipe_is_rehearsed_on_one_gpu(tmp_path: Path) -> None:
    """verl's own command with vLLM, FSDP and the Ray replica on the GPU; tests/rehearsal does it on the CPU."""
    command = [sys.executable, "-m", "samr1_verl.cli", "rehearse", "samr1_3b_1x80", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=without_a_cluster(), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    show("rehearsal", "cuda", wall_s=result["wall_s"], phases=result["phases"])
    assert result["ok"] and result["device"] == "cuda"
