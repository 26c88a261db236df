"""What validation logs by each protocol, and the samples that it keeps."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samr1_verl.config import Samr1Config, samr1_config
from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.scoring.sample import read_samples
from samr1_verl.segmenters import Prediction
from samr1_verl.training.validation import SampleWriter, Validated, first_of_each, lost_rows, protocol_metrics
from tests.composing import compose_recipe
from tests.service.fake import BoxSegmenter, image_file

ANSWER = '<think>left</think><answer>{"bbox": [10, 0, 40, 28], "points_1": [12, 7], "points_2": [12, 7]}</answer>'


def validated(source: str, **counts: float) -> Validated:
    return Validated({"data_source": source}, [], {"score": 1.0, **counts})


def test_each_data_source_is_counted_by_both_protocols() -> None:
    counts = {"intersection": 6.0, "union": 8.0, "ignored": 4.0, "ignored_predicted": 1.0}
    nothing = dict.fromkeys(counts, 0.0)
    metrics = protocol_metrics([validated("a", **counts), validated("a", **nothing), validated("b", **counts)])
    lisa, segzero = 6 / 8.00001, 7 / 12
    assert metrics == pytest.approx(
        {
            "val-core/a/giou/lisa": (lisa + 1) / 2,  # nothing to find, and nothing predicted
            "val-core/a/giou/segzero": segzero / 2,
            "val-core/a/ciou/lisa": 6 / 8,
            "val-core/a/ciou/segzero": segzero,
            "val-core/b/giou/lisa": lisa,
            "val-core/b/giou/segzero": segzero,
            "val-core/b/ciou/lisa": 6 / 8,
            "val-core/b/ciou/segzero": segzero,
        }
    )


def test_a_reward_without_pixel_counts_has_no_such_metrics() -> None:
    assert protocol_metrics([validated("a")]) == {}


def item_about(index: int, truth: np.ndarray) -> dict[str, Any]:
    """An item of the data set with a true mask."""
    masks = [encode_rle(truth)] if truth.any() else []
    return {
        "index": index,
        "data_source": "a",
        "reward_model": {"ground_truth": GroundTruth(size=truth.shape, masks=masks).model_dump_json()},
        "extra_info": {"index": index, "image": None, "sha256": None, "policy_size": [8, 8], "frame": "absolute"},
    }


def test_the_figure_is_that_of_the_whole_where_rollouts_were_lost() -> None:
    """5 of 10 rows lost: 0.45 over all rows, where the mean of those that came back is 0.90."""
    truth = np.ones((4, 5), dtype=bool)
    dataset = [item_about(index, truth) for index in range(10)]
    counts = {"intersection": 18.0, "union": 20.0, "ignored": 0.0, "ignored_predicted": 0.0}
    came_back = [Validated(item, [], {"score": 1.0, **counts}) for item in dataset[::2]]
    lost = lost_rows(dataset, came_back, times=1)
    assert [item["index"] for item in lost] == [1, 3, 5, 7, 9]
    assert protocol_metrics(came_back)["val-core/a/giou/segzero"] == pytest.approx(0.9)
    metrics = protocol_metrics(came_back, lost)
    assert metrics["val-core/a/giou/segzero"] == pytest.approx(0.45)
    assert metrics["val-core/a/ciou/segzero"] == pytest.approx(0.45)


def test_only_an_answer_that_says_nothing_is_right_about_nothing() -> None:
    """An empty mask is right by LISA's code, but a lost rollout and an unreadable answer said nothing."""
    empty = np.zeros((4, 5), dtype=bool)
    counts = {"intersection": 0.0, "union": 0.0, "ignored": 0.0, "ignored_predicted": 0.0}

    def giou(*flags: str, lost: int = 0) -> float:
        rows = [Validated(item_about(i, empty), [], {**counts, f"answer/{flag}": 1.0}) for i, flag in enumerate(flags)]
        found = protocol_metrics(rows, [item_about(9, empty)] * lost)
        assert found["val-core/a/giou/segzero"] == found["val-core/a/ciou/lisa"] == 0.0
        return found["val-core/a/giou/lisa"]

    assert giou("no_target") == 1.0
    assert giou("no_answer") == giou("not_json") == giou("outside") == 0.0
    assert giou("no_target", lost=1) == 0.5


def test_each_of_a_rows_rollouts_is_missed() -> None:
    dataset = [item_about(index, np.zeros((2, 2), dtype=bool)) for index in (3, 8)]
    came_back = [Validated(dataset[1], [], {"score": 1.0})]
    assert [item["index"] for item in lost_rows(dataset, came_back, times=2)] == [3, 3, 8]
    assert lost_rows(dataset, came_back * 4, times=2) == []
    assert protocol_metrics(came_back, dataset) == {}, "a reward that compares no masks has no such metrics"


class Tokenizer:
    """Texts by their only token."""

    texts = (ANSWER, "<script>no answer</script>")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return self.texts[ids[0]]


@pytest.fixture
def settings() -> Samr1Config:
    return samr1_config(compose_recipe("samr1_tiny"))


def row(folder: Path, index: int, token: int) -> Validated:
    image, sha256 = image_file(folder, index)
    truth = np.zeros((10, 20), dtype=bool)
    truth[:5, :10] = True
    return Validated(
        {
            "data_source": "test",
            "reward_model": {"ground_truth": GroundTruth(size=(10, 20), masks=(encode_rle(truth),)).model_dump_json()},
            "extra_info": {
                **{"image": str(image), "sha256": sha256, "policy_size": [40, 28], "frame": "absolute"},
                **{"index": index, "category": "grey", "sentence": f"number {index}"},
            },
        },
        [token],
        {"score": 3.0},
    )


class Client:
    """Segments at once, as the client of a service would."""

    async def segment(self, image: str, sha256: str, prompts: list[Any]) -> list[Prediction]:
        segmenter = BoxSegmenter()
        return segmenter.decode(segmenter.encode(np.zeros((10, 20, 3), np.uint8)), prompts)


def test_samples_hold_what_was_answered_segmented_and_earned(
    settings: Samr1Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samr1_verl.scoring.rollout.get_client", lambda _: Client())
    writer = SampleWriter(settings, tmp_path, Tokenizer())
    writer.write([row(tmp_path, 0, 0), row(tmp_path, 1, 1)], step=16)
    usable, unusable = read_samples(tmp_path / "samples" / "16.jsonl")
    assert (usable.index, usable.sentence, usable.response, usable.reason) == (0, "number 0", ANSWER, None)
    (shape,) = usable.shapes
    assert shape.box == (5, 0, 20, 10) and shape.points == ((6, 2.5),), "in the original frame, equal points once"
    mask = decode_rle(usable.mask, usable.size)
    assert mask.sum() == 150 and mask[:, 5:].all()
    assert decode_rle(usable.truth, usable.size).sum() == 50
    assert usable.scores == {"score": 3.0}
    assert (unusable.reason, unusable.shapes) == ("no_answer", ())
    assert not decode_rle(unusable.mask, unusable.size).any()


def test_samples_of_dialogues_hold_every_turn(
    settings: Samr1Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samr1_verl.scoring.rollout.get_client", lambda _: Client())
    done = "<think>it fits</think><answer>done</answer>"
    dialogue = replace(row(tmp_path, 0, 1), turns=[ANSWER, done])  # the response's own text has the look in it
    SampleWriter(settings, tmp_path, Tokenizer()).write([dialogue, row(tmp_path, 1, 0)], step=16)
    several, single = read_samples(tmp_path / "samples" / "16.jsonl")
    assert several.response == single.response == ANSWER and several.mask == single.mask
    assert [(turn.text, turn.mask) for turn in several.turns] == [(ANSWER, several.mask), (done, None)]
    assert single.turns == ()


def test_what_is_wrong_with_a_sample_is_logged_and_ends_no_training(
    settings: Samr1Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = settings.model_copy(update={"segmenter": settings.segmenter.model_copy(update={"path": "/nowhere"})})
    with caplog.at_level(logging.ERROR):
        SampleWriter(broken, tmp_path, Tokenizer()).write([row(tmp_path, 0, 0)], step=16)
    assert "samples of step 16" in caplog.text
    assert not (tmp_path / "samples").exists()


def test_the_same_rows_are_kept_every_time(settings: Samr1Config, tmp_path: Path) -> None:
    writer = SampleWriter(settings, tmp_path, Tokenizer())
    rows = [{"index": index} for index in range(100, 200)]
    chosen = writer.chosen(rows)
    assert len(chosen) == 16 and (chosen[0], chosen[-1]) == (100, 199)
    assert writer.chosen(rows[:5]) == [100, 101, 102, 103, 104]


def test_several_responses_to_a_row_give_one_sample_and_a_lost_row_none(tmp_path: Path) -> None:
    rows = [row(tmp_path, 3, 0), row(tmp_path, 1, 0), row(tmp_path, 3, 1)]
    assert first_of_each(rows, [1, 2, 3]) == [rows[1], rows[0]]
