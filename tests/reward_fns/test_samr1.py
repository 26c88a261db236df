"""SAM-R1's reward: golden cases, the same keys on every path, bad rows as errors and bad answers as reasons."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from reward_fns.samr1 import ARGUMENTS, CONSTANTS, compute_score, tier_of
from samr1_verl.answers import Reason
from samr1_verl.config import ConfigError
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.rows.ground_truth import RowError
from samr1_verl.segmenters import SegmenterError
from samr1_verl.service import client as service_client
from tests.errors import refused
from tests.masks import rectangle_in
from tests.reward_fns.scoring import SEGMENTER
from tests.service.fake import image_file
from tests.test_answers import DEGENERATE

H, W = 100, 200  # original
PIXELS = {"intersection", "union", "ignored", "ignored_predicted"}
KEYS = {"score", "acc", "seg", "think", "format", *PIXELS, *(f"answer/{reason.value}" for reason in Reason)}


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    return rectangle_in((H, W), x1, y1, x2, y2)


def truth_json(*masks: np.ndarray, **changes) -> str:
    row = {"size": [H, W], "masks": [encode_rle(mask) for mask in masks], "ignore": None, "boxes": [], "points": []}
    return json.dumps(row | changes)


TRUTH = truth_json(rectangle(20, 10, 120, 60))  # 100 x 50 = 5,000 pixels


def response(answer: object, think: bool = True) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return f"<think>Left.</think><answer>{text}</answer>" if think else f"<answer>{text}</answer>"


def box_answer(x1: float, y1: float, x2: float, y2: float) -> dict:
    return {"bbox": [x1, y1, x2, y2], "points_1": [x1 + 1, y1 + 1], "points_2": [x2 - 1, y2 - 1]}


@pytest.fixture
def score(fake, tmp_path):
    """Scores a response; the policy saw the image at its own size unless told otherwise."""
    path, digest = image_file(tmp_path, 7, (H, W))
    extra_info = {"image": str(path), "sha256": digest, "policy_size": [W, H], "frame": "absolute"}

    async def score(text, truth=TRUTH, extra=None, **kwargs):
        options = {"segmenter": SEGMENTER} | kwargs
        return await compute_score("shapes", text, truth, extra_info | (extra or {}), **options)

    return score


def check_keys(result: dict[str, float]) -> None:
    assert result.keys() == KEYS
    assert all(type(value) is float for value in result.values())
    assert result["score"] == result["seg"] + result["think"] + result["format"]
    assert 0 <= result["score"] <= 6 and 0 <= result["acc"] <= 1
    assert sum(value for key, value in result.items() if key.startswith("answer/")) == 1 - result["format"]


# The truth is columns 20 to 120, the answer columns 20 to `right`, both rows 10 to 60: IoU = (right - 20) / 100.
@pytest.mark.parametrize(
    ("right", "seg"),
    [
        (120, 4),  # 5000 / 5000 = 1
        (101, 4),  # 4050 / 5000 = 0.81
        (100, 3),  # 4000 / 5000 = 0.8, not above 0.8
        (91, 3),  # 3550 / 5000 = 0.71
        (90, 2),  # 3500 / 5000 = 0.7, not above 0.7
        (71, 2),  # 2550 / 5000 = 0.51
        (70, 0),  # 2500 / 5000 = 0.5, not above 0.5
        (21, 0),
    ],
)
async def test_the_tiers_are_strictly_above_their_threshold(score, right, seg):
    result = await score(response(box_answer(20, 10, right, 60)))
    check_keys(result)
    assert result["acc"] == (right - 20) / 100
    assert (result["intersection"], result["union"]) == ((right - 20) * 50, 5000)
    assert (result["seg"], result["think"], result["format"], result["score"]) == (seg, 1, 1, seg + 2)


async def test_think_and_format_count_without_each_other(score):
    unthinking = await score(response(box_answer(20, 10, 120, 60), think=False))
    assert (unthinking["think"], unthinking["format"], unthinking["seg"], unthinking["score"]) == (0, 1, 4, 5)
    wordy = await score(response("on the left"))
    assert (wordy["think"], wordy["format"], wordy["seg"], wordy["score"]) == (1, 0, 0, 1)
    assert wordy["answer/not_json"] == 1


@pytest.mark.parametrize(
    ("frame", "policy_size", "box"),
    [
        ("absolute", [840, 840], (84, 84, 504, 504)),  # x times 840/200 = 4.2, y times 840/100 = 8.4
        ("absolute", [400, 200], (40, 20, 240, 120)),  # both times 2
        ("thousand", [840, 420], (100, 100, 600, 600)),  # x times 1000/200 = 5, y times 1000/100 = 10
    ],
)
async def test_answers_are_read_in_the_policys_frame(score, frame, policy_size, box):
    result = await score(response(box_answer(*box)), extra={"frame": frame, "policy_size": policy_size})
    assert (result["acc"], result["score"]) == (1, 6)


async def test_objects_are_united_on_both_sides(score):
    truth = truth_json(rectangle(0, 0, 40, 50), rectangle(100, 0, 140, 50))  # 2,000 + 2,000 pixels
    both = await score(response([box_answer(0, 0, 40, 50), box_answer(100, 0, 140, 50)]), truth)
    assert (both["acc"], both["union"], both["score"]) == (1, 4000, 6)
    half = await score(response([box_answer(0, 0, 40, 50)]), truth)
    assert (half["acc"], half["score"]) == (0.5, 2)


async def test_ignored_pixels_count_on_neither_side(score):
    truth = truth_json(rectangle(20, 10, 120, 60), ignore=encode_rle(rectangle(20, 10, 120, 35)))  # 2,500 remain
    result = await score(response(box_answer(20, 10, 120, 60)), truth)
    assert (result["intersection"], result["union"], result["acc"]) == (2500, 2500, 1)
    assert (result["ignored"], result["ignored_predicted"]) == (2500, 2500)
    unusable = await score("no answer", truth)
    assert (unusable["intersection"], unusable["union"], unusable["acc"]) == (0, 2500, 0)
    assert (unusable["ignored"], unusable["ignored_predicted"]) == (2500, 0)


async def test_without_a_target_the_empty_list_earns_most(score):
    refused = await score(response([]), truth_json())
    assert (refused["acc"], refused["union"], refused["score"]) == (1, 0, 6)
    assert (await score(response([])))["score"] == 1  # the row has an object
    nothing = await score(response(box_answer(20, 10, 120, 60)), truth_json())
    assert (nothing["acc"], nothing["union"], nothing["score"]) == (0, 5000, 2)
    unusable = await score("no answer", truth_json())
    assert (unusable["acc"], unusable["union"], unusable["score"]) == (0, 0, 0)


async def test_a_box_over_the_border_is_clipped_and_one_beyond_it_unusable(score):
    truth = truth_json(rectangle(0, 0, 50, 50))
    over = await score(response({"bbox": [-30, -1e308, 50, 50], "points": [[10, 10]]}), truth)
    assert (over["acc"], over["score"]) == (1, 6)
    beyond = await score(response({"bbox": [-30, 0, 0, 50], "points": [[10, 10]]}), truth)
    assert (beyond["answer/outside"], beyond["score"]) == (1, 1)
    point = await score(response({"bbox": [0, 0, 50, 50], "points": [[10, 10], [201, 10]]}), truth)
    assert (point["answer/outside"], point["score"]) == (1, 1)


async def test_equal_objects_are_decoded_once(score, fake):
    result = await score(response([box_answer(20, 10, 120, 60)] * 16))
    assert result["score"] == 6
    (client,) = service_client._clients.values()
    assert client.counters().decodes == 1
    assert (await score(response([box_answer(20, 10, 120, 60)] * 17)))["answer/many_objects"] == 1


async def test_the_recipes_values_override_the_papers(score):
    two_points = response(box_answer(20, 10, 90, 60))  # IoU 0.7
    assert (await score(two_points, reward={"thresholds": {0.5: 4}}))["seg"] == 4
    assert (await score(two_points, reward=OmegaConf.create({"thresholds": {0.6: 1, 0.9: 9}})))["seg"] == 1
    assert (await score(two_points, reward={"caps": {"points": 1}}))["answer/many_points"] == 1


@pytest.mark.parametrize("name", DEGENERATE)
async def test_degenerate_answers_score_their_format_terms_at_most(score, name):
    inside, reason = DEGENERATE[name]
    result = await score(response(inside))
    check_keys(result)
    assert result["seg"] == result["acc"] == result["format"] == 0
    assert result["score"] == result["think"]
    assert result[f"answer/{reason}"] == 1


async def test_the_whole_image_as_box_scores_what_its_iou_is(score):
    result = await score(response(box_answer(0, 0, W, H)))  # 5,000 of 20,000 pixels
    assert (result["acc"], result["score"]) == (0.25, 2)


async def test_the_same_group_encodes_its_image_once(score, fake):
    boxes = [box_answer(20, 10, 60 + 5 * number, 60) for number in range(8)]
    results = await asyncio.gather(*(score(response(box)) for box in boxes))
    assert len(fake.encoded) == 1
    assert [result["acc"] for result in results] == sorted(result["acc"] for result in results)


async def test_a_fault_of_the_segmenter_is_an_exception_never_a_score(score, fake):
    fake.fault = RuntimeError("out of memory")
    with refused(SegmenterError, "encode_failed", "out of memory"):
        await score(response(box_answer(20, 10, 120, 60)))


@pytest.mark.parametrize(
    ("truth", "extra", "code", "names"),
    [
        ("not json", {}, "bad_key", ["ground_truth: ", "Invalid JSON"]),
        (truth_json(size=[H]), {}, "bad_key", ["ground_truth.size.1: "]),
        (truth_json(size=[0, W]), {}, "bad_key", ["ground_truth.size.0: "]),
        (truth_json(masks="mask"), {}, "bad_key", ["ground_truth.masks: "]),
        (truth_json(masks=["~~"]), {}, "undecodable_rle", ["ground_truth.masks: RLE", "'~'"]),
        (truth_json(masks=["0"]), {}, "undecodable_rle", ["ground_truth.masks: RLE", "0 pixels", "100x200"]),
        (truth_json(ignore="0"), {}, "undecodable_rle", ["ground_truth.ignore: RLE", "0 pixels"]),
        (truth_json(unknown=1), {}, "bad_key", ["ground_truth.unknown: "]),
        (TRUTH, {"image": None}, "image_missing", ["extra_info.image", "extra_info.sha256"]),
        (TRUTH, {"sha256": 5}, "bad_key", ["extra_info.sha256: ", "found '5'"]),
        (TRUTH, {"policy_size": [0, 10]}, "bad_key", ["extra_info.policy_size.0: "]),
        (TRUTH, {"frame": "percent"}, "bad_key", ["extra_info.frame: ", "found 'percent'"]),
    ],
)
@pytest.mark.parametrize("text", [response(box_answer(20, 10, 120, 60)), "no answer"])
async def test_a_bad_row_is_an_error_for_every_answer(score, truth, extra, code, names, text):
    with refused(RowError, code, "data source 'shapes', row 17, image", *names):
        await score(text, truth, {"index": 17} | extra)


async def test_a_row_whose_size_is_not_its_images_is_an_error(score):
    truth = json.dumps({"size": [W, H], "masks": [encode_rle(rectangle(0, 0, 9, 9).T)]})
    with refused(RowError, "size_differs", "ground_truth.size: found 200x100", "100x200 (HxW)"):
        await score(response(box_answer(20, 10, 90, 60)), truth)


async def test_an_image_that_is_missing_or_changed_is_an_error(score, tmp_path):
    with refused(ImageError, "no_such_image", tmp_path / "gone.png"):
        await score(response(box_answer(20, 10, 120, 60)), extra={"image": str(tmp_path / "gone.png")})
    with refused(ImageError, "digest_differs", "7.png: ", "0" * 64):
        await score(response(box_answer(20, 10, 120, 60)), extra={"sha256": "0" * 64})


@pytest.mark.parametrize(
    ("reward", "code", "names"),
    [
        ({"threshold": {}}, "invalid_value", ["threshold: ", "Extra inputs"]),
        ({"thresholds": {}}, "invalid_value", ["thresholds: ", "at least 1", "found {}"]),
        ({"thresholds": [0.5]}, "invalid_value", ["thresholds: ", "valid dictionary", "found [0.5]"]),
        ({"thresholds": {"0.5": 2}}, "invalid_value", ["thresholds.0.5", "valid number", "found '0.5'"]),
        ({"thresholds": {0.5: float("nan")}}, "invalid_value", ["thresholds.0.5: ", "finite number", "found nan"]),
        ({"thresholds": {1.0: 2}}, "invalid_value", ["thresholds.1.0", "less than 1", "found 1.0"]),
        ({"caps": {"points": 0}}, "invalid_value", ["caps.points: ", "greater than 0", "found 0"]),
        ({"caps": {"points": True}}, "invalid_value", ["caps.points: ", "valid integer", "found True"]),
        ({"caps": {"points": "2"}}, "invalid_value", ["caps.points: ", "valid integer", "found '2'"]),
        ({"terms": {"lenght": 1}}, "no_such_term", ["terms.lenght: ", "seg, think"]),
        ({"terms": {"length": "1"}}, "invalid_value", ["terms.length: ", "valid number", "found '1'"]),
        ({"window": {"path": None, "step": 8}}, "key_not_read", ["window: ", "8", "caps, terms, thresholds"]),
    ],
)
def test_wrong_values_name_their_key(reward, code, names):
    key, *values = names
    with refused(ConfigError, code, f"samr1.reward.{key}", *values):
        ARGUMENTS.read(reward)


async def test_an_unknown_keyword_is_refused_and_verls_own_are_not(score):
    with refused(ConfigError, "unknown_argument", "reward_kwargs.max_point"):
        await score("", max_point=3)
    check_keys(await score("", reward_router_address="here", reward_model_tokenizer=None))


def test_the_recipe_states_the_papers_tiers():
    recipe = OmegaConf.load(Path(__file__).parents[2] / "recipes" / "recipe" / "samr1.yaml")
    arguments = ARGUMENTS.read(recipe.samr1.reward)
    assert (arguments.config.tiers, arguments.caps) == (CONSTANTS.tiers, CONSTANTS.caps)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_better_mask_never_scores_less(first, second):
    low, high = sorted((first, second))
    assert 0 <= tier_of(low, CONSTANTS.tiers) <= tier_of(high, CONSTANTS.tiers) <= 4


corners = st.tuples(st.floats(-50, W + 50), st.floats(-50, H + 50), st.floats(-50, W + 50), st.floats(-50, H + 50))
USABLE = st.lists(corners.map(lambda box: box_answer(*box)), min_size=1, max_size=3).map(response)
DEGENERATE_TEXTS = st.sampled_from([inside for inside, _ in DEGENERATE.values()]).map(response)


@given(text=st.text(max_size=80) | DEGENERATE_TEXTS | USABLE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_keys_are_the_same_for_every_response(score, text):
    check_keys(asyncio.run(score(text)))


@pytest.mark.slow
async def test_with_the_real_small_sam(small_sam, tmp_path):
    image, mask = Image.new("RGB", (W, H), (90, 90, 90)), Image.new("1", (W, H))
    ImageDraw.Draw(image).ellipse([40, 20, 100, 80], (214, 39, 40))
    ImageDraw.Draw(mask).ellipse([40, 20, 100, 80], 1)
    image.save(tmp_path / "circle.png")
    extra_info = {
        "image": str(tmp_path / "circle.png"),
        "sha256": sha256_of(tmp_path / "circle.png"),
        "policy_size": [840, 840],
        "frame": "absolute",
    }
    kwargs = {"segmenter": SEGMENTER | {"path": str(small_sam)}}
    truth = truth_json(np.asarray(mask))

    def answer(x1: float, y1: float, x2: float, y2: float) -> str:  # original to policy: x times 4.2, y times 8.4
        box = [4.2 * x1, 8.4 * y1, 4.2 * x2, 8.4 * y2]
        centre = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        return response({"bbox": box, "points_1": centre, "points_2": centre})

    good = await compute_score("shapes", answer(40, 20, 101, 81), truth, extra_info, **kwargs)
    bad = await compute_score("shapes", answer(120, 20, 180, 80), truth, extra_info, **kwargs)
    assert good["acc"] > 0.95 and good["score"] == 6
    assert bad["acc"] < 0.2 and bad["score"] == 2


@pytest.mark.slow
def test_importing_the_rewards_imports_neither_verl_nor_ray_nor_torch():
    code = (
        "import importlib, pkgutil, sys, reward_fns\n"
        "names = [module.name for module in pkgutil.iter_modules(reward_fns.__path__)]\n"
        "assert {'samr1', 'seg_zero', 'vision_reasoner', 'star', 'dr_seg', 'composed', 'trl'} <= set(names)\n"
        "[importlib.import_module(f'reward_fns.{name}') for name in names]\n"
        "heavy = {'verl', 'ray', 'torch', 'transformers', 'onnxruntime', 'trl'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
