"""Checks of every node of a Ray cluster: images, weights, versions and host memory.

verl places its task runner, agent loops, reward workers and rollout servers on any node. A file that is missing on one
node ends a run in its first step, after minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from samr1_verl.config import Samr1Config
from samr1_verl.preflight import machine
from samr1_verl.preflight.finding import Finding
from samr1_verl.preflight.inputs import uses_segmenter
from samr1_verl.rows.record import DataError, read_table

TIMEOUT_S = 120  # for all nodes: a node starts a process and imports nothing large


def cluster_address(config: DictConfig) -> str | None:
    """The address of the cluster in which the run will train; None: the run starts Ray on this machine."""
    address = config.ray_kwargs.ray_init.get("address") or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def examine_cluster(config: DictConfig, settings: Samr1Config) -> Iterator[Finding]:
    """One finding per node; none where the run starts Ray on this machine."""
    address = cluster_address(config)
    if address is None:
        return
    try:
        nodes = _ask(address, _files(config), _models(config, settings))
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        yield Finding(
            "cluster",
            address,
            [
                f"ray_kwargs.ray_init.address (or RAY_ADDRESS) is {address}: {str(error).strip().splitlines()[0]}. "
                "Start the cluster with ray start --head, correct the address, use the same Ray and Python everywhere"
            ],
        )
        return
    here = machine.versions()
    for name, answer in nodes.items():
        yield Finding(f"node {name}", _detail(answer), list(_problems(name, answer, here, settings)))


def _files(config: DictConfig) -> list[str]:
    """Absolute paths of the data files and their images; a file that cannot be read here is left to its own check."""
    paths: dict[str, None] = {}
    for files in (config.data.train_files, config.data.val_files):
        for file in [files] if isinstance(files, str) else files:
            path = Path(file).expanduser().absolute()
            try:
                images = read_table(path).column("image").unique().to_pylist()
            except DataError:
                continue
            paths[str(path)] = None
            paths.update(dict.fromkeys(str(path.parent / image) for image in images))
    return list(paths)


def _models(config: DictConfig, settings: Samr1Config) -> dict[str, str]:
    models = {"actor_rollout_ref.model.path": str(config.actor_rollout_ref.model.path)}
    if uses_segmenter(config) and settings.segmenter.service.mode != "http":
        models["samr1.segmenter.path"] = settings.segmenter.path
    return {key: _absolute(path) for key, path in models.items()}


def _absolute(path: str) -> str:
    """A folder of this machine as an absolute path; a hub id stays as it is."""
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path


def _ask(address: str, files: list[str], models: dict[str, str]) -> dict[str, Any]:
    """The answer of every node by its name: machine.facts, or a message where it did not answer."""
    ray.cloudpickle.register_pickle_by_value(machine)  # nodes need not have this package
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="samr1-doctor")
    try:
        shared = ray.put(files)
        asked = {}
        for node in ray.nodes():
            if node["Alive"] and (node["Resources"].get("CPU", 0) or node["Resources"].get("GPU", 0)):
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                facts = ray.remote(num_cpus=0, max_retries=0)(machine.facts).options(scheduling_strategy=here)
                asked[f"{node['NodeManagerAddress']} {node['NodeID'][:6]}"] = facts.remote(shared, models)
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=TIMEOUT_S)
        return {name: _answer(reference) for name, reference in asked.items()}
    finally:
        ray.cloudpickle.unregister_pickle_by_value(machine)
        if started:
            ray.shutdown()


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {error}"


def _detail(answer: Any) -> str:
    if isinstance(answer, str):
        return "no answer"
    models = ", ".join(f"{key}: {state}" for key, state in answer["models"].items())
    return f"{answer['host']}, {answer['memory'][1] / 1e9:.1f} GB of host memory free, {models}"


def _problems(name: str, answer: Any, here: Mapping[str, str | None], settings: Samr1Config) -> Iterator[str]:
    if isinstance(answer, str):
        yield f"node {name} does not answer within {TIMEOUT_S} s: {answer}. Look at ray status, and restart the node"
        return
    count, first = answer["missing"]
    if count:
        yield (
            f"node {name}: {count} files of data.train_files and data.val_files (rows and images) are missing, the "
            f"first is {first}, expected the same paths on every node. Copy them, or use a folder that all nodes share"
        )
    commands = {
        "actor_rollout_ref.model.path": settings.prepare.model,
        "samr1.segmenter.path": settings.prepare.segmenter,
    }
    for key, state in answer["models"].items():
        if state == "missing":
            yield (
                f"node {name}: {key} is missing, expected a folder or an entry of its hub cache. On that node: "
                f"{commands[key]}"
            )
    for package, version in here.items():
        found = answer["versions"].get(package)
        if found != version:
            remedy = f"pip install '{package}=={version}'" if version else f"pip uninstall {package}"
            remedy = f"install Python {version}" if package == "python" else f"type: {remedy}"
            yield (
                f"node {name}: {package} is {found or 'not installed'}, here {version or 'not installed'}. On that "
                f"node {remedy}"
            )
