"""Every protocol against the published evaluator, as tests/protocols.py has it, to 1e-6."""

import numpy as np
import pytest

from samr1_verl.geometry.giou import COUNTS, PROTOCOLS, PixelCounts, figures, giou_ciou
from tests.protocols import EVALUATORS, Row

SIZE = (24, 32)
ANSWERS = ("objects", "objects", "nothing", "unusable")


def labelled(*boxes: tuple[int, int, int, int], label: int = 1) -> np.ndarray:
    labels = np.zeros(SIZE, dtype=int)
    for x1, y1, x2, y2 in boxes:
        labels[y1:y2, x1:x2] = label
    return labels


def counted(row: Row) -> PixelCounts:
    ignore = row.labels == 255
    return PixelCounts.of(row.predicted, row.labels == 1, ignore if ignore.any() else None, row.answer)


def found(rows: list[Row], protocol: str) -> dict[str, float]:
    return figures([counted(row) for row in rows], PROTOCOLS[protocol])


def drawn(seed: int, count: int, ignored: bool) -> list[Row]:
    """Rows with masks of every size, from none to all pixels; a fifth has no target."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        share = draw.dirichlet([1, 1, 0.3 if ignored else 1e-9])
        labels = draw.choice([0, 1, 255], size=SIZE, p=share / share.sum())
        labels[labels == 255] = 255 if ignored else 0
        if draw.random() < 0.2:
            labels[labels == 1] = 0
        if draw.random() < 0.1:
            labels[:] = 0
        answer = str(draw.choice(ANSWERS))
        predicted = (labels == 1) ^ (draw.random(SIZE) < draw.random() ** 3)
        if draw.random() < 0.3:
            predicted &= draw.random(SIZE) < 0.05  # below and around 50 pixels
        rows.append(Row(predicted & (answer == "objects"), labels, answer))
    return rows


NOTHING = labelled().astype(bool)
BOX, OTHER = (4, 4, 20, 20), (22, 0, 30, 10)
TRUTH = labelled(BOX)
IGNORED = labelled(BOX, label=255)
HALF = np.where(labelled((4, 4, 12, 20)) == 1, 255, TRUTH)
SMALL_49, SMALL_50 = labelled((0, 0, 7, 7)).astype(bool), labelled((0, 0, 10, 5)).astype(bool)
EDGES = {
    "the truth itself": Row(TRUTH == 1, TRUTH),
    "another object": Row(labelled(OTHER) == 1, TRUTH),
    "half of the truth": Row(labelled((4, 4, 12, 20)) == 1, TRUTH),
    "nothing said of a target": Row(NOTHING, TRUTH, "nothing"),
    "unusable about a target": Row(NOTHING, TRUTH, "unusable"),
    "a usable answer whose mask is empty": Row(NOTHING, TRUTH),
    "no target, nothing said": Row(NOTHING, labelled(), "nothing"),
    "no target, unusable": Row(NOTHING, labelled(), "unusable"),
    "no target, a usable answer whose mask is empty": Row(NOTHING, labelled()),
    "no target, an invented object": Row(labelled(BOX) == 1, labelled()),
    "no target, 49 pixels": Row(SMALL_49, labelled()),
    "no target, 50 pixels": Row(SMALL_50, labelled()),
    "a target, 49 pixels": Row(SMALL_49, labelled((0, 0, 7, 7))),
    "a target, 50 pixels": Row(SMALL_50, labelled((0, 0, 10, 5))),
    "half of the truth ignored": Row(TRUTH == 1, HALF),
    "all of the truth ignored, found": Row(TRUTH == 1, IGNORED),
    "all of the truth ignored, nothing said": Row(NOTHING, IGNORED, "nothing"),
    "all of the truth ignored, unusable": Row(NOTHING, IGNORED, "unusable"),
    "all of the truth ignored, a mask beside it": Row(labelled(OTHER) == 1, IGNORED),
    "49 counted pixels beside ignored ones": Row(SMALL_49 | (IGNORED == 255), np.where(SMALL_49, 0, IGNORED)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", EDGES)
def test_every_edge_case_is_counted_as_the_evaluator_counts_it(name: str, protocol: str) -> None:
    assert found([EDGES[name]], protocol) == pytest.approx(EVALUATORS[protocol]([EDGES[name]]), abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_random_masks_agree_with_the_evaluator(protocol: str, ignored: bool, seed: int) -> None:
    rows = drawn(seed, 60, ignored) + list(EDGES.values())
    assert found(rows, protocol) == pytest.approx(EVALUATORS[protocol](rows), abs=1e-6)


def test_the_evaluators_and_the_protocols_are_the_same_ones() -> None:
    assert list(PROTOCOLS) == list(EVALUATORS)
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # IoU by lisa, segzero, segzero_scripts, vision_reasoner, vision_reasoner_no_object, star, rela, rela_50
        ("no target, nothing said", (1, 0, None, 0, 1, 1, 1, 1)),
        ("no target, unusable", (0, 0, 0, 0, 0, 1, 0, 0)),
        ("no target, a usable answer whose mask is empty", (1, 0, None, 0, 0, 1, 0, 1)),
        ("no target, an invented object", (0, 0, 0, 0, 0, 0, 0, 0)),
        ("no target, 49 pixels", (0, 0, 0, 0, 0, 0, 0, 1)),
        ("no target, 50 pixels", (0, 0, 0, 0, 0, 0, 0, 0)),
        ("all of the truth ignored, found", (1, 1, 1, 1, 1, 1, 0, 1)),
        ("all of the truth ignored, unusable", (0, 0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_rows_without_a_counted_pixel_are_rated_as_the_table_says(name: str, expected: tuple[float | None]) -> None:
    ious = [protocol.iou(counted(EDGES[name])) for protocol in PROTOCOLS.values()]
    assert ious == list(expected)


def test_n_acc_and_t_acc_are_shares_of_the_rows_without_and_with_a_target() -> None:
    names = ["the truth itself", "another object", "nothing said of a target", "unusable about a target"]
    names += ["no target, nothing said", "no target, unusable", "no target, an invented object"]
    result = found([EDGES[name] for name in names], "rela")
    assert result["t_acc"] == 2 / 4, "an unusable answer names no object"
    assert result["n_acc"] == pytest.approx(1 / 3)
    assert result["giou"] == pytest.approx(2 / 7) and result["pr@0.9"] == 1 / 4


def test_a_figure_without_rows_is_missing_and_left_out_rows_are_counted() -> None:
    nothing = [EDGES["no target, nothing said"]] * 3
    assert found(nothing, "segzero_scripts") == {"left_out": 3}
    assert sorted(found(nothing, "rela")) == ["ciou", "giou", "left_out", "n_acc"]
    assert "n_acc" not in found([EDGES["the truth itself"]], "rela")
    half = [*nothing, EDGES["half of the truth"]]
    assert found(half, "segzero_scripts")["giou"] == 0.5 and found(half, "segzero")["giou"] == 0.125


def test_gious_of_a_training_need_no_count_of_the_truth() -> None:
    counts = PixelCounts.of(TRUTH == 1, TRUTH == 1, None)
    logged = PixelCounts.in_scores(dict.fromkeys(COUNTS, 0.0) | {"intersection": 256.0, "union": 256.0}, "objects")
    assert logged is not None and logged.truth is None
    for name in ("lisa", "segzero"):
        assert giou_ciou([logged], PROTOCOLS[name]) == giou_ciou([counts], PROTOCOLS[name])
    with pytest.raises(ValueError, match=r"PixelCounts\.of"):
        figures([logged], PROTOCOLS["lisa"])
    assert PixelCounts.in_scores(counts.scores(), "objects") == counts
    assert PixelCounts.in_scores({"score": 1.0}, "objects") is None
