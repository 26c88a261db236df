"""The memory plan of a node's host memory, and of the disk that takes the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig

from samr1_verl.config import ACTOR, ROLLOUT, SegmenterConfig
from samr1_verl.preflight.gpu_memory import FSDP, gpu_stages, rollout_weights
from samr1_verl.preflight.memory import GB, Shape, Stage, Term, gb
from samr1_verl.preflight.segmenter_size import embedding_bytes, weight_bytes

PROCESS = 600_000_000  # measured: 0.55 GB of its own after the imports of verl, torch, transformers and Ray
CUDA_PROCESS = 4 * GB  # estimate: the same with CUDA's libraries and pinned buffers
CONTROL = 6  # processes: task runner, its controller, reward manager, Ray's own


def host_stage(config: DictConfig, segmenter: SegmenterConfig | None, shape: Shape, rows: tuple[int, int]) -> Stage:
    """The terms of one node's host memory; the nodes are alike.

    Args:
        config: a composed recipe.
        segmenter: its segmenter; None: the run needs none.
        shape: the run's numbers.
        rows: number of rows of the training and of a validation.
    """
    terms = [*_models(config, shape), *_data(config, shape, rows), *_processes(config, shape)]
    if segmenter is not None:
        terms += _segmenter(config, segmenter, sum(rows))
    if shape.on_cpu:
        largest = max(gpu_stages(config, None, shape, None), key=lambda stage: stage.size)
        remedy = largest.remedies(1)
        terms.append(
            Term("training", shape.local * largest.size, f"{shape.local} workers, stage: {largest.name}", remedy)
        )
    return Stage("host memory per node", tuple(terms))


def pinned(tensors: tuple[int, ...], ranks: int, number: int) -> int:
    """Bytes of one worker's shards in pinned memory, whose allocator rounds each tensor up to a power of two."""
    return sum(1 << max(0, (-(-tensor // ranks) * number - 1).bit_length()) for tensor in tensors)


def _models(config: DictConfig, shape: Shape) -> Iterator[Term]:
    size, fsdp = shape.size, config.actor_rollout_ref.actor.fsdp_config
    if shape.reference:
        on_host = shape.local * (
            size.parameters * shape.reference if shape.on_cpu else pinned(size.tensors, shape.ranks, shape.reference)
        )
        yield Term(
            "reference model",
            on_host,
            f"{size.parameters:,} parameters x {shape.reference} bytes, on {shape.local} of {shape.ranks} workers; "
            "FSDP2 keeps a model that is not trained in pinned memory, which rounds each tensor up to a power of two",
            "set actor_rollout_ref.ref.fsdp_config.model_dtype=bf16, or train with LoRA",
        )
    if fsdp.offload_policy:
        moved = (
            pinned(size.tensors, shape.ranks, shape.param) * (1 + size.trained / size.parameters)
            + 2 * size.trained * shape.param / shape.ranks
        )
        yield Term(
            "policy, gradients and states",
            int(shape.local * moved),
            f"{FSDP}.offload_policy: {shape.param} bytes x (weights + gradients + 2 moments)",
        )
    else:
        share = shape.local * shape.param // shape.ranks
        if fsdp.param_offload:
            yield Term(
                "policy weights",
                size.parameters * share,
                f"{FSDP}.param_offload: {size.parameters:,} parameters x {shape.param} bytes",
            )
        if fsdp.optimizer_offload:
            yield Term(
                "optimizer states",
                2 * size.trained * share,
                f"{FSDP}.optimizer_offload: 2 moments x {size.trained:,} parameters x {shape.param} bytes",
            )
    copies = shape.local if size.tied else 1
    loaders = f"each of the {copies} workers" if size.tied else "one worker"
    yield Term(
        "loading or saving",
        copies * size.parameters * shape.param,
        f"{loaders} has all {size.parameters:,} parameters x {shape.param} bytes while the policy is loaded",
    )
    if size.adapter and config.actor_rollout_ref.rollout.name == "vllm":
        asleep = shape.local * rollout_weights(config, shape)
        yield Term(
            "vLLM's weights",
            asleep,
            f"with LoRA, {shape.local} engines keep their weights in host memory while they sleep",
        )


def _data(config: DictConfig, shape: Shape, rows: tuple[int, int]) -> Iterator[Term]:
    """verl keeps the pixel values of every rollout of a step, or of a whole validation, in TransferQueue."""
    validation = rows[1] * config.actor_rollout_ref.rollout.val_kwargs.n
    step = shape.rollouts
    remedy = "lower data.val_max_samples, or a smaller samr1.policy_size"
    if step >= validation:
        remedy = "lower data.train_batch_size, or a smaller samr1.policy_size"
    yield Term(
        "pixel values of rollouts",
        max(step, validation) * shape.image_bytes,
        f"{max(step, validation)} rollouts ({step} per step, {validation} per validation) x "
        f"{shape.image_bytes / 1e6:.1f} MB",
        remedy,
    )


def _processes(config: DictConfig, shape: Shape) -> Iterator[Term]:
    storage = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    few = config.actor_rollout_ref.rollout.agent.num_workers + config.reward.num_workers + storage + CONTROL
    yield Term(
        "processes",
        few * PROCESS,
        f"{few} processes (agent loops, rewards, storage, control) x {PROCESS / GB:.1f} GB",
        f"lower {ROLLOUT}.agent.num_workers",
    )
    if shape.on_cpu:
        yield Term(
            "training processes",
            2 * shape.local * PROCESS,
            f"{shape.local} workers and {shape.local} rollout servers x {PROCESS / GB:.1f} GB",
        )
    else:
        yield Term(
            "GPU processes",
            2 * shape.local * CUDA_PROCESS,
            f"{shape.local} workers and {shape.local} vLLM engines x {CUDA_PROCESS / GB:.0f} GB (estimate)",
        )


def _segmenter(config: DictConfig, segmenter: SegmenterConfig, rows: int) -> Iterator[Term]:
    service = segmenter.service
    if service.mode == "http":
        return
    if service.mode == "ray" and service.ray is not None:
        images, where = [rows] * service.ray.max_replicas, "replicas, all on one node"
    else:  # the task runner draws the samples, so it has a segmenter of its own
        samples = [config.samr1.samples] if config.samr1.samples else []
        images, where = [*[rows] * config.reward.num_workers, *samples], "processes: reward workers and task runner"
    each, kept = embedding_bytes(segmenter), int(service.cache_gb * GB)
    yield Term(
        "segmenter's caches",
        sum(min(kept, count * each) for count in images),
        f"{len(images)} {where}, at most samr1.segmenter.service.cache_gb {service.cache_gb:g} each; {rows} images x "
        f"{each / 1e6:.1f} MB",
        "lower samr1.segmenter.service.cache_gb",
    )
    weights, source = weight_bytes(segmenter)
    size = len(images) * (weights + PROCESS)
    yield Term("segmenter's processes", size, f"{len(images)} x ({source}, {PROCESS / GB:.1f} GB of libraries)")


def checkpoint_bytes(config: DictConfig, shape: Shape) -> tuple[int, str]:
    """Bytes of one checkpoint, and their formula. Held against files of a run: parameters x 4 bytes per content."""
    kept, size = config.actor_rollout_ref.actor.checkpoint, shape.size
    contents = list(kept.save_contents)
    parts = []
    if "model" in contents:
        parameters = size.trained if kept.get("save_lora_only") else size.parameters
        parts.append((parameters, f"weights {parameters:,}"))
    if "optimizer" in contents:
        parts.append((2 * size.trained, f"2 moments x {size.trained:,}"))
    if "hf_model" in contents:
        parts.append((size.parameters, f"hf_model {size.parameters:,}"))
    return shape.param * sum(
        count for count, _ in parts
    ), f"({' + '.join(text for _, text in parts)}) x {shape.param} bytes"


def kept_checkpoints(config: DictConfig, train_rows: int) -> tuple[int, str]:
    """The largest number of checkpoints at a time, and the reason. verl removes old ones before it writes a new one."""
    trainer = config.trainer
    if trainer.save_freq <= 0:
        return 0, "trainer.save_freq is not positive: none"
    keep = trainer.max_actor_ckpt_to_keep
    if keep and keep > 0:
        return (
            (2, "the last one, and the next while it is written")
            if keep == 1
            else (keep, "trainer.max_actor_ckpt_to_keep")
        )
    if not trainer.total_training_steps and not train_rows:
        return 1, "at least; the number of steps is not known, because data.train_files is not there"
    steps = trainer.total_training_steps or trainer.total_epochs * (train_rows // config.data.train_batch_size)
    return -(-steps // trainer.save_freq), f"{steps} steps / trainer.save_freq {trainer.save_freq}: all are kept"


def disk_stage(config: DictConfig, shape: Shape, train_rows: int) -> Stage:
    """The checkpoints of a run on the disk of trainer.default_local_dir."""
    size, formula = checkpoint_bytes(config, shape)
    count, why = kept_checkpoints(config, train_rows)
    remedy = (
        "set trainer.default_local_dir to a larger disk, lower trainer.max_actor_ckpt_to_keep, or set "
        f"{ACTOR}.checkpoint.save_contents=[model,extra], from which no run is resumed exactly"
    )
    return Stage(
        f"checkpoints in {config.trainer.default_local_dir}",
        (Term("checkpoints", count * size, f"{count} ({why}) x {gb(size).strip()}: {formula}", remedy),),
    )


def embeddings_stage(segmenter: SegmenterConfig, images: int) -> Stage:
    """The embeddings that `cache_dir` keeps."""
    each = embedding_bytes(segmenter)
    return Stage(
        f"embeddings in {segmenter.service.cache_dir}",
        (
            Term(
                "embeddings",
                images * each,
                f"{images} images x {each / 1e6:.1f} MB",
                "set samr1.segmenter.service.cache_dir=null",
            ),
        ),
    )


def row_counts(config: DictConfig) -> tuple[int, int]:
    """Rows of training and of one validation, within data.{train,val}_max_samples; unreadable files count 0 rows."""
    return _rows(config.data.train_files, config.data.train_max_samples), _rows(
        config.data.val_files, config.data.val_max_samples
    )


def _rows(files: str | ListConfig, limit: int) -> int:
    total = 0
    for file in [files] if isinstance(files, str) else files:
        try:
            total += pq.read_metadata(file).num_rows
        except (OSError, ValueError):  # the check of the data reports it
            return max(0, limit)
    return min(total, limit) if limit > 0 else total
