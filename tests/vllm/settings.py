"""What verl's vLLM rollout needs to run the tiny recipe on the CPU, as overrides of recipes/recipe/samr1_tiny.yaml."""

RECIPE = "samr1_tiny"
ROLLOUT = "actor_rollout_ref.rollout"

VLLM_ON_CPU = (
    f"{ROLLOUT}.name=vllm",
    f"{ROLLOUT}.load_format=dummy",  # the trainer sends the weights before the first answer
    f"{ROLLOUT}.enforce_eager=true",  # nothing to capture or compile for
    f"++{ROLLOUT}.enable_sleep_mode=false",  # needs CUDA's virtual memory
    f"{ROLLOUT}.free_cache_engine=false",
    f"{ROLLOUT}.max_num_seqs=64",
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes=64",  # allocated in shared memory at each update
)
