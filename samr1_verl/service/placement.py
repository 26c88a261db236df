"""The node and the GPU of a replica of the Ray Serve application.

verl's placement groups reserve every GPU. With `gpus: shared` a replica therefore reserves no GPU and picks one itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from samr1_verl.config import ConfigError, RayServiceConfig

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
MAX_ONGOING = 32  # maximum number of concurrent requests per replica: a few groups of rollouts
TARGET_ONGOING = 16  # concurrent requests per replica at which autoscaling aims
HEALTH_S = 10.0  # seconds between two health checks
# Ray hides the GPUs from actors that reserve none where this variable is 1; older versions: where it is not 0.
KEEP_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
VISIBLE = "CUDA_VISIBLE_DEVICES"
NODE_LABEL = "ray.io/node-id"  # Ray's own label of every node


def deployment_options(config: RayServiceConfig, nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The options of the Ray Serve deployment.

    Args:
        config: `samr1.segmenter.service.ray`.
        nodes: the cluster's nodes, as `ray.nodes()` gives them. Replicas that share GPUs run on nodes that have some.

    Raises:
        ConfigError: GPUs are to be shared, and no node has one.
    """
    actor: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": 0.0 if config.gpus == "shared" else config.gpus}
    if config.gpus == "shared":
        with_gpus = sorted(node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0) > 0)
        if not with_gpus:
            raise ConfigError(
                "no_gpu",
                "samr1.segmenter.service.ray.gpus",
                f"found shared, and none of the cluster's {len(nodes)} nodes has a GPU. Set it to 0 to run on the CPU",
            )
        actor["runtime_env"] = {"env_vars": {KEEP_GPUS: "0"}}
        actor["label_selector"] = {NODE_LABEL: f"in({', '.join(with_gpus)})"}
    options: dict[str, Any] = {
        "ray_actor_options": actor,
        "max_ongoing_requests": MAX_ONGOING,
        "health_check_period_s": HEALTH_S,
        "health_check_timeout_s": 3 * HEALTH_S,
        "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
    }
    if config.max_replicas > config.min_replicas:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=TARGET_ONGOING,
        )
    else:
        options["num_replicas"] = config.min_replicas
    return options


def take_shared_gpu(local_rank: int) -> None:
    """Let this process see one GPU alone. It must not have used CUDA before.

    Args:
        local_rank: number of the replica on its node, from 0.

    Raises:
        ConfigError: the node has no visible GPU.
    """
    gpus = visible_gpus(os.environ.get(VISIBLE))
    os.environ[VISIBLE] = shared_gpu(gpus, [free_memory(gpu) for gpu in gpus], local_rank)


def visible_gpus(visible: str | None) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names; None: all GPUs of the node."""
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def shared_gpu(gpus: Sequence[str], free: Sequence[int], local_rank: int) -> str:
    """The GPU of a replica: the one with the most free memory for the first replica, the next one for the second.

    Args:
        gpus: the visible GPUs.
        free: free bytes of each; 0 where it is not known.
        local_rank: as for `take_shared_gpu`.

    Raises:
        ConfigError: there is no GPU.
    """
    if not gpus:
        raise ConfigError(
            "no_gpu",
            "samr1.segmenter.service.ray.gpus",
            f"found shared, and this node shows no GPU ({VISIBLE} is empty). Set it to 0 to run on the CPU",
        )
    order = sorted(range(len(gpus)), key=lambda index: -free[index])  # stable: equal ones stay in their order
    return gpus[order[local_rank % len(gpus)]]


def free_memory(gpu: str) -> int:
    """Free bytes of a GPU, an index or a UUID, from the driver; 0: the driver does not tell. Starts no CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except pynvml.NVMLError:
        return 0
