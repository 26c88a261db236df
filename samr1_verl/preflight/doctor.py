"""`samr1 doctor`: whether this environment can run a recipe, proved rather than assumed.

verl hides a plug-in that fails to load, and Hydra takes `+recipe=samr1` for a plain value when it does not find the
recipe: both would train something else without a word. So both are tried in a fresh interpreter in another folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

DISTRIBUTION = "samr1-verl"
TIMEOUT_S = 600

# Runs in the fresh interpreter; prints one JSON object as its last line.
_PROBE = """
import json, sys, traceback
import verl
report = {"plugin_error": None, "missing": [], "compose_error": None, "sources": [], "recipes": [], "config": None}
loaded = "samr1_verl.plugin" in sys.modules
try:
    import samr1_verl.plugin as plugin  # raises again what verl has hidden
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    wanted = {
        "module samr1_verl.plugin": loaded,
        "policy loss samr1": "samr1" in POLICY_LOSS_REGISTRY,
        "advantage estimator samr1": "samr1" in ADV_ESTIMATOR_REGISTRY,
        "trainer samr1": "samr1" in TRAINER_REGISTRY,
        "platform cpu": plugin.accelerator_present() or "cpu" in PlatformRegistry.registered_names(),
    }
    report["missing"] = [name for name, found in wanted.items() if not found]
except BaseException:
    report["plugin_error"] = traceback.format_exc()
try:
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf
    recipe, overrides = json.loads(sys.argv[1])
    with initialize_config_module("verl.trainer.config", version_base=None):
        loader = GlobalHydra.instance().config_loader()
        report["recipes"] = loader.get_group_options("recipe")
        for source in loader.get_sources():
            if source.is_config(f"recipe/{recipe}"):
                report["sources"].append([source.provider, f"{source.full_path()}/recipe/{recipe}.yaml"])
        config = compose("ppo_trainer", [f"+recipe={recipe}", *overrides])
    report["config"] = OmegaConf.to_yaml(config)
except Exception:
    report["compose_error"] = traceback.format_exc(limit=0)
print(json.dumps(report))
"""


@dataclass
class Finding:
    """One thing that was looked at: `problems` is empty when it holds, else each says what to type."""

    subject: str
    detail: str
    problems: list[str] = field(default_factory=list)


def examine(recipe: str, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Findings in the order a run would meet them, each as soon as it is known.

    Args:
        recipe: name in the Hydra group `recipe`.
        overrides: further `key=value`, as on verl's command line.
    """
    yield _versions()
    yield _entry_point()
    report = _probe(recipe, overrides)
    yield _plugin(report)
    found = _recipe(recipe, report)
    yield found
    if not found.problems and report["plugin_error"] is None:
        yield from _inputs(OmegaConf.create(report["config"]))


def _versions() -> Finding:
    problems, named = [], []
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            problems.append(
                f"{requirement.name} is {found or 'not installed'}, expected {requirement.specifier or 'any version'}. "
                f"Type: pip install '{requirement}'"
            )
        elif requirement.name in ("verl", "torch", "transformers"):
            named.append(f"{requirement.name} {found}")
    return Finding("versions", ", ".join(named), problems)


def _entry_point() -> Finding:
    found = [point.value for point in entry_points(group="verl.plugins") if point.name == "samr1"]
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    problems = []
    if found != ["samr1_verl.plugin"]:
        problems.append(
            f"the entry point samr1 of the group verl.plugins is {found or 'missing'}, expected ['samr1_verl.plugin']. "
            f"Type: pip install --force-reinstall --no-deps {DISTRIBUTION}"
        )
    if policy != "auto" and "samr1" not in [name.strip() for name in policy.split(",")]:
        remedy = "Type: unset VERL_USE_EXTERNAL_PLUGINS"
        problems.append(f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps the plug-in out. {remedy}")
    return Finding("entry point", "verl.plugins: samr1", problems)


def _probe(recipe: str, overrides: Sequence[str]) -> dict:
    """The report of _PROBE from a fresh interpreter in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, json.dumps([recipe, list(overrides)])],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    error = f"a fresh Python could not import verl:\n{done.stderr.strip()[-3000:]}"
    return {"plugin_error": error, "missing": [], "compose_error": error, "sources": [], "recipes": [], "config": None}


def _plugin(report: dict) -> Finding:
    problems = []
    if report["plugin_error"]:
        problems.append(f"the plug-in fails to load, which verl does not show:\n{report['plugin_error'].strip()}")
    elif report["missing"]:
        problems.append(
            f"after `import verl` there is no {', '.join(report['missing'])}. "
            f"Type: pip install --force-reinstall --no-deps {DISTRIBUTION}"
        )
    return Finding("plug-in", "policy loss, advantage estimator, trainer and platform registered", problems)


def _recipe(recipe: str, report: dict) -> Finding:
    subject = f"+recipe={recipe}"
    if not report["sources"]:
        known = ", ".join(report["recipes"]) or "none, so the Hydra plug-in of samr1-verl was not found"
        remedy = f"Known recipes: {known}. Type: pip install --force-reinstall --no-deps {DISTRIBUTION}"
        return Finding(subject, "", [f"Hydra finds no such recipe and would take it for a plain value. {remedy}"])
    if report["compose_error"]:
        return Finding(subject, "", [f"it does not compose: {report['compose_error'].strip()}"])
    (provider, path), *hidden = report["sources"]  # in the order in which Hydra looks
    problems = [
        f"{path} (from {provider}) hides {ours}. Rename it, or take its folder off Hydra's search path"
        for other, ours in hidden
        if other == "samr1"
    ]
    return Finding(subject, path, problems)


def _inputs(config: DictConfig) -> Iterator[Finding]:
    # Imported only now: it imports the plug-in, whose own failure is a finding.
    from samr1_verl.preflight.callback import examine_config

    for subject, detail, problems in examine_config(config):
        yield Finding(subject, detail, problems)
