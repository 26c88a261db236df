"""The memory plan: samr1.yaml counted by hand, what each key changes, and checkpoints as they are on the disk."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForImageTextToText
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

from samr1_verl.config import samr1_config
from samr1_verl.preflight import host_memory, plan
from samr1_verl.preflight.gpu_memory import gpu_stages
from samr1_verl.preflight.host_memory import checkpoint_bytes, disk_stage, host_stage, kept_checkpoints, pinned
from samr1_verl.preflight.memory import Shape
from samr1_verl.preflight.plan import Given, examine_memory
from samr1_verl.preflight.policy_size import policy_size
from tests.composing import NAMES, compose_recipe

NO_GPU = {"devices": [], "installed": 0}
N = 8_292_166_656  # parameters of Qwen2.5-VL-7B; tests/preflight/test_policy_size.py counts them by hand
HEAD = 152_064 * 3584  # parameters of its output layer, and of its input embedding
TOKENS = 1300 + 1300
PATCHES = 60 * 60  # 840 x 840 pixels in patches of 14 x 14
# The keys on which the count by hand depends.
COUNTED = {
    "data.max_prompt_length": 1300,
    "data.max_response_length": 1300,
    "data.train_batch_size": 16,
    "data.val_max_samples": 512,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.5,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
    "actor_rollout_ref.model.use_fused_kernels": True,
    "trainer.max_actor_ckpt_to_keep": 2,
}


def shape_of(config):
    return Shape.of(config, policy_size(config.actor_rollout_ref.model))


def stages_of(config, gpu_gb=80.0):
    stages = gpu_stages(config, samr1_config(config).segmenter, shape_of(config), int(gpu_gb * 1e9))
    return {stage.name: {term.name: term.size for term in stage.terms} for stage in stages}


@pytest.fixture
def samr1():
    return compose_recipe("samr1")


def test_the_recipe_has_the_values_of_the_count_by_hand(samr1):
    assert {key: OmegaConf.select(samr1, key) for key in COUNTED} == COUNTED


def test_samr1_on_gpus_of_80_gb_counted_by_hand(samr1):
    stages = stages_of(samr1)
    shard, states = N * 4 // 8, 2 * N * 4 // 8  # float32, 8 workers
    assert shard == 4_146_083_328 and states == 8_292_166_656
    assert stages["rollouts"]["vLLM"] == 40_000_000_000
    assert stages["rollouts"]["policy weights"] == shard and stages["rollouts"]["optimizer states"] == states
    update = stages["update"]
    assert update["gradients"] == update["policy weights"] == shard and update["optimizer states"] == states
    # 4 rollouts: layer inputs in bfloat16 of 28 text layers, and of 32 vision layers for 4 images
    kept = 4 * TOKENS * 28 * 2 * 3584 + 4 * PATCHES * 32 * 2 * 1280
    assert update["activations kept"] == kept == 3_266_969_600
    # the fused logits: 512 tokens x 152,064 words x 20 bytes and one chunk's gradient; a text layer is larger
    layer = 4 * TOKENS * (12 * 18944 + 40 * 3584) + 3 * 4 * TOKENS**2
    assert update["one text layer"] == layer == 3_936_275_200 > 512 * 152_064 * 20 + 2 * HEAD
    assert update["gathered weights"] == 2 * HEAD * 2 and update["gathered gradients"] == HEAD * (2 + 4)
    assert update["pixel values"] == 4 * PATCHES * 1176 * 4 == 67_737_600
    transfer = stages["new weights for vLLM"]
    assert transfer["vLLM's weights"] == 2 * N and transfer["largest tensor"] == 2 * HEAD * 4
    assert transfer["buffer"] == 2 << 30


def test_samr1_on_a_host_counted_by_hand(samr1):
    terms = {
        term.name: term.size
        for term in host_stage(samr1, samr1_config(samr1).segmenter, shape_of(samr1), (3000, 512)).terms
    }
    assert terms["loading or saving"] == 4 * N
    assert terms["pixel values of rollouts"] == 512 * PATCHES * 1176 * 4 == 8_670_412_800
    assert 4 * N < terms["reference model"] < 2 * 4 * N  # float32 in pinned memory, each tensor rounded up
    assert disk_stage(samr1, shape_of(samr1), 3000).size == 2 * 12 * N == 199_011_999_744


def test_pinned_memory_is_rounded_up_per_tensor():
    assert pinned((1024, 1025), ranks=1, number=4) == 4096 + 8192
    assert pinned((18944 * 3584,), ranks=8, number=4) == 1 << 26  # 33.9 MB lie in 67.1 MB


def test_whole_logits_of_the_padded_path_are_as_large_as_they_are(samr1):
    samr1.actor_rollout_ref.model.use_fused_kernels = False
    stages = stages_of(samr1)
    assert stages["update"]["logits"] == 4 * TOKENS * 152_064 * 8 == 12_651_724_800
    assert stages["log-probs"]["logits"] == 8 * TOKENS * 152_064 * 10 == 31_629_312_000
    samr1.actor_rollout_ref.actor.entropy_coeff = 0.01
    assert stages_of(samr1)["update"]["logits"] == 4 * TOKENS * 152_064 * 18


@pytest.mark.parametrize(
    ("key", "stage", "gone"),
    [
        ("param_offload", "rollouts", ["policy weights"]),
        ("optimizer_offload", "log-probs", ["optimizer states"]),
        ("offload_policy", "update", ["policy weights", "gradients", "optimizer states"]),
    ],
)
def test_an_offload_moves_terms_from_the_gpu_to_the_host(samr1, key, stage, gone):
    settings, shape = samr1_config(samr1), shape_of(samr1)
    before, host = stages_of(samr1), host_stage(samr1, settings.segmenter, shape, (0, 512)).size
    samr1.actor_rollout_ref.actor.fsdp_config[key] = True
    after = stages_of(samr1)
    assert before[stage].keys() - after[stage].keys() == set(gone)
    moved = sum(before[stage][name] for name in gone) * 8
    assert host_stage(samr1, settings.segmenter, shape, (0, 512)).size - host >= moved


def test_lora_trains_little_and_keeps_no_reference_model(samr1):
    samr1.actor_rollout_ref.model.lora_rank = 64
    shape = shape_of(samr1)
    update = stages_of(samr1)["update"]
    assert update["policy weights"] == N * 4 // 8 and update["optimizer states"] == 2 * shape.size.adapter * 4 // 8
    names = {term.name for term in host_stage(samr1, None, shape, (0, 512)).terms}
    assert "reference model" not in names and "vLLM's weights" in names  # vLLM sleeps at level 1 with LoRA


def test_the_segmenter_counts_where_it_lies(samr1):
    assert "segmenter at work" in stages_of(samr1)["update"]
    for service in ({"ray": {"gpus": 1}}, {"mode": "http", "http": {"addresses": ["http://a:1"]}}):
        moved = OmegaConf.merge(samr1, {"samr1": {"segmenter": {"service": service}}})
        assert "segmenter at work" not in stages_of(moved)["update"]
    samr1.samr1.segmenter.service.ray.max_replicas = 9  # on 8 GPUs, so one GPU has two
    assert (
        stages_of(samr1)["update"]["segmenter at work"]
        == 2 * stages_of(compose_recipe("samr1"))["update"]["segmenter at work"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_every_recipe_has_a_plan_and_every_remedy_names_keys_that_exist(recipe):
    config = compose_recipe(recipe)
    shape, segmenter = shape_of(config), samr1_config(config).segmenter
    stages = [
        *gpu_stages(config, segmenter, shape, None),
        host_stage(config, segmenter, shape, (3000, 512)),
        disk_stage(config, shape, 3000),
    ]
    remedies = " ".join(term.remedy for stage in stages for term in stage.terms)
    keys = set(re.findall(r"\b(?:actor_rollout_ref|data|samr1|trainer)\.[\w.]*\w", remedies))
    unknown = object()
    assert keys and all(OmegaConf.select(config, key, default=unknown) is not unknown for key in keys), keys


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_checkpoints_are_counted_as_verl_keeps_them(samr1, keep, tmp_path):
    manager = BaseCheckpointManager.__new__(BaseCheckpointManager)
    manager.previous_saved_paths, most = [], 0
    for step in range(6):
        manager.ensure_checkpoint_capacity(keep)
        (folder := tmp_path / str(step)).mkdir()
        most = max(most, len(list(tmp_path.iterdir())))
        manager.register_checkpoint(str(folder), keep)
    samr1.trainer.max_actor_ckpt_to_keep = keep
    assert kept_checkpoints(samr1, 3000)[0] == most


def test_without_a_limit_every_checkpoint_is_counted(samr1):
    samr1.trainer.max_actor_ckpt_to_keep = None
    assert kept_checkpoints(samr1, 3000)[0] == 4  # 187 steps, every 50th and the last
    samr1.trainer.save_freq = -1
    assert disk_stage(samr1, shape_of(samr1), 3000).size == 0


def test_a_checkpoint_has_the_bytes_that_the_plan_says(random_policy, tmp_path):
    config = compose_recipe("samr1_tiny", f"actor_rollout_ref.model.path={random_policy}")
    policy = AutoModelForImageTextToText.from_pretrained(random_policy, dtype=torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters())
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(policy.state_dict(), tmp_path / "model.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optim.pt")
    policy.save_pretrained(tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert checkpoint_bytes(config, shape_of(config))[0] == pytest.approx(written, rel=0.02)


def test_a_plan_that_does_not_fit_names_the_keys(samr1):
    findings = {f.subject: f for f in examine_memory(samr1, samr1_config(samr1), NO_GPU, Given(40, 100, 150))}
    gpu, host, disk = (findings[name].problems for name in ("memory per GPU", "host memory per node", "disk"))
    assert any(
        re.search(r"rollouts: [\d.]+ GB needed, 40.00 GB free \(--gpu-gb\).*lower actor_rollout_ref\.rollout", p)
        for p in gpu
    )
    assert "GB needed, 100.00 GB free (--host-gb)" in host[0] and "ref.fsdp_config.model_dtype=bf16" in host[0]
    assert "199.01 GB needed, 150.00 GB free (--disk-gb)" in disk[0] and "trainer.default_local_dir" in disk[0]


def test_gpus_of_this_machine_are_judged_by_their_free_memory(samr1):
    device = {"name": "H100", "total": 85 * 10**9, "free": 85 * 10**9, "capability": [9, 0], "error": None}
    settings = samr1_config(samr1)
    fits, full = ([device] * 8, [*[device] * 7, {**device, "free": 20 * 10**9}])
    assert next(examine_memory(samr1, settings, {"devices": fits}, Given())).problems == []
    finding = next(examine_memory(samr1, settings, {"devices": full}, Given()))
    assert "20.00 GB free (GPU 7, H100, 85.00 GB)" in finding.problems[0]


def test_without_a_gpu_the_plan_is_shown_and_not_judged(samr1, monkeypatch):
    monkeypatch.setattr(plan, "host_memory", lambda: (10**12, 10**12))
    finding = next(examine_memory(samr1, samr1_config(samr1), NO_GPU, Given()))
    assert finding.problems == [] and "nothing to compare" in finding.detail
    assert any("vLLM: at least: weights" in line for line in finding.lines)


def test_the_tiny_world_fits_its_measured_peak():
    config = compose_recipe("samr1_tiny")
    size = host_stage(config, samr1_config(config).segmenter, shape_of(config), (512, 32)).size
    assert 9.5e9 < size < 13e9  # README: the peak of all processes is 9.5 GB
    assert host_memory.PROCESS < 10**9


# GB of a GPU, of host memory and of disk for which a recipe is sized; docs/gpus.md shows the same.
SIZED = {
    "samr1": (80, 256, 250),
    "samr1_3b_1x80": (80, 160, 100),
    "samr1_3b_4x24": (24, 256, 100),
    "samr1_7b_lora_4x48": (48, 256, 100),
    "samr1_qwen3vl_8b": (80, 256, 250),
    "samr1_refine": (80, 256, 250),
    "samr1_refine_qwen3vl_8b": (80, 256, 250),
    "seg_zero": (80, 256, 250),
    "star": (80, 384, 100),
    "vision_reasoner": (80, 256, 250),
}


def test_every_recipe_for_gpus_has_a_size():
    assert {name for name in NAMES if not name.endswith("_tiny")} == SIZED.keys()


@pytest.mark.parametrize("recipe", SIZED)
def test_a_recipe_fits_the_size_that_it_is_for(recipe, monkeypatch):
    monkeypatch.setattr(plan, "row_counts", lambda config: (3000, 512))
    config = compose_recipe(recipe)
    findings = list(examine_memory(config, samr1_config(config), NO_GPU, Given(*SIZED[recipe])))
    assert [problem for finding in findings for problem in finding.problems] == []
