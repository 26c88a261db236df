"""The keys that a recipe may change of the recipe it comes from. A key that is not here must be equal."""

from collections.abc import Iterable

ACTOR, REF, ROLLOUT = (f"actor_rollout_ref.{name}" for name in ("actor", "ref", "rollout"))


def _below(prefix: str, names: str | Iterable[str]) -> set[str]:
    return {f"{prefix}.{name}" for name in (names.split() if isinstance(names, str) else names)}


SIZE = {
    *_below(ACTOR, "ppo_micro_batch_size_per_gpu ppo_mini_batch_size"),
    *_below(REF, "log_prob_micro_batch_size_per_gpu"),
    *_below(ROLLOUT, "agent.num_workers log_prob_micro_batch_size_per_gpu max_model_len"),
    *_below("data", "max_prompt_length max_response_length train_batch_size val_max_samples"),
    *_below("samr1", "policy_size prompt segmenter.service.cache_gb"),
    *_below("trainer", "max_actor_ckpt_to_keep n_gpus_per_node save_freq test_freq total_training_steps"),
    "transfer_queue.backend.SimpleStorage.num_data_storage_units",
}
# A policy of 3 M parameters needs another learning rate, and 48 steps a schedule that falls to 0.
OPTIMISER = _below(f"{ACTOR}.optim", "lr lr_scheduler_type")
FILES = {
    *_below("data", "train_files val_files"),
    *_below("samr1", "segmenter.backend segmenter.path segmenter.service.cache_dir"),
    *_below("samr1.prepare", "data model segmenter"),
    *_below("actor_rollout_ref.model", "path"),
    *_below("trainer", "experiment_name"),
}
MIXED = [f"fsdp_config.mixed_precision.{part}_dtype" for part in ("buffer", "param", "reduce")]
CPU = {
    *_below(ACTOR, ["checkpoint.save_contents", "use_torch_compile", *MIXED]),
    *_below(REF, ["fsdp_config.param_offload", "use_torch_compile", *MIXED]),
    *_below(ROLLOUT, "dtype name"),
    *_below("actor_rollout_ref.model", "enable_gradient_checkpointing use_fused_kernels"),
    *_below("ray_kwargs.ray_init", "include_dashboard num_cpus num_gpus"),
    *_below("ray_kwargs.ray_init.runtime_env.env_vars", "OMP_NUM_THREADS OMP_WAIT_POLICY"),
    *_below("samr1.segmenter", "device service.mode service.ray.gpus"),
    *_below("trainer", "device"),
}
# Runs that repeat cost speed on GPUs.
REPEATS = {f"{part}.full_determinism" for part in (f"{ACTOR}.fsdp_config", f"{REF}.fsdp_config", ROLLOUT)}
MAY_DIFFER = SIZE | OPTIMISER | FILES | CPU | REPEATS
# StAR trains an adapter of a Qwen3-VL; the tiny policy is a Qwen2.5-VL, and all of it is trained.
STAR = {
    *_below("actor_rollout_ref.model", "exclude_modules lora_alpha lora_rank"),
    *_below(ROLLOUT, "load_format n"),
    f"{ACTOR}.optim.weight_decay",
    "samr1.frame",
}

# A dialogue: its own keys, and smaller micro-batches of longer sequences.
REFINE = {
    *_below("samr1", "prompt reward.terms.first reward.terms.gain reward.terms.mends"),
    *_below("samr1.refine", "max_turns turn_tokens look"),
    *_below("reward.custom_reward_function", "path reward_kwargs.refine"),
    *_below(ROLLOUT, "agent.default_agent_loop engine_kwargs.vllm.limit_mm_per_prompt.image max_model_len"),
    *(f"{part}.log_prob_micro_batch_size_per_gpu" for part in (REF, ROLLOUT)),
    f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    "data.max_response_length",
}

# Recipes for other GPUs and policies: the keys in which each differs from samr1.yaml, the size of the GPU in GB.
POLICY = {"actor_rollout_ref.model.path", "samr1.prepare.model", "trainer.experiment_name"}
OTHER_GPUS = {
    "samr1_3b_1x80": (
        80,
        {
            *POLICY,
            *_below(ACTOR, "ppo_micro_batch_size_per_gpu fsdp_config.param_offload fsdp_config.optimizer_offload"),
            "trainer.n_gpus_per_node",
        },
    ),
    "samr1_3b_4x24": (
        24,
        {
            *POLICY,
            *_below(ACTOR, "ppo_micro_batch_size_per_gpu fsdp_config.offload_policy"),
            *(f"{part}.log_prob_micro_batch_size_per_gpu" for part in (REF, ROLLOUT)),
            "trainer.n_gpus_per_node",
        },
    ),
    "samr1_7b_lora_4x48": (
        48,
        {
            *_below("actor_rollout_ref.model", "exclude_modules lora_alpha lora_rank"),
            *_below(ACTOR, "ppo_micro_batch_size_per_gpu optim.lr"),
            f"{ROLLOUT}.load_format",
            *_below("trainer", "experiment_name n_gpus_per_node"),
        },
    ),
    "samr1_qwen3vl_8b": (80, {*POLICY, "samr1.frame", "samr1.policy_size"}),
    "samr1_refine": (80, REFINE | {"trainer.experiment_name"}),
    "samr1_refine_qwen3vl_8b": (80, REFINE | {*POLICY, "samr1.frame", "samr1.policy_size"}),
}
