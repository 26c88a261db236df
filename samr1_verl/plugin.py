"""What `import verl` loads, in every process, through the entry point group `verl.plugins`.

Importing this module has the side effect of registering the objective, the trainer and, on a machine without an
accelerator, the CPU backend. verl hides an exception raised here; `samr1 doctor` shows it.
"""

import importlib
import os

import wrapt
from verl.plugin.platform import PlatformRegistry


def accelerator_present() -> bool:
    """Whether one of verl's own platforms is on this machine.

    verl's check asks the driver's command-line tool as well, because Ray hides the GPUs from processes that reserve
    none: such a process on a GPU machine must not turn into a CPU run.
    """
    chosen = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if chosen:
        return chosen != "cpu"
    platforms = [PlatformRegistry.get(name) for name in PlatformRegistry.registered_names() if name != "cpu"]
    return any(platform().is_platform_available(use_smi_check=True) for platform in platforms if platform is not None)


def register() -> None:
    """Register everything a process of a run needs. Registering twice changes nothing."""
    if not accelerator_present():
        # Before anything imports verl's engines, which look the platform up while they are imported.
        importlib.import_module("samr1_verl.cpu").register()
    importlib.import_module("samr1_verl.training.objective")
    # verl's trainers take seconds to import and most processes need none, so ours is imported when they are.
    wrapt.register_post_import_hook(lambda _: importlib.import_module("samr1_verl.training.trainer"), "verl.trainer.ppo.v1")


register()
