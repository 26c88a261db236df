"""Data sets that attack the machine that converts them: names that are paths, ids that are no ids, files that grow."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from tests.attack import mutations
from tests.rows.convert.sources import ARC, NAMES, instances, photographs, polygons_of, problems_of, reference, rows_of

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 6 << 30  # bytes of address space of the child that converts bombs
GROWTH = 600 << 20  # bytes of resident memory that they may take: the largest value allowed takes 400 MB
LONG = "x" * 300  # no file system takes such a name
SPLITS = ["../x", "../../x", "a/b", "", ".", "..", ".x", "x\0y", "x\ny", LONG, "é" * 60, "\ud800", 5, 1.5, None, True,
          ["train"], {"a": 1}]  # fmt: skip
IDS = [[1], {"a": 1}, 1.5, float("inf"), 1 << 63, -(1 << 63) - 1, None, True, "\ud800", 10**4000]
JSON_IDS = [[1], {"a": 1}, 1.5, None, True]
BEYOND = [1 << 63, -(1 << 63) - 1, 10**4000]  # ijson refuses them
OUTSIDE = ["../secret.jpg", "../images/../secret.jpg", "link.jpg", "loop.jpg", "links/secret.jpg", "a\0.jpg", LONG,
           "a/" * 1500 + "a.jpg", "..", "/", "", "FIFO", "socket", "folder", "/dev/zero"]  # fmt: skip


def photograph(path: Path, key: int = ARC) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photographs()[key][0]).save(path)
    return path


def convert(*words: object) -> tuple[int, str]:
    """Exit status and output of `samr1 data convert`. An exception that reaches the user fails the test."""
    done = CliRunner().invoke(app, ["data", "convert", *map(str, words), "--workers", "1"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def trap(folder: Path) -> Path:
    """A folder of images beside a secret, with links and files that lead out of it."""
    images = photograph(folder / "images" / NAMES[ARC]).parent
    secret = photograph(folder / "secret.jpg")
    (images / "link.jpg").symlink_to(secret)
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "links").symlink_to(folder, target_is_directory=True)
    (images / "folder").mkdir()
    os.mkfifo(images / "FIFO")
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(images)  # the name of a socket has at most 107 bytes
        listener.bind("socket")
    return images


def write_refs(kind: str, folder: Path, references: list[Any], content: dict | None = None) -> Path:
    """The annotations of refcoco or grefcoco, which is `kind`."""
    folder.mkdir(exist_ok=True)
    if kind == "refcoco":
        (folder / "refs(unc).p").write_bytes(pickle.dumps(references, 2))
    else:
        (folder / "grefs(unc).json").write_text(json.dumps(references))
    (folder / "instances.json").write_text(json.dumps(content or instances()))
    return folder


def refer(kind: str, folder: Path, references: list[Any], content: dict | None = None) -> tuple[int, str]:
    """Convert references to folder/out."""
    images = photograph(folder / "images" / NAMES[ARC]).parent
    annotations = write_refs(kind, folder / "set", references, content)
    return convert(kind, "--annotations", annotations, "--images", images, "--out", folder / "out")


def coco(folder: Path, content: dict, images: Path | None = None) -> tuple[int, str]:
    (folder / "instances.json").write_text(json.dumps(content))
    images = images or photograph(folder / "images" / NAMES[ARC]).parent
    return convert(
        "coco", "--annotations", folder / "instances.json", "--images", images, "--out", folder / "out/rows.parquet"
    )


def small() -> dict[str, Any]:
    """An instances file of one image with one object."""
    content = copy.deepcopy(instances())
    return {
        "images": content["images"][:1],
        "annotations": content["annotations"][:1],
        "categories": content["categories"],
    }


@pytest.mark.parametrize("kind", ["refcoco", "grefcoco"])
def test_a_split_cannot_become_a_path(tmp_path: Path, kind: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    victims = [tmp_path / "x.parquet", work / "x.parquet", work / "victim.parquet"]
    for victim in victims:
        victim.write_text("precious")
    splits = [*SPLITS, str(work / "victim")]
    references = [reference(100 + i, [101], split, "a box") for i, split in enumerate(splits)]
    references.append(reference(1, [101] if kind == "grefcoco" else 101, "train", "the box"))
    status, output = refer(kind, work, references)
    assert status == 3 and f"problems: {len(splits)}" in output, output
    assert all(victim.read_text() == "precious" for victim in victims)
    assert sorted(path.name for path in (work / "out").iterdir()) == ["train.parquet", "train.problems.jsonl"]
    assert {(p["record"], p["field"]) for p in problems_of(work / "out" / "train.parquet")} == {
        (f"ref_id {100 + i}", "split") for i in range(len(splits))
    }
    status, output = refer(kind, work, references[:3])
    assert status == 1 and "ref_id 100, field 'split'" in output and "'../x'" in output


def test_a_folder_of_reasonseg_cannot_become_a_path(tmp_path: Path) -> None:
    for split in ("val", "a\nb", "é" * 60):
        photograph(tmp_path / "set" / split / "a.jpg")
        (tmp_path / "set" / split / "a.json").write_text(json.dumps({"text": ["a"], "shapes": [{}]}))
    for words in ([], ["--split", "a\nb"], ["--split", "../val"], ["--split", str(tmp_path / "set" / "val")]):
        status, output = convert("reasonseg", "--folder", tmp_path / "set", "--out", tmp_path / "out", *words)
        assert status == 1 and "split" in output
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("kind", ["refcoco", "grefcoco"])
@pytest.mark.parametrize("field", ["ref_id", "image_id", "ann_id", "sent_id"])
def test_ids_of_references_are_numbers_or_text(tmp_path: Path, kind: str, field: str) -> None:
    references = [reference(1, 101, "train", "the box")]
    wrong = IDS if kind == "refcoco" else JSON_IDS
    if field == "ann_id":
        wrong = [[value] if kind == "grefcoco" else value for value in wrong if value != [1] and value is not None]
    for number, value in enumerate(wrong):
        hostile = reference(100 + number, 101, "train", "a box")
        if field == "sent_id":
            hostile["sentences"][0]["sent_id"] = value
        else:
            hostile[field] = value
        references.append(hostile)
    status, output = refer(kind, tmp_path, references)
    assert status == 3 and f"problems: {len(wrong)}" in output, output
    problems = problems_of(tmp_path / "out" / "train.parquet")
    assert {problem["field"] for problem in problems} == {field} and len(rows_of(tmp_path / "out/train.parquet")) == 1
    expected = "reference 1" if field == "ref_id" else "ref_id 100"
    assert problems[0]["record"] == expected and "whole number" in problems[0]["problem"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("images", "id"),
        ("images", "width"),
        ("images", "file_name"),
        ("annotations", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("categories", "id"),
        ("categories", "name"),
    ],
)
def test_ids_of_an_instances_file_name_file_and_entry(tmp_path: Path, table: str, field: str) -> None:
    for value in JSON_IDS:
        if field == "width" and value in (1.5, True):
            continue  # numbers, which then do not fit the image
        content = small()
        content[table][0][field] = value
        status, output = coco(tmp_path, content)
        assert status == 1 and f"instances.json: {table}[0]: field '{field}': " in output, output
    for number in BEYOND:
        content = small()
        content[table][0][field] = number
        status, output = coco(tmp_path, content)
        assert status == 1 and "instances.json: not readable" in output and "integer overflow" in output
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("kind", ["coco", "refcoco", "grefcoco"])
def test_file_names_stay_below_the_images(tmp_path: Path, kind: str) -> None:
    images = trap(tmp_path)
    names = [*OUTSIDE, str(tmp_path / "secret.jpg")]
    content = small()
    content["images"] += [{**content["images"][0], "id": 100 + i, "file_name": name} for i, name in enumerate(names)]
    template = content["annotations"][0]
    content["annotations"] += [{**template, "id": 1000 + i, "image_id": 100 + i} for i in range(len(names))]
    if kind == "coco":
        status, output = coco(tmp_path, content, images)
        out = tmp_path / "out" / "rows.parquet"
    else:
        references = [reference(1, [101] if kind == "grefcoco" else 101, "train", "the box")]
        for i in range(len(names)):
            ids = [1000 + i] if kind == "grefcoco" else 1000 + i
            references.append(reference(100 + i, ids, "train", "a box", image_id=100 + i))
        folder = write_refs(kind, tmp_path / "set", references, content)
        status, output = convert(kind, "--annotations", folder, "--images", images, "--out", tmp_path / "out")
        out = tmp_path / "out" / "train.parquet"
    assert status == 3, output
    (row,) = rows_of(out)
    problems = {problem["record"]: problem["problem"] for problem in problems_of(out)}
    assert row.image.endswith(NAMES[ARC]) and len(problems) == len(names), output
    assert "outside" in problems["image 100"] and "outside" in problems[f"image {99 + len(names)}"]


def test_reasonseg_reads_only_below_its_folder(tmp_path: Path) -> None:
    secret = photograph(tmp_path / "secret.jpg")
    val = photograph(tmp_path / "set" / "val" / "good.jpg").parent
    good = json.dumps(
        {"text": ["the box"], "shapes": [{"label": "target", "points": [[100, 100], [300, 100], [9, 300]]}]}
    )
    (tmp_path / "secret.json").write_text(good)
    for name in ("good", "image", "zero", "pipe"):
        (val / f"{name}.json").write_text(good)
    (val / "image.jpg").symlink_to(secret)
    (val / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(val / "pipe.jpg")
    (val / "text.json").symlink_to(tmp_path / "secret.json")
    (val / "endless.json").symlink_to("/dev/zero")
    (val / "loop.json").symlink_to("loop.json")
    (val / "folder.json").mkdir()
    os.mkfifo(val / "fifo.json")
    status, output = convert("reasonseg", "--folder", tmp_path / "set", "--out", tmp_path / "out")
    assert status == 3 and "problems: 8" in output, output
    (row,) = rows_of(tmp_path / "out" / "val.parquet")
    assert row.source["name"] == "good"


def test_paths_in_a_data_set_of_the_hub_stay_in_its_folder(tmp_path: Path) -> None:
    images = trap(tmp_path)
    names = ["secret.jpg" if name == "" else name for name in OUTSIDE if name not in ("a\0.jpg", "")]
    columns = {
        "image": [NAMES[ARC], *names, str(tmp_path / "secret.jpg")],
        "text": ["a box"] * (len(names) + 2),
        "polygons": [polygons_of(photographs()[ARC][1][0])] * (len(names) + 2),
    }
    datasets.Dataset.from_dict(columns).to_json(images / "rows.jsonl")
    words = ["hub", "--dataset", images / "rows.jsonl", "--image", "image", "--sentence", "text"]
    words += ["--segmentation", "polygons", "--out", tmp_path / "out" / "rows.parquet"]
    status, output = convert(*words)
    assert status == 3 and len(problems_of(tmp_path / "out" / "rows.parquet")) == len(names) + 1, output
    (row,) = rows_of(tmp_path / "out" / "rows.parquet")
    assert row.image.endswith(NAMES[ARC])
    status, output = convert(*words, "--images", tmp_path)
    assert sum("secret" in row.image for row in rows_of(tmp_path / "out" / "rows.parquet")) == 1, "one key allows them"


def test_a_mask_path_of_the_hub_stays_in_its_folder(tmp_path: Path) -> None:
    images = trap(tmp_path)
    Image.new("L", (640, 480), 1).save(tmp_path / "secret.png")
    data = datasets.Dataset.from_dict({"image": [NAMES[ARC]], "text": ["a"], "mask": [{"path": "../secret.png"}]})
    data.to_parquet(images / "rows.parquet")
    words = ["hub", "--dataset", images / "rows.parquet", "--image", "image", "--sentence", "text", "--mask", "mask"]
    status, output = convert(*words, "--out", tmp_path / "out" / "rows.parquet")
    (problem,) = problems_of(tmp_path / "out" / "rows.parquet")
    assert status == 1 and problem["field"] == "mask" and "outside" in problem["problem"], output


def laughs(levels: int = 40) -> list:
    """Lists that hold the list before twice: 40 of them, and 2^40 where they are written out."""
    value: list = ["ha"]
    for _ in range(levels):
        value = [value, value]
    return value


def circle() -> list:
    value: list = []
    value.append(value)
    return value


DEEP = "[" * 200_000


def json_bombs() -> Iterator[tuple[str, str]]:
    entry = '{"id": 1, "image_id": 1, "category_id": 1, "segmentation": '
    yield "brackets", DEEP
    yield "brackets in images", '{"images": ' + DEEP
    yield "objects", '{"images": [' + '{"a":' * 200_000
    yield "an endless text", '{"images": [{"id": "' + "x" * 17_000_000
    yield "brackets in an image", '{"images": [{"id": 1, "x": ' + DEEP + "]" * 200_000 + "}]}"
    yield "an endless annotation", '{"images": [], "annotations": [' + entry + "[" + "[]," * 6_000_000
    yield "an endless number", '{"images": [{"id": ' + "1" * 17_000_000
    yield "a long number", '{"images": [{"id": ' + "1" * 5_000 + "}]}"
    yield "escapes", '{"images": [{"id": "' + '\\"\\\\' * 1_000 + '", "x": ' + DEEP


def pickle_bombs() -> Iterator[tuple[str, bytes]]:
    yield "a far place", b"\x80\x02]r\xff\xff\xff\x7f."
    yield "a long text", b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x."
    yield "a long frame", b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"]."
    yield "long bytes", b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b"x."
    yield "lists", b"\x80\x02" + b"]" * 6_000_000 + b"."
    yield "sets", b"\x80\x04" + b"\x8f" * 5_000_000 + b"."
    yield "nesting", b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."
    sound, sent = reference(1, 101, "train", "a"), {"sent_id": 1, "sent": "a"}
    for name, value in {"laughs": laughs(), "a circle": circle()}.items():
        for field in ("ref_id", "image_id", "split", "ann_id", "sentences"):
            yield f"{name} as {field}", pickle.dumps([{**sound, field: value}], 2)
        yield f"{name} as a sentence", pickle.dumps([{**sound, "sentences": [{**sent, "sent": value}]}], 2)
    yield "many sentences", pickle.dumps([{**sound, "sentences": [sent] * 1_000_000}], 2)


def polygon_bombs() -> dict[str, Any]:
    return {
        "a zigzag": [[0, 0, 639, 479] * 500_000],
        "many polygons": [[0, 0, 639, 0, 639, 479]] * 200_000,
        "a long list of runs": {"size": [480, 640], "counts": [0] * 3_000_000},
        "a run of all memory": {"size": [480, 640], "counts": [1 << 62]},
        "the size of all memory": {"size": [1 << 31, 1 << 31], "counts": [1 << 62]},
        "compressed": {"size": [480, 640], "counts": "o" * 1_000_000},
    }


def bombs(folder: Path, every: int) -> None:
    """Convert every bomb, or some, and print its exit status, its output and the growth of memory as JSON."""
    images = photograph(folder / "images" / NAMES[ARC]).parent
    photograph(folder / "seg" / "val" / "a.jpg")
    (images / "rows.jsonl").write_text('{"image": "x", "text": "a", "box": [1]}')
    annotations, out = write_refs("grefcoco", folder / "set", []), folder / "out"
    refer = ["--annotations", annotations, "--images", images, "--out", out]
    hub = ["--dataset", images / "rows.jsonl", "--image", "image", "--sentence", "text", "--box", "box"]
    hub += ["--out", out / "rows.parquet"]
    convert("hub", *hub)  # imports its packages
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def show(name: str, result: tuple[int, str]) -> None:
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - start
        sys.stdout.write(json.dumps([name, *result, growth]) + "\n")
        sys.stdout.flush()

    for number, (name, text) in list(enumerate(json_bombs()))[::every]:
        (folder / "bomb.json").write_text(text)
        words = ["--annotations", folder / "bomb.json", "--images", images, "--out", out / "rows.parquet"]
        show(f"coco: {name}", convert("coco", *words))
        (annotations / "grefs(unc).json").write_text(text.replace('{"images": ', ""))
        show(f"grefcoco: {name}", convert("grefcoco", *refer))
        (folder / "seg" / "val" / "a.json").write_text('{"text": ["a"], "shapes": ' + text)
        show(f"reasonseg: {name}", convert("reasonseg", "--folder", folder / "seg", "--out", out))
        if number < 4:
            (images / "rows.jsonl").write_text('{"image": "x", "text": ' + text + "\n")
            show(f"hub: {name}", convert("hub", *hub))
    for name, content in list(pickle_bombs())[::every]:
        (annotations / "refs(unc).p").write_bytes(content)
        show(f"refcoco: {name}", convert("refcoco", *refer))
    for name, segmentation in list(polygon_bombs().items())[::every]:
        content = small()
        content["annotations"][0]["segmentation"] = segmentation
        show(f"coco: {name}", coco(folder, content))


@pytest.mark.slow
@pytest.mark.parametrize(("every", "count"), [(4, 17), pytest.param(1, 57, marks=pytest.mark.thorough)])
def test_bombs_are_refused_with_little_memory(every: int, count: int, tmp_path: Path) -> None:
    call = f"from tests.attack.test_converters import *; bombs(Path({str(tmp_path)!r}), {every})"
    command = [sys.executable, "-c", call]
    environment = {**os.environ, "USE_TORCH": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0 and len(results) == count, (len(results), results[-1:], done.stderr[-2000:])
    for name, status, output, growth in results:
        assert status == 1 and "Traceback" not in output and "error:" in output, (name, status, output)
        assert growth < GROWTH, (name, growth >> 20)


def test_a_shared_list_of_sentences_does_not_multiply(tmp_path: Path) -> None:
    shared = [{"sent_id": 1, "sent": "a"}] * 2_000
    references = [{**reference(100 + i, 101, "train"), "sentences": shared} for i in range(50)]
    status, output = refer("refcoco", tmp_path, [*references, reference(1, 101, "train", "the box")])
    assert status == 3 and len(rows_of(tmp_path / "out" / "train.parquet")) == 1, output
    assert {problem["field"] for problem in problems_of(tmp_path / "out" / "train.parquet")} == {"sentences"}


def test_a_folder_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "out" / "rows.parquet").mkdir(parents=True)
    status, output = coco(tmp_path, small())
    assert status == 1 and "--out: " in output and str(tmp_path / "out" / "rows.parquet") in output


@pytest.mark.slow
def test_mutated_data_sets_are_converted_or_refused() -> None:
    report = mutations.run("tests.attack.mutate_rows", 300, seed=13)
    assert report.outcomes.total() == 300 and not report.escapes, report.escapes[:5]
