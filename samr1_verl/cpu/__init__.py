"""verl on a machine without an accelerator: platform, engine and rollout, through verl's registries.

Two parts of verl have no registry. `repairs.py` adapts the first, and `register` below the second:

- the backend string of the process group, which names gloo twice where the device is the CPU;
- the dictionary of rollout adapters, which is private.

tests/cpu/test_registration.py fails when a later verl no longer needs one of these adaptations.
"""

import importlib
import os
from types import ModuleType

import wrapt

ROLLOUT = "transformers"  # the value of actor_rollout_ref.rollout.name


def accelerator_present() -> bool:
    """Whether this machine has a device of one of verl's own platforms, or VERL_PLATFORM names one.

    The check also runs the driver's command-line tool, because Ray hides the GPUs from processes that reserve none.
    Such a process on a GPU machine must not count as a CPU run.
    """
    # Not at the top: `import verl` imports plugin.py, which must find this module complete.
    from verl.plugin.platform import PlatformRegistry

    chosen = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if chosen:
        return chosen != "cpu"
    platforms = [PlatformRegistry.get(name) for name in PlatformRegistry.registered_names() if name != "cpu"]
    return any(platform().is_platform_available(use_smi_check=True) for platform in platforms if platform is not None)


def register() -> None:
    """Register the CPU backend with verl, before verl's engines are imported. A second call changes nothing.

    Only the platform is imported here, because the import of engine and rollout takes seconds and most processes of a
    run need neither. They are imported when verl imports the module that looks them up.
    """
    importlib.import_module("samr1_verl.cpu.platform")
    repairs = importlib.import_module("samr1_verl.cpu.repairs")
    repairs.register()
    wrapt.register_post_import_hook(_register_engine, "verl.workers.engine")
    wrapt.register_post_import_hook(_register_adapter, "verl.workers.rollout.base")
    wrapt.register_post_import_hook(_register_replica, "verl.workers.rollout.replica")


def _register_engine(_: ModuleType) -> None:
    importlib.import_module("samr1_verl.cpu.engine")


def _register_adapter(base: ModuleType) -> None:
    base._ROLLOUT_REGISTRY[(ROLLOUT, "async")] = "samr1_verl.cpu.rollout.ServerAdapter"


def _register_replica(replica: ModuleType) -> None:
    replica.RolloutReplicaRegistry.register(
        ROLLOUT, lambda: importlib.import_module("samr1_verl.cpu.rollout").TransformersReplica
    )
