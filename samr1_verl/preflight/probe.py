"""The part of `samr1 doctor` that runs in a fresh interpreter: verl's plug-in loading, Hydra's recipes, the GPUs.

    python -m samr1_verl.preflight.probe '["samr1", ["trainer.nnodes=1"]]'

prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from samr1_verl.preflight.machine import gpu_report


def probe(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The report for doctor.py.

    Its keys: `plugin_error` and `compose_error`, a traceback or None; `missing`, the registrations that are missing;
    `sources`, provider and path of each recipe of this name, in the order of Hydra's search path; `recipes`, the names
    of all recipes; `config`, the composed configuration as YAML, or None; `gpus`, the report of machine.gpu_report.
    """
    report: dict[str, Any] = {"plugin_error": None, "missing": [], "compose_error": None, "sources": [], "recipes": []}
    report |= {"config": None, "gpus": gpu_report()}
    import_module("verl")
    loaded = "samr1_verl.plugin" in sys.modules
    try:
        report["missing"] = _missing(loaded)
    except BaseException:  # verl hides every exception of the plug-in
        report["plugin_error"] = traceback.format_exc()
    try:
        _compose(report, recipe, overrides)
    except Exception:
        report["compose_error"] = traceback.format_exc(limit=0)
    return report


def _missing(loaded: bool) -> list[str]:
    """The registrations that `import verl` did not make. Raises the plug-in's own exception, which verl hides."""
    import_module("samr1_verl.plugin")
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    from samr1_verl.cpu import accelerator_present

    registered = {
        "module samr1_verl.plugin": loaded,
        "policy loss samr1": "samr1" in POLICY_LOSS_REGISTRY,
        "advantage estimator samr1": "samr1" in ADV_ESTIMATOR_REGISTRY,
        "trainer samr1": "samr1" in TRAINER_REGISTRY,
        "platform cpu": accelerator_present() or "cpu" in PlatformRegistry.registered_names(),
    }
    return [name for name, is_there in registered.items() if not is_there]


def _compose(report: dict[str, Any], recipe: str, overrides: Sequence[str]) -> None:
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    with initialize_config_module("verl.trainer.config", version_base=None):
        loader = GlobalHydra.instance().config_loader()
        report["recipes"] = loader.get_group_options("recipe")
        for source in loader.get_sources():
            if source.is_config(f"recipe/{recipe}"):
                report["sources"].append([source.provider, f"{source.full_path()}/recipe/{recipe}.yaml"])
        config = compose("ppo_trainer", [f"+recipe={recipe}", *overrides])
    report["config"] = OmegaConf.to_yaml(config)


if __name__ == "__main__":
    print(json.dumps(probe(*json.loads(sys.argv[1]))))  # noqa: T201 - the report is this program's output
