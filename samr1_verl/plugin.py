"""The module that `import verl` loads, in every process, through the entry point group `verl.plugins`.

Importing this module has the side effect of registering the objective, the trainer and, on a machine without an
accelerator, the CPU backend. verl hides an exception raised here; `samr1 doctor` shows it.
"""

import importlib

import wrapt

from samr1_verl import cpu


def register() -> None:
    """Register everything a process of a run needs. Registering twice changes nothing."""
    if not cpu.accelerator_present():
        # Before anything imports verl's engines, which look the platform up while they are imported.
        cpu.register()
    importlib.import_module("samr1_verl.training.objective")
    # verl's trainers take seconds to import and most processes need none, so ours is imported when they are.
    wrapt.register_post_import_hook(
        lambda _: importlib.import_module("samr1_verl.training.trainer"), "verl.trainer.ppo.v1"
    )


register()
