#!/usr/bin/env bash
# SAM-R1's reward in a run of stock verl: verl's own data set, trainer and objective, and no recipe of ours.
#
#   samr1 data export data/refcocog/train.parquet --for verl --out rows
#   bash examples/stock_verl.sh rows/rows.jsonl                                           synchronous
#   bash examples/stock_verl.sh rows/rows.jsonl trainer.v1.trainer_mode=colocate_async    asynchronous
#
# Further arguments are verl's overrides. The sizes are those of one node with 8 GPUs. SAM runs in a server, because stock
# verl reserves no GPU for its reward workers:
#
#   samr1 serve --backend transformers --path facebook/sam2-hiera-large --root data
set -euo pipefail

rows=$1
shift
service='{mode: http, cache_gb: 16, cache_dir: null, http: {addresses: ["http://localhost:8765"]}}'
sam="{backend: transformers, path: facebook/sam2-hiera-large, device: auto, dtype: float32, service: $service}"

exec python -m verl.trainer.main_ppo \
    data.train_files="$rows" \
    data.val_files="$rows" \
    data.max_prompt_length=1300 \
    data.max_response_length=1300 \
    data.train_batch_size=64 \
    algorithm.adv_estimator=grpo \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8 \
    trainer.n_gpus_per_node=8 \
    reward.custom_reward_function.path=pkg://reward_fns.samr1 \
    +reward.custom_reward_function.reward_kwargs="{segmenter: $sam, reward: {terms: {s_measure: 0.5}}}" \
    "$@"
