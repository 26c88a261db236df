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
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

DISTRIBUTION = "samr1-verl"
PROBE = "samr1_verl.preflight.probe"
TIMEOUT_S = 600


@dataclass
class Finding:
    """The result for one subject. `problems` is empty where there is none; each problem says what to do."""

    subject: str
    detail: str
    problems: list[str] = field(default_factory=list)


def examine(recipe: str, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """The findings, in the order in which a run would meet the problems, each as soon as it is known.

    Args:
        recipe: name in the Hydra group `recipe`.
        overrides: `key=value`, as on verl's command line.
    """
    yield _versions()
    yield _entry_point()
    report = _probe(recipe, overrides)
    yield _plugin(report)
    finding = _recipe(recipe, report)
    yield finding
    if not finding.problems and report["plugin_error"] is None:
        yield from _inputs(OmegaConf.create(report["config"]))


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


def _inputs(config: DictConfig) -> Iterator[Finding]:
    # Imported here, because it imports the plug-in, and a failure of the plug-in is a finding.
    from samr1_verl.preflight.callback import examine_config

    for subject, detail, problems in examine_config(config):
        yield Finding(subject, detail, problems)
