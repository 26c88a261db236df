"""The module that `import verl` loads in every process, through the entry point group `verl.plugins`.

The import of this module registers the objective, the trainer, the repairs of verl's functions and, on a machine
without an accelerator, the CPU backend. verl hides an exception of this module; `samr1 doctor` shows it.
"""

import importlib

import wrapt

from samr1_verl import cpu


def register() -> None:
    """Register everything that a process of a run needs. A second call changes nothing."""
    if not cpu.accelerator_present():
        # Before any import of verl's engines, which read the platform during their import.
        cpu.register()
    importlib.import_module("samr1_verl.training.repairs").register()
    # These modules of verl take a second and more to import. A process that needs none of them imports none of ours.
    _import_after("verl.trainer.ppo.core_algos", "samr1_verl.training.objective")
    _import_after("verl.trainer.ppo.v1", "samr1_verl.training.trainer")


def _import_after(verls: str, ours: str) -> None:
    """Import a module of ours when verl's has been imported."""
    wrapt.register_post_import_hook(lambda _: importlib.import_module(ours), verls)


register()
