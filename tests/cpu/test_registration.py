"""On a machine without an accelerator, `import verl` is enough to find platform, engine and rollout."""

from __future__ import annotations

import subprocess
import sys

import pytest
from verl.plugin.platform import PlatformBase, PlatformRegistry, get_platform
from verl.utils import device as verl_device
from verl.utils.memory_utils import aggressive_empty_cache, get_memory_info
from verl.workers.engine import EngineRegistry
from verl.workers.rollout import base, replica

from samr1_verl.cpu import device
from samr1_verl.cpu.engine import CPUEngine
from samr1_verl.cpu.platform import CPUPlatform
from samr1_verl.cpu.rollout import ServerAdapter, TransformersReplica


def test_the_cpu_is_verls_platform() -> None:
    platform = get_platform()
    assert isinstance(platform, CPUPlatform)
    assert platform.is_ipc_supported() is False  # verl's vLLM server then takes weights from shared memory
    assert platform.ray_resource_options(2) == {"num_gpus": 2}
    assert verl_device.get_device_name() == "cpu"
    assert verl_device.get_nccl_backend() == "gloo"


def test_every_question_a_platform_can_be_asked_has_an_answer() -> None:
    platform = CPUPlatform()
    for name in PlatformBase.__abstractmethods__:
        assert name in vars(CPUPlatform), name
    platform.manual_seed(0)
    state = device.get_rng_state()
    platform.manual_seed_all(0)
    assert device.get_rng_state().equal(state)
    with platform.nvtx_range("a name"):
        platform.synchronize()
    free, total = device.mem_get_info()
    assert 0 < free < total
    assert 0 < device.memory_allocated() <= total
    assert device.max_memory_allocated() > 10 << 20


def test_verls_helpers_accept_the_device_module() -> None:
    aggressive_empty_cache(force_sync=True)
    assert get_memory_info is not None
    assert verl_device.get_torch_device() is device


def test_the_engine_and_the_rollout_are_found_by_name() -> None:
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is CPUEngine
    assert base.get_rollout_class("transformers") is ServerAdapter
    assert replica.get_rollout_replica_class("transformers") is TransformersReplica


def test_registering_twice_changes_nothing() -> None:
    from samr1_verl import cpu

    before = base.get_rollout_class("transformers"), EngineRegistry.get_engine_cls("language_model", "fsdp2")
    cpu.register()
    assert before == (base.get_rollout_class("transformers"), EngineRegistry.get_engine_cls("language_model", "fsdp2"))


@pytest.mark.slow
def test_a_process_that_neither_trains_nor_generates_imports_no_engine() -> None:
    code = (
        "import sys, verl, samr1_verl.plugin\n"
        "loaded = [m for m in sys.modules if m.startswith(('verl.workers.engine', 'samr1_verl.cpu.'))]\n"
        "print(','.join(sorted(loaded)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1].split(",") == [
        "samr1_verl.cpu.device",
        "samr1_verl.cpu.platform",
        "samr1_verl.cpu.repairs",
    ]


def test_verl_itself_still_has_no_cpu_backend_and_no_hook_for_rollout_adapters() -> None:
    """When this fails, verl has gained one: use it in place of ours, or of `_ROLLOUT_REGISTRY`."""
    assert set(PlatformRegistry.registered_names()) == {"nvidia", "huawei", "amd", "cpu"}
    assert {name for name, _ in base._ROLLOUT_REGISTRY} == {"vllm", "sglang", "trtllm", "transformers"}
    hooks = [name for name in vars(base) if "regist" in name.lower() and name != "_ROLLOUT_REGISTRY"]
    assert hooks == []
