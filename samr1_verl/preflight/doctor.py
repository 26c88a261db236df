"""`samr1 doctor`: tests whether this environment can run a recipe.

verl hides a plug-in that fails to load, and Hydra accepts `+recipe=samr1` as a plain value where it does not find the
recipe. In both cases a run would train something else without an error. Therefore both are tested in a fresh
interpreter in another folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

from samr1_verl.preflight.finding import Finding
from samr1_verl.preflight.gpus import examine_gpus

DISTRIBUTION = "samr1-verl"
PROBE = "samr1_verl.preflight.probe"
TIMEOUT_S = 600


def examine(
    recipe: str,
    overrides: Sequence[str] = (),
    gpu_gb: float | None = None,
    host_gb: float | None = None,
    disk_gb: float | None = None,
) -> Iterator[Finding]:
    """The findings, in the order in which a run would meet the problems, each as soon as it is known.

    Args:
        recipe: name in the Hydra group `recipe`.
        overrides: `key=value`, as on verl's command line.
        gpu_gb: GB of each GPU for which memory is planned; None: this machine's GPUs.
        host_gb: GB of host memory per node; None: this machine's.
        disk_gb: GB of free disk; None: this machine's.
    """
    yield _versions()
    yield _entry_point()
    report = _probe(recipe, overrides)
    yield _plugin(report)
    finding = _recipe(recipe, report)
    yield finding
    if not finding.problems and report["plugin_error"] is None:
        config = OmegaConf.create(report["config"])
        yield from examine_gpus(config, report["gpus"])
        yield from _run(config, report["gpus"], (gpu_gb, host_gb, disk_gb))


def _versions() -> Finding:
    problems, named = [], []
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            problems.append(
                f"{requirement.name} is {installed or 'not installed'}, expected "
                f"{requirement.specifier or 'any version'}. Type: pip install '{requirement}'"
            )
        elif requirement.name in ("verl", "torch", "transformers"):
            named.append(f"{requirement.name} {installed}")
    return Finding("versions", ", ".join(named), problems)


def _entry_point() -> Finding:
    targets = [point.value for point in entry_points(group="verl.plugins") if point.name == "samr1"]
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    problems = []
    if targets != ["samr1_verl.plugin"]:
        problems.append(
            f"the entry point samr1 of the group verl.plugins is {targets or 'missing'}, expected "
            f"['samr1_verl.plugin']. Type: pip install --force-reinstall --no-deps {DISTRIBUTION}"
        )
    if policy != "auto" and "samr1" not in [name.strip() for name in policy.split(",")]:
        remedy = "Type: unset VERL_USE_EXTERNAL_PLUGINS"
        problems.append(f"VERL_USE_EXTERNAL_PLUGINS={policy} excludes the plug-in. {remedy}")
    return Finding("entry point", "verl.plugins: samr1", problems)


def _probe(recipe: str, overrides: Sequence[str]) -> dict:
    """The report of probe.py from a fresh interpreter in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", PROBE, json.dumps([recipe, list(overrides)])],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    error = f"a fresh Python could not import verl:\n{done.stderr.strip()[-3000:]}"
    lists: dict = {"missing": [], "sources": [], "recipes": []}
    return {**lists, "plugin_error": error, "compose_error": error, "config": None, "gpus": None}


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
        return Finding(subject, "", [f"Hydra finds no such recipe and would accept it as a plain value. {remedy}"])
    if report["compose_error"]:
        return Finding(subject, "", [f"it does not compose: {report['compose_error'].strip()}"])
    (provider, path), *hidden = report["sources"]  # in the order of Hydra's search path
    problems = [
        f"{path} (from {provider}) hides {ours}. Rename it, or remove its folder from Hydra's search path"
        for other, ours in hidden
        if other == "samr1"
    ]
    return Finding(subject, path, problems)


def _run(config: DictConfig, gpus: dict, sizes: tuple[float | None, float | None, float | None]) -> Iterator[Finding]:
    """Settings and inputs of the run, its memory plan, and the nodes of its cluster."""
    # Imported here, because they import the plug-in, and a failure of the plug-in is a finding.
    from samr1_verl.config import samr1_config
    from samr1_verl.preflight.callback import examine_config
    from samr1_verl.preflight.cluster import examine_cluster
    from samr1_verl.preflight.plan import Given, examine_memory

    problems: dict[str, list[str]] = {}
    for subject, detail, found in examine_config(config):
        problems[subject] = found
        yield Finding(subject, detail, found)
    if "resources" not in problems:
        return  # values of the wrong type: nothing can be computed with them
    settings = samr1_config(config)
    yield from examine_memory(config, settings, gpus, Given(*sizes))
    if not problems["resources"]:  # otherwise the address does not answer
        yield from examine_cluster(config, settings)
