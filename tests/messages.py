"""The sentences of every room's errors, in tests/golden_messages/<room>.txt, for a reader who reviews them.

    python -m tests.messages            write the files again, after a message was added or reworded
    python -m tests.messages rows       one room's

An entry is the code and the class of one error in the source, and below them its place and its problem. `{name}` stands
for a value that is filled in.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("samr1_verl", "reward_fns", "data")


@cache
def modules() -> dict[Path, ast.Module]:
    files = [file for source in SOURCES for file in sorted((ROOT / source).rglob("*.py"))]
    return {file.relative_to(ROOT): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@cache
def error_classes() -> frozenset[str]:
    """Names of Samr1Error and of the classes that derive from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for module in modules().values()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    }
    known = {"Samr1Error"}
    while more := {name for name, parents in bases.items() if parents & known} - known:
        known |= more
    return frozenset(known)


def room_of(file: Path) -> str:
    """The folder of a source file below samr1_verl, or the name of a file that lies in none."""
    return file.with_suffix("").parts[1] if file.parts[0] == "samr1_verl" else file.parts[0]


@cache
def messages() -> dict[str, str]:
    """Room → the text of its file."""
    entries: dict[str, set[str]] = {}
    for file, module in modules().items():
        for kind, call in calls(module):
            code, where, problem = (text(argument) for argument in call.args)
            entries.setdefault(room_of(file), set()).add(f"{code} ({kind})\n    {where}: {problem}\n")
    return {room: "".join(sorted(found)) for room, found in entries.items()}


def calls(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """The calls that make an error of ours, other than `within`, which repeats the message of another."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in error_classes():
            yield node.func.id, node


def text(node: ast.expr) -> str:
    """A string of the source, with {name} for each value; {…} where the value is no plain name."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(piece) for piece in node.values)
    if isinstance(node, ast.FormattedValue):
        return text(node.value)
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    return f"{{{node.id}}}" if isinstance(node, ast.Name) else "{…}"


def file_of(room: str) -> Path:
    return ROOT / "tests" / "golden_messages" / f"{room}.txt"


if __name__ == "__main__":
    for room in sys.argv[1:] or messages():
        file_of(room).write_text(messages()[room], encoding="utf-8")
