"""Mutated inputs by the thousand, in a child process with limits of memory and time.

    python -m tests.attack.mutations --images 100000 --seed 13

An input is accepted, or refused by the project's own error. Everything else is an escape: another exception, a crash,
a time or an amount of memory beyond the limit. The exit status is 1 where there is one. An input is made from the seed
and its number alone, so `--first` with that number repeats it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Option, and the module whose `Attempt()` is made once in the child. Its call takes a random generator, makes an input
# and tries it; it returns "accepted" or "refused", and raises for an escape.
KINDS = {
    "images": "tests.attack.mutate_images",
    "answers": "tests.attack.mutate_answers",
    "rows": "tests.attack.mutate_rows",
}
SECONDS = 120.0  # per input: ends a hang, and no slow machine
MEMORY = 1 << 30  # bytes of address space of the child


@dataclass
class Report:
    """The outcomes of one kind of input."""

    outcomes: Counter[str] = field(default_factory=Counter)
    escapes: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds
    peak: int = 0  # bytes of resident memory

    def line(self, kind: str, seed: int) -> str:
        found = self.outcomes
        return (
            f"{kind}: {found.total()} tried, {found['accepted']} accepted, {found['refused']} refused, "
            f"{len(self.escapes)} escapes; slowest {self.slowest:.2f} s, peak memory {self.peak / 1e6:.0f} MB; "
            f"seed {seed}"
        )


def run(module: str, count: int, seed: int, first: int = 0, seconds: float = SECONDS) -> Report:
    """Try `count` inputs from number `first` on. A child that ends or hangs is replaced at the next input.

    Args:
        module: has the class `Attempt`.
        seconds: maximum time per input.
    """
    report, number = Report(), first
    while number < first + count:
        command = [sys.executable, "-m", "tests.attack.mutations", "--child", module, str(seed), str(number)]
        child = subprocess.Popen(
            [*command, str(first + count - number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff and Pillow write a line for many of the files
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            number = _read(child, report, number, first + count, seconds)
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    return report


def _read(child: subprocess.Popen[bytes], report: Report, number: int, end: int, seconds: float) -> int:
    """Count the child's answers, one per input, until it ends. Returns the number of the next input."""
    assert child.stdout is not None
    buffer, allowed = b"", seconds + 60.0  # the first answer waits for the imports
    while number < end:
        ready, _, _ = select.select([child.stdout], [], [], allowed)
        block = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
        if not block:
            fault = f"no answer in {seconds:g} s" if not ready else f"the process ended with {child.wait()}"
            report.outcomes["escaped"] += 1
            report.escapes.append(f"input {number}: {fault}")
            return number + 1
        *lines, buffer = (buffer + block).split(b"\n")
        for outcome, took, peak, message in map(json.loads, lines):
            report.outcomes[outcome] += 1
            report.slowest, report.peak = max(report.slowest, took), max(report.peak, peak)
            if outcome == "escaped":
                report.escapes.append(f"input {number}: {message}")
            number += 1
        allowed = seconds
    return number


def _child(module: str, seed: int, first: int, count: int) -> None:
    attempt = importlib.import_module(module).Attempt()
    memory = getattr(attempt, "memory", MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for number in range(first, first + count):
        message, started = "", time.perf_counter()
        try:
            outcome = attempt(np.random.default_rng((seed, number)))
        except Exception as error:
            outcome, message = "escaped", f"{type(error).__name__}: {error}"[:300]
        sys.stdout.write(json.dumps([outcome, time.perf_counter() - started, _peak(), message]) + "\n")
        sys.stdout.flush()


def _peak() -> int:
    """Bytes of resident memory, at most so far. `getrusage` would count the parent's memory at the start as well."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], *map(int, sys.argv[3:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=f"number of {kind}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args()
    escaped = False
    for kind, module in KINDS.items():
        if count := getattr(options, kind):
            report = run(module, count, options.seed, options.first)
            escaped |= bool(report.escapes)
            print("\n".join([*report.escapes[:100], report.line(kind, options.seed)]), flush=True)
    return int(escaped)


if __name__ == "__main__":
    sys.exit(main())
