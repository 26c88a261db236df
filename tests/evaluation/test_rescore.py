"""`samr1 rescore`: our own predictions, written in every form, get the figures of `samr1 eval` to the last digit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.evaluation.run import results_of, store_results
from samr1_verl.geometry.giou import PROTOCOLS
from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.rows.record import read_table, record_at
from samr1_verl.scoring.sample import Sample, read_samples
from tests.evaluation.world import RulePolicy, answer, evaluation
from tests.masks import rectangle_in
from tests.row_files import make_record, write_rows

SIZE_WH = (64, 48)
RESPONSES = [
    answer([16, 12, 32, 24]),
    answer([10, 12, 32, 24], [40, 30, 60, 44]),
    "no answer at all",
    "<think>none</think><answer>[]</answer>",
    answer([0, 0, 20, 20]),
    "unreadable, on a row without a target",
    "<think>none</think><answer>[]</answer>",
    answer([16, 12, 24, 24]),
    answer([50, 40, 64, 48]),
]
NO_TARGET = (4, 5, 6)  # rows


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows, two per image; three have no target, others have pixels that do not count."""
    folder = tmp_path_factory.mktemp("rows")
    ignore = encode_rle(rectangle_in(SIZE_WH[::-1], 20, 10, 26, 20))
    records = []
    for row in range(len(RESPONSES)):
        changes: dict[str, Any] = {"sentence": f"sentence {row}", "source": {"sent_id": f"s{row}", "image_id": "7"}}
        if row in NO_TARGET:
            changes |= {"masks": [], "boxes": []}
        if row % 3 == 1:
            changes |= {"ignore": ignore, "category": "half"}
        records.append(make_record(folder, f"{row // 2}.png", SIZE_WH, **changes))
    return write_rows(folder / "rows.parquet", *records)


@pytest.fixture(scope="module")
def evaluated(file: Path) -> Path:
    """The folder of `samr1 eval`."""
    folder = file.parent / "evaluated"
    policy = RulePolicy(lambda item, _: RESPONSES[item["extra_info"]["index"]])
    samples = evaluation(file, policy, seed=3).run(folder, False, lambda *_: None)
    store_results(results_of(samples, "lisa", 3, {}), folder)
    return folder


def coco(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def usable(evaluated: Path) -> list[Sample]:
    """Unusable answers have no mask to write; the rows are then missing."""
    return [one for one in read_samples(evaluated / "predictions.jsonl") if one.reason in (None, "no_target")]


def as_jsonl(evaluated: Path, out: Path) -> Path:
    lines = [{"row": one.index, "rle": coco(decode_rle(one.mask, one.size))} for one in usable(evaluated)]
    (out / "p.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in reversed(lines)))
    return out / "p.jsonl"


def as_pngs(evaluated: Path, out: Path) -> Path:
    (out / "pngs").mkdir()
    for one in usable(evaluated):
        mask = decode_rle(one.mask, one.size)
        if one.index % 2:
            Image.fromarray(mask).save(out / "pngs" / f"{one.index:06d}.png")  # 1 bit
        else:
            Image.fromarray(mask.astype(np.uint8) * (255 if one.index % 4 else 1)).save(out / f"pngs/{one.index}.png")
    return out / "pngs"


def as_coco(evaluated: Path, out: Path) -> Path:
    results = [
        {"image_id": one.index, "category_id": 1, "score": 0.1, "segmentation": coco(decode_rle(one.mask, one.size))}
        for one in usable(evaluated)
    ]
    (out / "p.json").write_text(json.dumps(results))
    return out / "p.json"


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "jsonl": as_jsonl,
    "png": as_pngs,
    "coco": as_coco,
    "eval": lambda evaluated, _: evaluated,
    "eval's file": lambda evaluated, _: evaluated / "predictions.jsonl",
}


def rescore(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["rescore", *map(str, arguments)])
    return done.exit_code, done.output if done.exit_code == 0 else " ".join(done.output.split())


def without_reasons(results: dict[str, Any]) -> dict[str, Any]:
    """All but what needs the text of an answer: its think tags and the reason why it is unusable."""
    results = {key: value for key, value in results.items() if key not in ("unusable", "settings", "think_rate")}
    tables = results["tables"].values()
    for group in (group for groups in tables for group in groups.values()):
        group.pop("think_rate", None)
    return results


@pytest.mark.parametrize("form", FORMS)
def test_our_own_predictions_have_evals_figures_to_the_last_digit(
    form: str, file: Path, evaluated: Path, tmp_path: Path
) -> None:
    predictions = FORMS[form](evaluated, tmp_path)
    status, output = rescore(predictions, file, "--out", tmp_path / "out", "--seed", 3)
    assert status == 0, output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = json.loads((evaluated / "results.json").read_text())
    assert without_reasons(found) == without_reasons(expected)
    assert {name for name in PROTOCOLS if found[name] == expected[name]} == set(PROTOCOLS)
    foreign = {"missing": 2, "no_target": 2}
    assert found["unusable"] == (expected["unusable"] if "eval" in form else foreign)
    assert json.loads(output.splitlines()[-1]) == {key: value for key, value in found.items() if key != "tables"}
    assert ("think_rate" in found) == ("eval" in form), "masks have no text"
    assert len(list(read_samples(tmp_path / "out" / "predictions.jsonl"))) == len(RESPONSES)


def test_a_missing_prediction_is_an_empty_mask_and_counts(file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"row": 0, "rle": truth_of(file, 0)}) + "\n")
    status, output = rescore(tmp_path / "p.jsonl", file, "--out", tmp_path)
    found = json.loads(output.splitlines()[-1])
    assert status == 0 and found["rows"] == 9 and found["unusable"] == {"missing": 8}
    assert found["lisa"]["giou"] == pytest.approx(1 / 9, abs=1e-6) and "missing 8" in output
    assert found["star"]["giou"] == pytest.approx(3 / 9, abs=1e-6), "rows 5 and 6: an empty mask, and no other is right"


def truth_of(file: Path, row: int) -> dict[str, Any]:
    record = record_at(read_table(file), row, file)
    return {"size": [record.height, record.width], "counts": record.masks[0]}


def test_an_evaluation_is_not_overwritten(file: Path, evaluated: Path) -> None:
    before = (evaluated / "predictions.jsonl").read_bytes()
    status, output = rescore(evaluated, file, "--out", evaluated)
    assert status == 1 and f"error: {evaluated}: " in output and "samr1 eval" in output and "--out" in output
    assert (evaluated / "predictions.jsonl").read_bytes() == before


def test_a_row_may_be_named_by_its_source(file: Path, tmp_path: Path) -> None:
    results = [{"image_id": f"s{row}", "segmentation": truth_of(file, row)} for row in (8, 0)]
    (tmp_path / "p.json").write_text(json.dumps(results))
    status, output = rescore(tmp_path / "p.json", file, "--key", "sent_id", "--out", tmp_path)
    assert status == 0 and json.loads(output.splitlines()[-1])["unusable"] == {"missing": 7}
    assert f"{tmp_path / 'p.json'}: result 0: {file} has no row 's8'" in rescore(tmp_path / "p.json", file)[1]
    shared = rescore(tmp_path / "p.json", file, "--key", "image_id")[1]
    assert f"error: {file}: rows 0 and 1 " in shared and "image_id, '7'" in shared
    absent = rescore(tmp_path / "p.json", file, "--key", "ref_id")[1]
    assert f"error: {file}: row 0: " in absent and "'ref_id'" in absent and "sent_id, image_id" in absent


def test_several_masks_of_a_row_are_refused_or_united(file: Path, tmp_path: Path) -> None:
    halves = [rectangle_in(SIZE_WH[::-1], *box) for box in ((16, 12, 25, 24), (23, 12, 32, 24))]
    results = [{"image_id": 0, "score": 0.9 - i / 2, "segmentation": coco(half)} for i, half in enumerate(halves)]
    (tmp_path / "p.json").write_text(json.dumps(results))
    status, output = rescore(tmp_path / "p.json", file)
    assert status == 1 and "result 1: row 0 " in output and "--unite" in output
    status, output = rescore(tmp_path / "p.json", file, "--unite", "--limit", 1, "--out", tmp_path)
    assert status == 0 and json.loads(output.splitlines()[-1])["segzero"]["giou"] == 1.0


def test_a_line_may_say_what_its_mask_does_not(file: Path, tmp_path: Path) -> None:
    empty = coco(np.zeros(SIZE_WH[::-1], dtype=bool))
    for says, lisa, rela in (("objects", 1.0, 0.0), ("nothing", 1.0, 1.0), ("unusable", 0.0, 0.0), (None, 1.0, 1.0)):
        lines = [{"row": row, "rle": empty, **({"answer": says} if says else {})} for row in NO_TARGET]
        (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        status, output = rescore(tmp_path / "p.jsonl", file, "--out", tmp_path)
        found = json.loads(output.splitlines()[-1])
        assert status == 0 and found["lisa"]["giou"] == pytest.approx(3 * lisa / 9)
        assert found["rela"]["giou"] == pytest.approx(3 * rela / 9), says


def test_run_lengths_may_be_a_list(file: Path, tmp_path: Path) -> None:
    mask = rectangle_in(SIZE_WH[::-1], 16, 12, 32, 24)
    runs = [16 * 48 + 12, *([12, 36] * 15), 12, 32 * 48 + 24]
    lines = [{"row": 0, "rle": {"size": [48, 64], "counts": runs}}]
    (tmp_path / "p.jsonl").write_text(json.dumps(lines[0]))
    status, _ = rescore(tmp_path / "p.jsonl", file, "--out", tmp_path)
    (first, *_) = read_samples(tmp_path / "predictions.jsonl")
    assert status == 0 and (decode_rle(first.mask, first.size) == mask).all()


def test_rescored_folders_are_compared_and_stored_predictions_meet_the_rows_of_today(
    file: Path, evaluated: Path, tmp_path: Path
) -> None:
    assert rescore(as_jsonl(evaluated, tmp_path), file, "--out", tmp_path / "out")[0] == 0
    done = CliRunner().invoke(app, ["compare", str(evaluated), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1])["giou"]["difference"] == 0

    records = [record_at(read_table(file), row, file) for row in range(len(RESPONSES))]
    changed = [record.model_copy(update={"masks": records[0].masks, "boxes": []}) for record in records]
    newer = write_rows(tmp_path / "newer.parquet", *changed)
    found = json.loads(rescore(evaluated, newer, "--out", tmp_path / "newer")[1].splitlines()[-1])
    assert found["lisa"]["giou"] != json.loads((evaluated / "results.json").read_text())["lisa"]["giou"]
    other = write_rows(tmp_path / "other.parquet", *(one.model_copy(update={"sentence": "x"}) for one in records))
    output = rescore(evaluated, other)[1]
    assert "line 1: row 0 " in output and "'sentence 0'" in output and "'x'" in output
