"""The memory plan of one GPU: the stages of a training step, each with the terms that lie on the GPU together.

verl runs them one after the other: the rollouts, the log-probs of policy and reference, the update, and the transfer of
the new weights to the rollout engine. The largest stage decides. Bytes per activation and per logit are traced: the
tests run the same operations and count the storages that are alive (tests/preflight/test_memory_trace.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from samr1_verl.config import ACTOR, ROLLOUT, SegmenterConfig
from samr1_verl.preflight.memory import GB, MicroBatch, Shape, Stage, Term, bytes_of, micro_batch
from samr1_verl.preflight.policy_size import Tower
from samr1_verl.preflight.segmenter_size import segmenter_terms

FSDP = f"{ACTOR}.fsdp_config"
WEIGHTS, GRADIENTS, STATES = "policy weights", "gradients", "optimizer states"
CONTEXT = GB // 2  # estimate: CUDA context and cuBLAS of a process
ASLEEP = 2 * GB  # estimate: context, CUDA graphs and buffers of vLLM, which its sleep does not free
VLLM_WORK = 2 * GB  # estimate: activations of vLLM, within its share
SLACK = 0.1  # estimate: share of the activations that the allocator cannot use, because its blocks do not fit
# Bytes per token and layer of bfloat16: (per MLP number, per number of the residual stream).
SAVED = (8, 32)  # kept for the backward pass by every layer without gradient checkpointing
CHECKPOINT = 2  # with it: the layer's input
BACKWARD = (12, 40)  # while one layer is recomputed and differentiated
FORWARD = (6, 9)  # while one layer runs without gradients
MASK = 3  # per pair of tokens: the attention mask as bool and as bfloat16
# Bytes per logit, with verl's functions under autocast.
LOGIT_UPDATE, LOGIT_ENTROPY, LOGIT_BOTH = 8, 10, 18
# Bytes per logit of a chunk of verl's FusedLinearForPPO.
CHUNK, CHUNK_FORWARD, CHUNK_BACKWARD = 512, 12, 20


def gpu_stages(config: DictConfig, segmenter: SegmenterConfig | None, shape: Shape, gpu: int | None) -> list[Stage]:
    """The stages of a step on one GPU.

    Args:
        config: a composed recipe.
        segmenter: its segmenter; None: the run needs none.
        shape: the run's numbers.
        gpu: bytes of the GPU, of which vLLM takes a share; None: vLLM is planned with weights and one rollout.
    """
    fixed = [] if shape.on_cpu else [Term("CUDA context of the training worker", CONTEXT, "estimate")]
    if segmenter is not None:
        fixed += segmenter_terms(segmenter, shape.workers, CONTEXT)
    # Stage, parts of the policy that it needs on the GPU, and its own terms. The rollouts have vLLM awake.
    asleep = _asleep(config)
    stages: list[tuple[str, set[str], list[Term]]] = [
        ("rollouts", set(), [rollout_engine(config, shape, gpu)]),
        ("log-probs", {WEIGHTS}, [*_log_probs(config, shape), *asleep]),
        ("update", {WEIGHTS, GRADIENTS, STATES}, [*_update(config, shape), *asleep]),
    ]
    if config.actor_rollout_ref.rollout.name == "vllm":
        stages.append(("new weights for vLLM", set(), [*_transfer(config, shape), *asleep]))
    return [Stage(name, (*_resident(config, shape, needed), *terms, *fixed)) for name, needed, terms in stages]


def _resident(config: DictConfig, shape: Shape, needed: set[str]) -> Iterator[Term]:
    """The policy's shard on the GPU: the parts that the stage needs, and those that no key offloads."""
    fsdp, size = config.actor_rollout_ref.actor.fsdp_config, shape.size
    if fsdp.offload_policy:  # FSDP2 keeps the shard in host memory in every stage
        return
    share = f"parameters x {shape.param} bytes / {shape.ranks} workers"
    offload = f"set {FSDP}.offload_policy=true, train with LoRA, or use more GPUs"
    parts = [
        (WEIGHTS, size.parameters, fsdp.param_offload, f"{size.parameters:,} {share}", f"{FSDP}.param_offload"),
        (GRADIENTS, size.trained, True, f"{size.trained:,} {share}", ""),
        (
            STATES,
            2 * size.trained,
            fsdp.optimizer_offload,
            f"2 moments x {size.trained:,} {share}",
            f"{FSDP}.optimizer_offload",
        ),
    ]
    for name, count, offloaded, formula, key in parts:
        if name in needed or not offloaded:
            yield Term(
                name, count * shape.param // shape.ranks, formula, offload if name in needed else f"set {key}=true"
            )


def rollout_engine(config: DictConfig, shape: Shape, gpu: int | None) -> Term:
    """vLLM's share of a GPU, with the room that is left for the KV cache."""
    rollout, weights = config.actor_rollout_ref.rollout, rollout_weights(config, shape)
    if rollout.name != "vllm":
        return Term(f"rollout {rollout.name}", weights, "a copy of the weights")
    sequence = sequence_bytes(config, shape)
    if gpu is None:
        return Term("vLLM", least_share(config, shape), "at least: weights, work and the KV cache of one rollout")
    total = int(rollout.gpu_memory_utilization * gpu)
    return Term(
        "vLLM",
        total,
        f"gpu_memory_utilization {rollout.gpu_memory_utilization} x {gpu / GB:.1f} GB: weights {weights / GB:.1f} GB, "
        f"work {VLLM_WORK / GB:.0f} GB (estimate), KV cache of {max(0, total - weights - VLLM_WORK) // sequence} "
        f"rollouts of {shape.tokens} tokens",
        f"lower {ROLLOUT}.gpu_memory_utilization",
    )


def least_share(config: DictConfig, shape: Shape) -> int:
    """Bytes that vLLM needs on a GPU: weights, its work, and the KV cache of one rollout."""
    return rollout_weights(config, shape) + VLLM_WORK + sequence_bytes(config, shape)


def rollout_weights(config: DictConfig, shape: Shape) -> int:
    """Bytes of the rollout engine's weights on one GPU."""
    rollout = config.actor_rollout_ref.rollout
    return shape.size.parameters * bytes_of(rollout.dtype) // rollout.tensor_model_parallel_size


def sequence_bytes(config: DictConfig, shape: Shape) -> int:
    """Bytes of the KV cache of one rollout on one GPU."""
    rollout = config.actor_rollout_ref.rollout
    per_token = shape.size.key_values * shape.size.text.layers * bytes_of(rollout.dtype)
    return shape.tokens * per_token // rollout.tensor_model_parallel_size


def _asleep(config: DictConfig) -> list[Term]:
    if config.actor_rollout_ref.rollout.name != "vllm":
        return []
    return [
        Term("vLLM asleep", ASLEEP, "estimate: CUDA context, CUDA graphs, buffers; its weights and KV cache are freed")
    ]


def _update(config: DictConfig, shape: Shape) -> list[Term]:
    batch, tower = micro_batch(config, shape, "actor"), shape.size.text
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    images = batch.rows * shape.patches
    saved = [
        _saved(bool(model.enable_gradient_checkpointing), width, count)
        for width, count in ((tower, batch.tokens), (shape.size.vision, images))
    ]
    entropy = bool(actor.entropy_coeff or actor.calculate_entropy)
    stages = _stages(config, shape, batch, BACKWARD, LOGIT_BOTH if entropy else LOGIT_UPDATE, CHUNK_BACKWARD)
    kind = "layer inputs" if model.enable_gradient_checkpointing else "all layers"
    activations = Term(
        "activations kept",
        sum(saved),
        f"{kind}: {batch.tokens:,} tokens x {tower.layers} layers x width {tower.width}, "
        f"and {images:,} patches x {shape.size.vision.layers} x {shape.size.vision.width}",
        _smaller(batch)
        if model.enable_gradient_checkpointing
        else "set actor_rollout_ref.model.enable_gradient_checkpointing=true",
    )
    terms = [activations, max(stages, key=lambda term: term.size), _pixel_values(batch, shape)]
    return [*terms, *_gathered(shape, training=True), _slack(terms)]


def _log_probs(config: DictConfig, shape: Shape) -> list[Term]:
    sections = ["rollout", *(["ref"] if shape.reference else [])]
    batches = [micro_batch(config, shape, section) for section in sections]
    batch = max(batches, key=lambda each: each.tokens)
    stages = _stages(config, shape, batch, FORWARD, LOGIT_ENTROPY, CHUNK_FORWARD)
    terms = [max(stages, key=lambda term: term.size), _pixel_values(batch, shape)]
    return [*terms, *_gathered(shape, training=False), _slack(terms)]


def _pixel_values(batch: MicroBatch, shape: Shape) -> Term:
    return Term(
        "pixel values",
        batch.rows * shape.image_bytes,
        f"{batch.rows} rollouts x {shape.patches} patches x {shape.size.patch_values} x 4 bytes",
    )


def _saved(checkpointing: bool, tower: Tower, tokens: int) -> int:
    per_token = CHECKPOINT * tower.width if checkpointing else SAVED[0] * tower.mlp + SAVED[1] * tower.width
    return tokens * tower.layers * per_token


def _stages(
    config: DictConfig, shape: Shape, batch: MicroBatch, layer: tuple[int, int], per_logit: int, per_chunk: int
) -> Iterator[Term]:
    """The parts of a pass that follow one another: a vision layer, a text layer, the logits. The largest one counts."""
    for name, tower, tokens, pairs in (
        ("one text layer", shape.size.text, batch.tokens, batch.rows * shape.tokens**2),
        ("one vision layer", shape.size.vision, batch.rows * shape.patches, 0),
    ):
        size = tokens * (layer[0] * tower.mlp + layer[1] * tower.width) + MASK * pairs
        yield Term(
            name,
            size,
            f"{tokens:,} x ({layer[0]} x MLP {tower.mlp} + {layer[1]} x width {tower.width}) bytes",
            _smaller(batch),
        )
    vocabulary = shape.size.vocabulary
    if config.actor_rollout_ref.model.use_fused_kernels:
        weights = 2 * vocabulary * shape.size.text.width if per_chunk == CHUNK_BACKWARD else 0
        yield Term(
            "logits, in chunks",
            CHUNK * vocabulary * per_chunk + weights,
            f"{CHUNK} tokens x {vocabulary:,} words x {per_chunk} bytes"
            + (", and the gradient of one chunk for the output layer" if weights else ""),
        )
    else:
        yield Term(
            "logits",
            batch.tokens * vocabulary * per_logit,
            f"{batch.tokens:,} tokens x {vocabulary:,} words x {per_logit} bytes",
            f"set actor_rollout_ref.model.use_fused_kernels=true, or {_smaller(batch)}",
        )


def _smaller(batch: MicroBatch) -> str:
    return f"lower {batch.key} (now {batch.value})"


def _gathered(shape: Shape, training: bool) -> Iterator[Term]:
    """The groups of parameters that FSDP2 holds unsharded: the one that computes and the next one."""
    units = shape.size.units
    yield Term(
        "gathered weights",
        sum(units) * shape.compute,
        f"the two largest FSDP groups, {units[0]:,} and {units[1]:,} parameters x {shape.compute} bytes",
    )
    if training and not shape.size.adapter:
        yield Term(
            "gathered gradients",
            units[0] * (shape.compute + 4),
            f"the largest group x ({shape.compute} + 4) bytes, before they are shared out in float32",
        )


def _slack(terms: list[Term]) -> Term:
    return Term(
        "allocator", int(SLACK * sum(term.size for term in terms)), f"estimate: {SLACK:.0%} of activations and logits"
    )


def _transfer(config: DictConfig, shape: Shape) -> Iterator[Term]:
    bucket = config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes << 20
    yield Term(
        "vLLM's weights",
        rollout_weights(config, shape),
        f"{shape.size.parameters:,} parameters, {config.actor_rollout_ref.rollout.dtype}",
        f"raise {ROLLOUT}.tensor_model_parallel_size, which splits them",
    )
    key = f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"
    yield Term("buffer", bucket, key, f"lower {key}")
    yield Term(
        "largest tensor",
        2 * max(shape.size.tensors) * shape.param,
        f"{max(shape.size.tensors):,} parameters x {shape.param} bytes, gathered, and its part",
    )
