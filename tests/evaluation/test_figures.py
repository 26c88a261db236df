"""The figures of every protocol against the published evaluators of tests/protocols.py, on label maps of pixels.

Label maps are LISA's: 0 background, 1 object, 255 ignored. Responses go the whole way: parsed, segmented, counted.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samr1_verl.evaluation.figures import figures, intervals, reasons, tables
from samr1_verl.evaluation.judge import judged
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.prompts.questions import item_of
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.rows.record import Record
from samr1_verl.scoring.sample import Reader, Sample
from tests.evaluation.world import answer, inference_config
from tests.protocols import EVALUATORS, Row

SIZE = (48, 64)


async def sampled(
    folder: Path, labels: list[np.ndarray], response: str, index: int = 0, image: str = "a", **more: Any
) -> Sample:
    """A judged sample; `labels` holds one map an object."""
    path = folder / f"{image}.png"
    if not path.exists():
        Image.fromarray(np.full((*SIZE, 3), sum(map(ord, image)) % 256, np.uint8)).save(path)
    ignore = np.any([one == 255 for one in labels], axis=0)
    record = Record(
        **{"data_source": "test", "sentence": "it", **more},
        image=str(path),
        sha256=sha256_of(path),
        height=SIZE[0],
        width=SIZE[1],
        masks=[encode_rle(one == 1) for one in labels if (one == 1).any()],
        ignore=encode_rle(ignore) if ignore.any() else None,
    )
    config = inference_config()
    item = item_of(record, str(path), index, SIZE[::-1], config.prompt, load_prompt("tiny"))
    return judged(await Reader(config.segmenter, config.caps).sample(item, response, {}))


def painted(*boxes: tuple[int, int, int, int], label: int = 1) -> np.ndarray:
    labels = np.zeros(SIZE, np.int64)
    for x1, y1, x2, y2 in boxes:
        labels[y1:y2, x1:x2] = label
    return labels


A, B, C = (4, 4, 20, 20), (30, 8, 50, 40), (0, 0, 64, 48)
HALF_IGNORED = np.where(painted((4, 4, 12, 20)) == 1, 255, painted(A))
ONLY_IGNORED = painted(A, label=255)
EMPTY_LIST = "<think>none</think><answer>[]</answer>"
EDGES: dict[str, tuple[list[np.ndarray], list[tuple[int, int, int, int]] | str]] = {
    "the truth itself": ([painted(A)], [A]),
    "another object": ([painted(A)], [B]),
    "empty truth, empty prediction": ([painted()], EMPTY_LIST),
    "empty truth, unreadable answer": ([painted()], "I see none."),
    "empty truth, something predicted": ([painted()], [A]),
    "empty prediction": ([painted(A)], EMPTY_LIST),
    "half of the truth ignored": ([HALF_IGNORED], [A]),
    "all of the truth ignored": ([ONLY_IGNORED], [A]),
    "all of the truth ignored, unreadable answer": ([ONLY_IGNORED], "nothing"),
    "prediction beside the ignored pixels": ([ONLY_IGNORED], [B]),
    "several objects, all found": ([painted(A), painted(B)], [A, B]),
    "several objects, one found": ([painted(A), painted(B)], [B]),
    "several objects that overlap": ([painted(A), painted((10, 10, 40, 30))], [C]),
    "no answer": ([painted(A)], "I cannot see it."),
    "not JSON": ([painted(A)], "<think>x</think><answer>{bbox: here}</answer>"),
    "off the image": ([painted(A)], [(100, 100, 120, 120)]),
}


async def case(folder: Path, name: str, index: int) -> tuple[Sample, Row]:
    """The sample by our code, and the row for the evaluators."""
    labels, asked = EDGES[name]
    response = asked if isinstance(asked, str) else answer(*asked)
    usable = not isinstance(asked, str) and all(x1 < SIZE[1] for x1, *_ in asked)
    together = np.where(np.any([one == 1 for one in labels], axis=0), 1, np.max(labels, axis=0))
    sample = await sampled(folder, labels, response, index, image=str(index))
    assert (sample.reason is None) == usable
    state = "objects" if usable else "nothing" if response == EMPTY_LIST else "unusable"
    return sample, Row((painted(*asked) if usable else painted()) == 1, together, state)


def expected(rows: list[Row]) -> dict[str, Any]:
    return {name: pytest.approx(evaluate(rows), abs=1e-6) for name, evaluate in EVALUATORS.items()}


def by_protocol(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in EVALUATORS}


@pytest.mark.parametrize("name", EDGES)
async def test_every_edge_case_is_counted_as_each_evaluator_counts_it(name: str, tmp_path: Path) -> None:
    sample, row = await case(tmp_path, name, 0)
    found = figures([sample])
    assert by_protocol(found) == expected([row])
    assert found["format_rate"] == float(sample.reason is None)
    assert {key: value for key, value in sample.scores.items() if key.startswith("iou/")} == {
        f"iou/{protocol}": rated["giou"] for protocol, rated in by_protocol(found).items() if "giou" in rated
    }


async def test_only_an_answer_that_says_nothing_is_right_without_a_target(tmp_path: Path) -> None:
    async def ious(name: str) -> tuple[float, float]:
        found = figures([(await case(tmp_path, name, 0))[0]])
        return round(found["lisa"]["giou"], 4), round(found["segzero"]["giou"], 4)

    assert await ious("empty truth, empty prediction") == (1.0, 0.0)
    assert await ious("empty truth, unreadable answer") == (0.0, 0.0)
    assert await ious("empty truth, something predicted") == (0.0, 0.0)
    assert await ious("all of the truth ignored") == (1.0, 1.0), "lisa: nothing counts; segzero: all of it is meant"
    assert await ious("all of the truth ignored, unreadable answer") == (0.0, 0.0)


async def test_no_row_is_dropped_and_figures_are_over_all(tmp_path: Path) -> None:
    cases = [await case(tmp_path, name, index) for index, name in enumerate(EDGES)]
    samples, rows = [one for one, _ in cases], [row for _, row in cases]
    found = figures(samples)
    assert found["rows"] == len(EDGES)
    assert by_protocol(found) == expected(rows)
    assert found["segzero_scripts"]["left_out"] == 1, "the empty union of the answer that says nothing"
    assert reasons(samples) == {"no_answer": 3, "no_target": 2, "not_json": 1, "outside": 1}
    assert found["format_rate"] == pytest.approx(1 - 7 / len(EDGES))


@pytest.mark.parametrize("seed", range(5))
async def test_random_masks_agree_with_the_evaluators(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    samples, rows = [], []
    for index in range(30):
        labels = draw.choice([0, 1, 255], size=SIZE, p=draw.dirichlet([1, 1, 0.3]))
        if draw.random() < 0.2:
            labels[labels == 1] = 0
        x1, y1 = (int(draw.integers(0, edge - 9)) for edge in (SIZE[1], SIZE[0]))
        box = (x1, y1, int(draw.integers(x1 + 8, SIZE[1] + 1)), int(draw.integers(y1 + 8, SIZE[0] + 1)))
        state = str(draw.choice(["objects", "objects", "objects", "nothing", "unusable"]))
        response = {"objects": answer(box), "nothing": EMPTY_LIST, "unusable": ""}[state]
        samples.append(await sampled(tmp_path, [labels], response, index, image=str(index)))
        rows.append(Row(painted(*[box] * (state == "objects")) == 1, labels, state))
    assert by_protocol(figures(samples)) == expected(rows)


async def test_tables_split_all_rows_by_source_category_and_cocos_sizes(tmp_path: Path) -> None:
    boxes = {"none": None, "small": (0, 0, 31, 33), "medium": (0, 0, 32, 32)}  # 1,023 and 1,024 pixels
    samples = []
    for index, (size, box) in enumerate(boxes.items()):
        labels = painted(box) if box else painted()
        more = {"category": size, "data_source": "one" if index else "other"}
        samples.append(await sampled(tmp_path, [labels], "", index, image=size, **more))
    found = tables(samples)
    assert {name: one["rows"] for name, one in found["size"].items()} == {"none": 1, "small": 1, "medium": 1}
    assert {name: one["rows"] for name, one in found["data_source"].items()} == {"one": 2, "other": 1}
    assert found["size"]["none"]["star"]["giou"] == 1.0 and found["size"]["none"]["lisa"]["giou"] == 0.0
    assert sorted(found["category"]) == sorted(boxes)


async def some(folder: Path, times: int = 1) -> list[Sample]:
    """Four images, of one sentence each or of the same one several times, with IoUs from 0 to 1."""
    answers = [[A], [(4, 4, 12, 20)], [(4, 4, 20, 16)], [B]]
    return [
        await sampled(folder, [painted(A)], answer(*boxes), index, image=str(index))
        for index, boxes in enumerate(answers)
        for _ in range(times)
    ]


async def test_intervals_are_those_of_all_possible_resamples(tmp_path: Path) -> None:
    samples = await some(tmp_path)
    counted = [(one.scores["intersection"], one.scores["union"]) for one in samples]
    every = [np.array([counted[i] for i in chosen]) for chosen in itertools.product(range(4), repeat=4)]
    expected = {
        "giou": np.percentile([np.mean(one[:, 0] / (one[:, 1] + 1e-5)) for one in every], [2.5, 97.5]),
        "ciou": np.percentile([one[:, 0].sum() / one[:, 1].sum() for one in every], [2.5, 97.5]),
    }
    found = intervals(samples, "lisa", seed=0)
    for name, limits in expected.items():
        assert found[name] == pytest.approx(limits, abs=0.04)
    assert found == intervals(samples, "lisa", seed=0)


async def test_more_sentences_about_the_same_images_say_nothing_new(tmp_path: Path) -> None:
    once = intervals(await some(tmp_path), "segzero", seed=3)
    often = intervals(await some(tmp_path, times=10), "segzero", seed=3)
    assert once == {name: pytest.approx(limits) for name, limits in often.items()}
    assert intervals(await some(tmp_path), "lisa", 0)["giou"] is not None
    assert intervals((await some(tmp_path))[:1], "lisa", 0) == {"giou": None, "ciou": None}


async def test_left_out_rows_are_in_no_resample(tmp_path: Path) -> None:
    nothing = [await sampled(tmp_path, [painted()], EMPTY_LIST, 9, image=str(image)) for image in (8, 9)]
    samples = await some(tmp_path)
    assert intervals([*samples, *nothing], "segzero_scripts", 0) == intervals(samples, "segzero_scripts", 0)
    assert intervals(nothing, "segzero_scripts", 0) == {"giou": None, "ciou": None}


async def test_predictions_of_the_version_before_are_counted_again(tmp_path: Path) -> None:
    sample = await sampled(tmp_path, [painted()], "no answer")
    scores = {name: value for name, value in sample.scores.items() if name != "truth"}
    old = sample.model_copy(update={"scores": scores | {"iou/lisa": 1.0}})
    assert figures([old]) == figures([sample]) and figures([old])["lisa"]["giou"] == 0.0
