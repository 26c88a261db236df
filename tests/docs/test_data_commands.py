"""What the documents tell a user to type is accepted by the scripts, and their example row is real."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from samr1_verl.rows.record import parse_record
from tests.rows.convert.sources import rows_of
from tests.composing import compose_recipe

ROOT = Path(__file__).resolve().parents[2]
CONVERTERS = ("refcoco", "grefcoco", "reasonseg", "coco", "hub")


def commands(text: str) -> list[list[str]]:
    """The words after `python` of each command that runs a converter; lines may go on after a backslash."""
    joined = re.sub(r"\\+\n\s*", " ", text)
    found = [shlex.split(line) for line in re.findall(r"python (data/\w+\.py --.*)", joined)]
    return [words for words in found if Path(words[0]).stem in CONVERTERS]


def parse(words: list[str]) -> dict:
    """The options of a command, as the script itself reads them."""
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(Path(words[0]).stem).main)
    return typer.main.get_command(app).make_context(words[0], words[1:]).params


@pytest.mark.parametrize("document", ["data/README.md", *(f"data/{name}.py" for name in CONVERTERS)])
def test_commands_in_documents_are_accepted(document: str) -> None:
    found = commands((ROOT / document).read_text(encoding="utf-8"))
    assert found
    for words in found:
        parse(words)


def test_the_recipe_names_the_command_that_makes_its_files() -> None:
    recipe = compose_recipe("samr1")
    (words,) = commands(recipe.samr1.prepare.data)
    options = parse(words)
    assert [f"{options['out']}/{split}.parquet" for split in ("train", "val")] == [
        recipe.data.train_files,
        recipe.data.val_files,
    ]
    assert options["sample"] == 3000


def test_the_example_row_is_a_drawn_one(drawn: Path) -> None:
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    number, example = re.search(r"Row (\d+) of the tiny world.*?\n\n( {4}\{.*?\n)\n", text, re.DOTALL).groups()
    assert parse_record(json.loads(example), "README", 0) == rows_of(drawn / "train.parquet")[int(number)]
