"""Commands that the documents and the recipe tell a user to type are accepted, and their example row is real."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from samr1_verl.cli import app
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.rows.record import parse_record
from tests.composing import compose_recipe
from tests.rows.convert.sources import rows_of

ROOT = Path(__file__).resolve().parents[2]
CONVERTERS = ("refcoco", "grefcoco", "reasonseg", "coco", "hub")
WITHOUT_SCRIPT = {"refcoco+", "refcocog", "refcoco-m", "muse", "mmr"}
SCRIPTS = [f"data/{name}.py" for name in CONVERTERS]
PAGES = ["data/README.md", "README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = {"data/README.md", "README.md", *SCRIPTS}


def commands(text: str) -> list[list[str]]:
    """The words of each command that converts data: in lines of code, and after `Type:`. `\\` continues a line."""
    joined = re.sub(r"\\+\n\s*", " ", text)
    lines = re.findall(r"(?:^ *|Type: )(samr1 data convert .*|python data/.*)$", joined, flags=re.MULTILINE)
    words = [shlex.split(line) for line in lines]
    return [command for command in words if command[0] == "samr1" or command[1] in SCRIPTS]


def parse(words: list[str]) -> dict[str, Any]:
    """The options of a command, as the command line itself reads them."""
    if words[0] == "samr1":
        command, name, options = typer.main.get_command(app), " ".join(words[:4]), words[4:]
        for word in words[1:4]:
            command = command.commands[word]
    else:
        script, name, options = Path(words[1]), words[1], words[2:]
        alone = typer.Typer(add_completion=False)
        alone.command()(getattr(importlib.import_module(f"data.{script.stem}"), script.stem))
        command = typer.main.get_command(alone)
    return command.make_context(name, options).params


@pytest.mark.parametrize("document", [*PAGES, *SCRIPTS])
def test_commands_in_documents_are_accepted(document: str) -> None:
    typed = commands((ROOT / document).read_text(encoding="utf-8"))
    assert typed or document not in WITH_COMMANDS
    for words in typed:
        parse(words)


def test_the_documents_name_every_converter() -> None:
    typed = commands((ROOT / "data" / "README.md").read_text(encoding="utf-8"))
    names = {words[3] for words in typed if words[0] == "samr1"}
    converters = typer.main.get_command(app).commands["data"].commands["convert"].commands
    assert names == set(converters) == {*CONVERTERS, *WITHOUT_SCRIPT}


def test_the_recipe_names_the_command_that_makes_its_files() -> None:
    recipe = compose_recipe("samr1")
    (words,) = commands(recipe.samr1.prepare.data)
    options = parse(words)
    assert [f"{options['out']}/{split}.parquet" for split in ("train", "val")] == [
        recipe.data.train_files,
        recipe.data.val_files,
    ]
    assert options["sample"] == 3000


def test_an_unknown_option_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(shlex.split("samr1 data convert reasonseg --folder ReasonSeg --out data/reasonseg --sample 3"))


def code(language: str, *, after: str = "") -> str:
    """The first block of code in a language in data/README.md, behind the text `after`."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    return re.search(rf"{after}.*?```{language}\n(.*?)```", text, re.DOTALL).group(1)


def test_the_example_row_is_a_drawn_one(drawn: Path) -> None:
    example = parse_record(json.loads(code("json", after="Row 12 of the tiny world's train.parquet")), "README", 0)
    assert example == rows_of(drawn / "train.parquet")[12]


def test_the_loop_writes_rows_of_ones_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Path) -> None:
    monkeypatch.chdir(tmp_path)
    first, *_ = rows_of(drawn / "train.parquet")
    mask = decode_rle(first.masks[0], (first.height, first.width))
    exec(code("python"), {"my_data": [(drawn / first.image, first.sentence, mask)]})
    (row,) = rows_of(tmp_path / "data" / "mine" / "train.parquet")
    assert (row.masks, row.boxes, row.points, row.sha256) == (first.masks, first.boxes, first.points, first.sha256)
