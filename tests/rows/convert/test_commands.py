"""`samr1 data convert`: the same files as the scripts, light library modules, and one message for a missing package."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from tests.rows.convert.sources import (
    ARC,
    REFERENCES,
    instances,
    photographs,
    polygons_of,
    python2_pickle,
    reference,
    rows_of,
    write_images,
    write_refer,
)

ROOT = Path(__file__).resolve().parents[3]
CONVERTERS = ("refcoco", "grefcoco", "reasonseg", "coco", "hub")
BOX = [[100, 100], [300, 100], [300, 300], [100, 300]]


def options_of(name: str, source: Path, out: Path) -> list[str]:
    """Write a small data set below `source` and return the options that convert it to `out`."""
    images = write_images(source / "train2014")
    places = ["--images", images, "--out", out]
    if name == "refcoco":
        options = ["--annotations", write_refer(source / "refcoco"), *places, "--sample", 2, "--seed", 7]
    elif name == "grefcoco":
        folder = write_refer(source / "grefcoco")
        references = [
            reference(1, [101, 103], "train", "two boxes"),
            reference(2, [-1], "val", "a giraffe", image_id=ARC),
        ]
        (folder / "grefs(unc).json").write_text(json.dumps(references))
        options = ["--annotations", folder, *places]
    elif name == "reasonseg":
        folder = source / "ReasonSeg" / "val"
        folder.mkdir(parents=True)
        Image.fromarray(photographs()[ARC][0]).save(folder / "a.jpg")
        shapes = [{"label": "target", "points": BOX}]
        (folder / "a.json").write_text(json.dumps({"text": ["the box"], "is_sentence": True, "shapes": shapes}))
        options = ["--folder", folder.parent, "--out", out]
    elif name == "coco":
        (source / "instances.json").write_text(json.dumps(instances()))
        options = ["--annotations", source / "instances.json", "--images", images, "--out", out / "rows.parquet"]
    else:
        columns = {
            "image": [str(path) for path in sorted(images.iterdir())],
            "text": ["a box", "a chair"],
            "polygons": [polygons_of(masks[0]) for _, masks in photographs().values()],
        }
        datasets.Dataset.from_dict(columns).to_json(source / "rows.jsonl")
        options = ["--dataset", source / "rows.jsonl", "--image", "image", "--sentence", "text"]
        options += ["--segmentation", "polygons", "--out", out / "rows.parquet"]
    return [*map(str, options), "--workers", "1"]


def convert(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["data", "convert", *words])
    assert done.exit_code == status, done.output
    return done.output


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONVERTERS)
def test_command_and_script_write_the_same_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    command, script = (tmp_path / kind / "out" for kind in ("command", "script"))
    options = options_of(name, tmp_path / "source", command)
    output = convert(name, *options)
    words = [sys.executable, str(ROOT / "data" / f"{name}.py"), *options]
    words = [word.replace(str(command), str(script)) for word in words]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in command.iterdir())
    assert files == sorted(path.name for path in script.iterdir()) and any(".parquet" in file for file in files)
    for file in files:
        assert (command / file).read_bytes() == (script / file).read_bytes()
    for file in (file for file in files if file.endswith(".parquet")):
        count = len(rows_of(command / file))
        assert count and f"{command / file}: {count} rows" in output and f"{script / file}: {count} rows" in done.stdout


@pytest.mark.parametrize(("name", "split_by"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")])
def test_each_refer_command_has_the_splits_of_its_data_set(tmp_path: Path, name: str, split_by: str) -> None:
    images, folder = write_images(tmp_path / "train2014"), write_refer(tmp_path / name)
    (folder / "refs(unc).p").unlink()
    (folder / f"refs({split_by}).p").write_bytes(python2_pickle(REFERENCES))
    places = ["--annotations", str(folder), "--images", str(images), "--out", str(tmp_path / "out")]
    convert(name, *places, "--workers", "1")
    assert {row.data_source for row in rows_of(tmp_path / "out" / "train.parquet")} == {name}


def test_exit_statuses_are_those_of_the_help(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][8]["segmentation"] = [[1, 1, 2, 2, 3, 3]]
    write_refer(tmp_path / "refcoco", content=content)
    places = ["--annotations", tmp_path / "refcoco", "--images", write_images(tmp_path / "train2014")]
    words = [*map(str, places), "--workers", "1", "--out"]
    convert("refcoco", *words, str(tmp_path / "whole"), status=0)
    content["annotations"][0]["segmentation"] = []
    write_refer(tmp_path / "refcoco", content=content)
    assert "problems: 1, rows left out: 2" in convert("refcoco", *words, str(tmp_path / "part"), status=3)
    assert "error: --strict: " in convert("refcoco", *words, str(tmp_path / "none"), "--strict", status=1)


MISSING = {"refcoco": "ijson", "grefcoco": "ijson", "coco": "ijson", "reasonseg": "cv2"}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    options = options_of(name, tmp_path, tmp_path / "out")
    monkeypatch.setitem(sys.modules, MISSING[name], None)  # Python then refuses to import it
    output = convert(name, *options, status=1)
    assert f"error: {MISSING[name]} " in output and output.strip().endswith("pip install 'samr1-verl[data]'"), output
    assert not list(tmp_path.rglob("*.parquet"))


def loaded_after(code: str, *packages: str) -> set[str]:
    """Those of `packages` that a new Python process has loaded after it ran `code`."""
    script = f"{code}\nimport sys; print(*(name for name in {packages!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_library_needs_neither_verl_nor_a_command_line() -> None:
    code = """
import importlib, pkgutil, samr1_verl.rows.convert as package
names = [module.name for module in pkgutil.iter_modules(package.__path__)]
assert "pipeline" in names
for name in names:
    importlib.import_module(f"samr1_verl.rows.convert.{name}")
"""
    heavy = ("verl", "ray", "torch", "datasets", "cv2", "ijson", "typer", "rich", "samr1_verl.cli")
    assert loaded_after(code, *heavy) == set()


@pytest.mark.slow
def test_the_commands_start_without_heavy_imports() -> None:
    assert loaded_after("import samr1_verl.cli.convert", "verl", "ray", "torch", "numpy", "pyarrow", "PIL") == set()
