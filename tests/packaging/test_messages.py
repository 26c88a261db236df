"""Every message stands once, in the golden file of its room, and tests ask for what an error names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.messages import ROOT, file_of, messages

LONGEST = 3  # words of a pattern: a name or a value, no sentence


@pytest.mark.parametrize("room", sorted(file.stem for file in file_of("").parent.iterdir()))
def test_the_messages_of_a_room_are_those_that_were_reviewed(room: str) -> None:
    reviewed = file_of(room).read_text(encoding="utf-8")
    assert messages()[room] == reviewed, "review the new sentences, then run python -m tests.messages"


def test_no_golden_file_is_without_its_room() -> None:
    assert {file.stem for file in (ROOT / "tests" / "golden_messages").iterdir()} == set(messages())


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_test_asks_for_names_and_not_for_sentences(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "match" and isinstance(node.value, ast.Constant):
            words = re.findall(r"[A-Za-z]{2,}(?:[._][\w]+)*", str(node.value.value))
            assert len(words) <= LONGEST, f"{file}:{node.value.lineno}: {node.value.value}"
