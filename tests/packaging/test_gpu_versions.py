"""The tested versions for GPUs fit every requirement that can be read here, and the Dockerfile installs them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "-c constraints-gpu.txt '.[vllm,service,report]' ijson"
EXTRAS = {"vllm", "service", "report"}
# Python 3.11 on Linux: what the file is made for.
MACHINE = {"python_version": "3.11", "python_full_version": "3.11.7", "sys_platform": "linux"}
MACHINE |= {"platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
MACHINE |= {"platform_python_implementation": "CPython", "os_name": "posix"}
# Versions that differ from constraints.txt, because vLLM 0.24.0 or a package that it brings asks for another one.
OTHERS = {"cuda-bindings", "fastapi", "numpy", "opencv-python-headless"}


def pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "every line is name==version"
    versions = {canonicalize_name(package): Version(version) for package, version in pairs}
    assert len(versions) == len(pairs), "a package is named twice"
    return versions


@pytest.fixture(scope="module")
def for_gpus() -> dict[str, Version]:
    return pins("constraints-gpu.txt")


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**MACHINE, "extra": extra}) for extra in extras or {""})


def requirements_of(versions: dict[str, Version]) -> Iterator[tuple[str, Requirement]]:
    """Every requirement behind the README's line: ours, and those of the packages that lie here in the same version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    waiting = [("samr1-verl", Requirement(line)) for line in [*own, "ijson"]]
    seen = set()
    while waiting:
        source, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        yield source, requirement
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # vLLM and what only it needs
        if name in versions and Version(found.version) == versions[name]:
            more = [Requirement(line) for line in found.requires or []]
            waiting += [(name, one) for one in more if applies(one, {"", *requirement.extras})]


def test_every_requirement_is_named_and_fits(for_gpus: dict[str, Version]) -> None:
    found = list(requirements_of(for_gpus))
    assert len(found) > 250 and {"verl", "ray", "transformers", "torch"} <= {source for source, _ in found}
    for source, requirement in found:
        name = canonicalize_name(requirement.name)
        assert name in for_gpus, f"{source} needs {requirement}, and the file lacks it"
        fits = requirement.specifier.contains(for_gpus[name], prereleases=True)
        assert fits, f"{source} needs {requirement}, the file has {for_gpus[name]}"


def test_the_extra_for_data_is_not_installed_beside_vllm(for_gpus: dict[str, Version]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (opencv,) = (Requirement(line) for line in extras["data"] if line.startswith("opencv"))
    assert not opencv.specifier.contains(for_gpus["opencv-python-headless"])
    assert opencv.specifier.contains(pins("constraints.txt")["opencv-python-headless"])


def test_a_requirement_that_the_file_lacks_is_found(for_gpus: dict[str, Version]) -> None:
    without = {name: version for name, version in for_gpus.items() if name != "tenacity"}
    with pytest.raises(AssertionError, match=r"needs tenacity.* lacks"):
        test_every_requirement_is_named_and_fits(without)


def test_what_is_tested_here_is_what_runs_on_gpus(for_gpus: dict[str, Version]) -> None:
    tested = pins("constraints.txt")
    differ = {name for name in tested.keys() & for_gpus.keys() if tested[name] != for_gpus[name]}
    assert differ == OTHERS
    assert str(for_gpus["vllm"]) == "0.24.0" and str(for_gpus["verl"]) == "0.9.1"


def test_the_file_names_no_place_of_the_machine_that_made_it() -> None:
    assert not re.search(r"://|(^|\s)--|file:|/", (ROOT / "constraints-gpu.txt").read_text())


def test_the_dockerfile_installs_what_the_readme_says() -> None:
    readme, image = (ROOT / "README.md").read_text(), (ROOT / "Dockerfile").read_text()
    assert f"pip install {INSTALL}" in readme
    assert f"RUN pip install --no-cache-dir {INSTALL}" in image
    assert "FROM python:3.11" in image
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    command = re.search(r'^CMD \["(\w+)"', image, re.MULTILINE)
    assert command is not None and command[1] in scripts


def test_what_the_dockerfile_copies_is_there_and_reaches_the_builder() -> None:
    image, ignored = ((ROOT / name).read_text() for name in ("Dockerfile", ".dockerignore"))
    copied = [word for line in image.splitlines() if line.startswith("COPY ") for word in shlex.split(line)[1:-1]]
    allowed = [line[1:] for line in ignored.splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(allowed) and all((ROOT / name).exists() for name in copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) <= set(copied)
