"""Exported rows are what training sees, read back by the trainers' loaders; bad rows are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.cli.export import For
from samr1_verl.config import PromptConfig
from samr1_verl.geometry.images import sha256_of
from samr1_verl.prompts.export import FORMATS, Trainer, export
from samr1_verl.prompts.policy_image import load_policy_image
from samr1_verl.prompts.questions import Questions
from samr1_verl.rows.record import DataError, read_table, record_at, resolve_image
from tests.errors import refused
from tests.row_files import make_record, write_rows

PROMPT = PromptConfig(prompt="vision_reasoner", policy_size=(56, 84), frame="absolute")


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five rows about two images; one image has boxes and no mask."""
    names = ["a.png", "a.png", "b.png", "b.png", "a.png"]
    changes: list[dict[str, Any]] = [{}, {"sentence": "The <red> & “other” one"}, {}, {"masks": []}, {"category": "x"}]
    sizes = {"a.png": (64, 48), "b.png": (80, 48)}
    records = [make_record(tmp_path, name, sizes[name], **change) for name, change in zip(names, changes, strict=True)]
    return write_rows(tmp_path / "rows.parquet", *records)


def items(file: Path) -> list[dict[str, Any]]:
    """What training sees."""
    questions, table = Questions(PROMPT, None, {}), read_table(file)
    records = [record_at(table, number, file) for number in range(table.num_rows)]
    return [questions.item(record, resolve_image(record, file), number) for number, record in enumerate(records)]


def test_every_trainer_of_the_command_has_a_format() -> None:
    assert [one.value for one in For] == list(get_args(Trainer)) == list(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", get_args(Trainer))
def test_what_a_reward_receives_is_in_every_line(trainer: Trainer, file: Path, tmp_path: Path) -> None:
    lines = export(file, tmp_path / "out", trainer, Questions(PROMPT, None, {}), silent).read_text().splitlines()
    for item, line in zip(items(file), lines, strict=True):
        assert json.dumps(item["reward_model"]["ground_truth"]) in line
        assert json.dumps(item["data_source"]) in line and item["extra_info"]["sha256"] in line
        (text,) = [part["text"] for part in item["raw_prompt"][0]["content"] if part["type"] == "text"]
        assert json.dumps(text)[1:-1] in line
    shown = sorted((tmp_path / "out" / "images").iterdir())
    assert len(shown) == 2, "once per image"
    for path in shown:
        with Image.open(path) as image:
            assert image.size == (56, 84) and image.mode == "RGB"


@pytest.mark.slow
def test_trls_loader_reads_rows_that_are_equal(file: Path, tmp_path: Path) -> None:
    path = export(file, tmp_path / "out", "trl", Questions(PROMPT, None, {}), silent)
    rows = load_dataset("json", data_files=str(path), split="train").cast_column("image", ImageFeature())
    for row, item in zip(rows, items(file), strict=True):
        assert row["extra_info"] == item["extra_info"] and row["data_source"] == item["data_source"]
        assert row["ground_truth"] == item["reward_model"]["ground_truth"]
        assert row["prompt"] == [{"role": "user", "content": item["raw_prompt"][0]["content"][1]["text"]}]
        assert np.array_equal(row["image"], load_policy_image(item["extra_info"]["image"], (56, 84)))


@pytest.mark.slow
def test_verls_own_data_set_reads_rows_that_are_equal(file: Path, tmp_path: Path, warm_policy: Path) -> None:
    from omegaconf import OmegaConf
    from transformers import AutoProcessor
    from verl.utils.dataset.rl_dataset import RLHFDataset

    path = export(file, tmp_path / "out", "verl", Questions(PROMPT, None, {}), silent)
    processor = AutoProcessor.from_pretrained(warm_policy)
    config = OmegaConf.create({"max_prompt_length": 4096, "cache_dir": str(tmp_path / "cache"), "shuffle": False})
    rows = RLHFDataset([str(path)], processor.tokenizer, config, processor)
    assert len(rows) == len(items(file))
    for number, item in enumerate(items(file)):
        row = rows[number]
        assert {key: row[key] for key in ("data_source", "reward_model", "extra_info")} == {
            key: item[key] for key in ("data_source", "reward_model", "extra_info")
        }
        (message,) = row["raw_prompt"]
        image, text = message["content"]
        assert text == item["raw_prompt"][0]["content"][1]
        assert (image["type"], image["resized_width"], image["resized_height"]) == ("image", 56, 84)


@pytest.mark.slow
def test_images_that_are_there_are_kept(file: Path, tmp_path: Path) -> None:
    questions = Questions(PROMPT, None, {})
    first = export(file, tmp_path / "out", "trl", questions, silent).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
    assert export(file, tmp_path / "out", "trl", questions, silent).read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_a_changed_image_names_its_row_and_leaves_no_file(file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(file.parent / "b.png")
    names = f"{file}: row 2: ", "b.png: ", sha256_of(file.parent / "b.png"), "Restore it"
    with refused(DataError, "digest_differs", *names):
        export(file, tmp_path / "out", "trl", Questions(PROMPT, None, {}), silent)
    assert not (tmp_path / "out" / "rows.jsonl").exists()


@pytest.mark.slow
def test_a_missing_image_and_a_token_in_a_sentence_name_their_row(tmp_path: Path) -> None:
    cases = ("gone", {}, "no_such_image", "a.png"), ("token", {"sentence": "a <image>"}, "token_in_sentence", "<image>")
    for name, change, code, named in cases:
        (tmp_path / name).mkdir()
        record = make_record(tmp_path / name, "a.png", **change)
        file = write_rows(tmp_path / name / "rows.parquet", record)
        if name == "gone":
            (tmp_path / name / "a.png").unlink()
        with refused(DataError, code, f"{file}: row 0: ", named):
            export(file, tmp_path / "out", "trl", Questions(PROMPT, None, {}), silent)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--for", "slime"], ["'slime'", "'verl', 'trl', 'verifiers', 'swift'"]),
        (["--for", "trl", "--recipe", "sam"], ["recipe", "'sam'", "samr1_tiny"]),
        (["--for", "trl", "--policy", "nowhere/at/all"], ["nowhere/at/all"]),
        (["--for", "trl", "--set", "samr1.policy_size=[141,140]"], ["samr1.policy_size=[140, 140]"]),
    ],
)
def test_what_the_command_refuses(
    options: list[str], names: list[str], file: Path, warm_policy: Path, tmp_path: Path
) -> None:
    policy = [] if "--policy" in options else ["--policy", str(warm_policy)]
    recipe = [] if "--recipe" in options else ["--recipe", "samr1_tiny"]
    command = ["data", "export", str(file), *recipe, *policy, *options, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code in (1, 2) and all(name in done.stderr for name in names), done.output
    assert not (tmp_path / "out" / "rows.jsonl").exists()
