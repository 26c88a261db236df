"""The time from typing `main_ppo` to the first finished rollout, split by process and by imported package.

    python benchmarks/startup.py                  +recipe=samr1_tiny twice, and imports with and without the plug-in
    python benchmarks/startup.py --rounds 1       imports measured once each

The first training is timed as it is. The second writes down every import (PYTHONPROFILEIMPORTTIME), which costs time
itself. Both end when the reward is asked for the first time. Imports with and without the plug-in are measured in
turns, and printed with their ratio. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.places import ray_folder
from samr1_verl.regress.training import command
from samr1_verl.rehearsal.process import kill, role_of, without_a_cluster

RECIPE = "samr1_tiny"
FIRST = "FIRST_ROLLOUT"  # environment variable with the file that the reward makes
REWARD = f"""
import os, pathlib
from reward_fns.samr1 import compute_score as samr1

async def compute_score(**arguments):
    pathlib.Path(os.environ[{FIRST!r}]).touch()
    return await samr1(**arguments)
"""
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
OURS = ("samr1_verl", "reward_fns", "hydra_plugins")
IMPORTED = ("verl", "verl.trainer.main_ppo", "verl.experimental.agent_loop", "verl.experimental.reward_loop")


def until_the_first_rollout(work: Path, **environment: str) -> tuple[float, dict[str, float], list[str]]:
    """Wall seconds, processor seconds by role, and the texts that the processes wrote to standard error."""
    first, log, reward = work / "first", work / "log.txt", work / "reward.py"
    reward.write_text(REWARD)
    used: dict[psutil.Process, tuple[str, float]] = {}
    with ray_folder() as folder:
        line = command(RECIPE, ("trainer.val_before_train=false",), 1, work, work / "metrics.jsonl", Path(folder))
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*line, f"reward.custom_reward_function.path={reward}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**without_a_cluster(), FIRST: str(first), **environment},
            )
        try:
            while not first.exists():
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-4000:])
                sample(psutil.Process(process.pid), used)
                time.sleep(0.1)
            wall = time.monotonic() - started
        finally:
            kill(process)
        errors = [file.read_text(errors="replace") for file in Path(folder).glob("session_latest/logs/worker-*.err")]
    seconds: defaultdict[str, float] = defaultdict(float)
    for role, cpu in used.values():
        seconds[role] += cpu
    return wall, dict(sorted(seconds.items(), key=lambda item: -item[1])), [log.read_text(errors="replace"), *errors]


def sample(root: psutil.Process, used: dict[psutil.Process, tuple[str, float]]) -> None:
    """Note the processor seconds of a process and of all below it, under their present role."""
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            role = "driver" if process == root else role_of(process.cmdline())
            used[process] = (role, times.user + times.system)
        except psutil.Error:  # it ended meanwhile
            continue


def imported(texts: list[str]) -> tuple[int, dict[str, float]]:
    """Number of the processes that imported verl, and seconds of import by top-level package over all processes."""
    packages: defaultdict[str, float] = defaultdict(float)
    processes = 0
    for text in texts:
        found = LINE.findall(text)
        processes += any(name == "verl" for _, name in found)
        for microseconds, name in found:
            packages[name.partition(".")[0]] += int(microseconds) / 1e6
    return processes, dict(packages)


def seconds_of_import(module: str, plugins: str) -> float:
    """Processor seconds of a process that imports a module, with verl's plug-ins ("auto") or without ("none")."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins}
    subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: Annotated[int, typer.Option(min=1, help="imports measured each way")] = 3) -> None:
    """Start two trainings, measure imports, and print tables."""
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as profiled:
        wall, roles, _ = until_the_first_rollout(Path(plain))
        _, _, texts = until_the_first_rollout(Path(profiled), PYTHONPROFILEIMPORTTIME="1")
    processes, packages = imported(texts)
    typer.echo(f"{wall:.1f} s from typing to the first rollout, {sum(roles.values()):.1f} processor seconds")
    typer.echo("| process | processor seconds |\n|---|---|")
    typer.echo("\n".join(f"| {role} | {seconds:.1f} |" for role, seconds in roles.items()))
    typer.echo(f"{processes} processes import verl\n| package | seconds of import, all processes |\n|---|---|")
    largest = sorted(packages.items(), key=lambda item: -item[1])[:12]
    typer.echo("\n".join(f"| {name} | {seconds:.2f} |" for name, seconds in largest))
    ours = sum(packages.get(name, 0.0) for name in OURS)
    typer.echo(f"ours ({', '.join(OURS)}): {ours:.2f} s of {sum(packages.values()):.2f} s")
    typer.echo("| import | with the plug-in (s) | without (s) | ratio |\n|---|---|---|---|")
    ratios = {}
    for module in IMPORTED:
        pairs = [[seconds_of_import(module, plugins) for plugins in ("auto", "none")] for _ in range(rounds)]
        on, off = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios[module] = on / off
        typer.echo(f"| {module} | {on:.2f} | {off:.2f} | {on / off:.2f} |")
    result = {"wall_s": wall, "roles": roles, "processes": processes, "packages": dict(largest), "ours_s": ours}
    typer.echo(json.dumps(result | {"import_ratios": ratios}))


if __name__ == "__main__":
    typer.run(main)
