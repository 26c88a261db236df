"""`samr1 eval` on drawn scenes, with the tiny policy, the small SAM and a real kill."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.local import LocalPolicy
from samr1_verl.scoring.sample import Sample, read_samples
from tests.conftest import ROOT
from tests.policies.chat_server import NAME, ChatServer, serving
from tests.policies.scripted import Scripted
from tests.row_files import make_record, write_rows
from tests.service.servers import environment, free_port


@pytest.fixture
def options(small_sam: Path, warm_policy: Path) -> list[str]:
    """The recipe's paths, for a working directory that is not the checkout; questions of four at a time."""
    paths = {"samr1.segmenter.path": small_sam, "actor_rollout_ref.model.path": warm_policy}
    values = [*(f"{key}={path}" for key, path in paths.items()), "samr1.segmenter.service.cache_dir=null"]
    return ["--recipe", "samr1_tiny", "--batch-size", "4", *(part for one in values for part in ("--set", one))]


def evaluate(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    return done.exit_code, re.sub(r"\s+", " ", done.output).strip() if done.exit_code else done.output


def results(output: str) -> dict[str, Any]:
    """The last line, which is what is stored but for the tables."""
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_figures_are_printed_stored_and_of_every_row(options: list[str], drawn: Path, tmp_path: Path) -> None:
    status, output = evaluate(drawn / "test.parquet", *options, "--out", tmp_path)
    assert status == 0, output
    found = results(output)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert {key: value for key, value in stored.items() if key != "tables"} == found
    samples = list(read_samples(tmp_path / "predictions.jsonl"))
    assert [one.index for one in samples] == list(range(8)) and found["rows"] == 8 and found["images"] == 4
    mean = sum(one.scores["iou/lisa"] for one in samples) / 8
    assert found["protocol"] == "lisa" and found["giou"] == found["lisa"]["giou"] == pytest.approx(mean)
    assert 0.2 < found["giou"] < 0.9 and found["format_rate"] == 1.0, "warmed up to rough boxes"
    assert found["giou_ci"][0] <= found["giou"] <= found["giou_ci"][1]
    assert "protocol lisa" in output and f"{found['giou']:.3f}" in output

    again = evaluate(drawn / "test.parquet", *options, "--out", tmp_path, "--protocol", "segzero")[1]
    assert results(again)["giou"] == found["segzero"]["giou"] and "protocol segzero" in again
    refused = evaluate(drawn / "test.parquet", *options, "--out", tmp_path, "--parsing", "lenient")
    assert refused[0] == 1 and "parsing: 'strict' there, 'lenient' now" in refused[1]


def stable(samples: Iterator[Sample]) -> list[Sample]:
    return [one.model_copy(update={"image": ""}) for one in samples]


@pytest.mark.thorough
def test_a_killed_command_goes_on(options: list[str], drawn: Path, tmp_path: Path) -> None:
    options = [*options, "--batch-size", "1"]
    command = [sys.executable, "-m", "samr1_verl.cli", "eval", str(drawn / "test.parquet"), *options]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], env=environment(), cwd=ROOT)
    predictions = tmp_path / "killed" / "predictions.jsonl"
    deadline = time.monotonic() + 300
    while not (predictions.exists() and predictions.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = predictions.read_bytes().count(b"\n")
    assert 1 <= before < 8
    killed, whole = (
        evaluate(drawn / "test.parquet", *options, "--out", tmp_path / name)[1] for name in ("killed", "whole")
    )
    assert results(killed) == results(whole)
    assert predictions.read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


@pytest.mark.slow
def test_a_server_gives_the_figures_of_the_policy_behind_it(
    options: list[str], warm_policy: Path, drawn: Path, tmp_path: Path
) -> None:
    chat = ChatServer(LocalPolicy(Files(warm_policy), 48))
    with serving(chat.app) as address:
        served = evaluate(drawn / "test.parquet", *options, "--server", address, "--out", tmp_path / "a")
    assert served[0] == 0, served[1]
    local = evaluate(drawn / "test.parquet", *options, "--out", tmp_path / "b")
    assert stable(read_samples(tmp_path / "a/predictions.jsonl")) == stable(
        read_samples(tmp_path / "b/predictions.jsonl")
    )
    assert results(served[1])["lisa"] == results(local[1])["lisa"]
    again = evaluate(drawn / "test.parquet", *options, "--server", address, "--out", tmp_path / "a")
    assert results(again[1]) == results(served[1]), "finished: the server is not needed any more"
    wrong = evaluate(drawn / "test.parquet", *options, "--server", address, "--model", NAME, "--out", tmp_path / "a")
    assert wrong[0] == 1 and f"policy.model: None there, '{NAME}' now" in wrong[1]


@pytest.mark.slow
def test_dialogues_are_evaluated_turn_by_turn(small_sam: Path, drawn: Path, tmp_path: Path) -> None:
    boxes = ([0, 0, 140, 140], [70, 0, 140, 140])
    first, second = (f'<think>here</think><answer>{{"bbox": {box}, "points": [[100, 70]]}}</answer>' for box in boxes)
    paths = ["--recipe", "samr1_refine_tiny", "--set", f"samr1.segmenter.path={small_sam}"]
    paths += ["--set", "samr1.segmenter.service.cache_dir=null", "--out", str(tmp_path)]
    chat = ChatServer(Scripted([first, second, "<think>it fits</think><answer>done</answer>"]))
    with serving(chat.app) as address:
        status, output = evaluate(drawn / "test.parquet", *paths, "--server", address)
        assert status == 0, output
        again = evaluate(drawn / "test.parquet", *paths, "--server", address)
        other = evaluate(drawn / "test.parquet", *paths, "--server", address, "--set", "samr1.refine.max_turns=2")
    turns = results(output)["turns"]
    assert (turns["mean"], turns["done"], turns["tokens"], len(chat.asked)) == (3.0, 1.0, 30.0, 24)
    one, two, three = (stop["lisa"]["giou"] for stop in turns["after"])
    assert one != two == three == results(output)["giou"]
    assert "3.00 turns, 30.0 tokens; 100.0% end with done" in output
    assert results(again[1]) == results(output)
    assert other[0] == 1 and "policy.refine.max_turns: 3 there, 2 now" in other[1]


@pytest.mark.slow
def test_bad_input_ends_with_what_to_do(options: list[str], drawn: Path, tmp_path: Path) -> None:
    file = drawn / "test.parquet"

    def refused(*arguments: Any) -> str:
        status, output = evaluate(*arguments, *options, "--out", tmp_path / "out")
        assert status == 1 and output.startswith("error: ") and "Traceback" not in output
        return output

    assert "no such data file" in refused(tmp_path / "none.parquet")
    assert "no such folder. Name a model folder" in refused(file, "--policy", tmp_path / "gone")
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    assert "no list of models" in refused(file, "--server", nobody, "--model", "m")

    table = pq.read_table(file)
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({b"samr1_schema_version": b"99"}), other)
    assert "schema version 99" in refused(other)

    broken = write_rows(tmp_path / "broken" / "rows.parquet")
    (broken.parent / "a.png").write_text("no image")
    assert "row 0: " in (said := refused(broken)) and "unreadable as an image" in said
    (broken.parent / "a.png").unlink()
    assert "the images of 1 of 1 rows are missing, the first is row 0" in refused(broken)
    boxes = write_rows(tmp_path / "boxes" / "rows.parquet", make_record(tmp_path, masks=[], boxes=[[1, 1, 9, 9]]))
    assert "row 0: holds 1 boxes and no mask" in refused(boxes)
    assert (
        not list((tmp_path / "out").glob("predictions.jsonl")) or not (tmp_path / "out/predictions.jsonl").read_bytes()
    )


def test_recipes_and_options_that_do_not_fit_are_named(drawn: Path, tmp_path: Path) -> None:
    file = drawn / "test.parquet"
    status, output = evaluate(file, "--recipe", "sam_r1")
    assert status == 1 and "recipe 'sam_r1': no such recipe, expected one of" in output
    status, output = evaluate(file, "--recipe", "samr1_tiny", "--set", "samr1.prompt=none")
    assert status == 1 and "prompt" in output
    status, output = evaluate(file, "--recipe", "samr1_tiny", "--set", f"samr1.segmenter.path={tmp_path / 'no'}")
    assert status == 1 and "Type: make weights" in output
    assert evaluate(file, "--server", "http://x/v1", "--policy", "y")[0] == 2
    assert evaluate(file, "--model", "y")[0] == 2
