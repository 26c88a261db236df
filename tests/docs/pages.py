"""The documents as a reader meets them: blocks of code, inline code and links, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "data/README.md", *PAGES)


@dataclass(frozen=True)
class Piece:
    """A block of code, a piece of inline code or a link. `language` is empty for all but blocks."""

    document: str
    line: int
    text: str
    language: str = ""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


@cache
def _tokens(document: str) -> list[Token]:
    parser = MarkdownIt("commonmark").enable("table")
    return parser.parse((ROOT / document).read_text(encoding="utf-8"))


def blocks(document: str) -> list[Piece]:
    """Fenced blocks with their language, and indented ones, whose language is empty."""
    return [
        Piece(document, token.map[0] + 1, token.content, token.info.strip())
        for token in _tokens(document)
        if token.type in ("fence", "code_block")
    ]


def inline_code(document: str) -> list[Piece]:
    """The texts between backticks outside blocks."""
    return [Piece(document, line, token.content) for line, token in _inline(document) if token.type == "code_inline"]


def links(document: str) -> list[Piece]:
    """Targets of links and images, also of those in HTML."""
    targets = []
    for line, token in _inline(document):
        if token.type in ("link_open", "image"):
            targets.append((line, str(token.attrGet("href") or token.attrGet("src"))))
        elif token.type == "html_inline":
            targets += [(line, target) for target in _in_html(token.content)]
    for token in _tokens(document):
        if token.type == "html_block":
            targets += [(token.map[0] + 1, target) for target in _in_html(token.content)]
    return [Piece(document, line, target) for line, target in targets]


def _inline(document: str) -> Iterator[tuple[int, Token]]:
    line = 0
    for token in _tokens(document):
        line = token.map[0] + 1 if token.map else line  # a cell of a table has no place of its own
        for child in token.children or ():
            yield line, child


def _in_html(text: str) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]+)"', text)
