"""Dr. Seg's reward: the metrics, the window and its ranks worked by hand, and its state."""

from __future__ import annotations

import json

import pytest

from reward_fns import dr_seg
from reward_fns.dr_seg import CONSTANTS, Window, compute_score, get_window, looks
from samr1_verl.config import ConfigError, WindowConfig
from tests.errors import refused
from tests.reward_fns.scoring import objects, score, think, truth

A, B = [100, 100, 199, 199], [400, 100, 499, 199]
OWN = ("think", "format", "look", "iou", "count", "point", "non_repetition")


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    monkeypatch.setattr(dr_seg, "_windows", {})


def ranked(answer, row, window):
    text = answer if isinstance(answer, str) else think(answer)
    result = score(compute_score, text, row, reward={"window": window})
    assert result["score"] == pytest.approx(sum(result[name] for name in OWN))
    return result


def metrics(answer, row) -> list[float]:
    result = ranked(answer, row, {"path": None, "step": 1000})
    return [result[f"metric/{name}"] for name in ("iou", "count", "point")]


def test_metrics_are_continuous():
    assert metrics(objects(A, B), truth([A, B])) == [1, 1, 1]
    assert metrics(objects(A), truth([A, B])) == [1, 1 / 2, 1]  # means are over the matched
    # 50 of 100 columns: IoU 0.5; the point at (124.5, 149.5) is 25 pixels off: within 30
    assert metrics(objects([100, 100, 149, 199]), truth([A])) == [0.5, 1, 1]
    # 115 pixels off: (200 - 115) / (200 - 30) = 0.5; outside its box, which this score does not mind
    assert metrics([{"bbox_2d": A, "point_2d": [264.5, 149.5]}], truth([A])) == [1, 1, 0.5]
    assert metrics([{"bbox_2d": A, "point_2d": [349.5, 149.5]}], truth([A])) == [1, 1, 0]  # 200 pixels
    assert metrics("nothing", truth([A])) == [0, 0, 0]


def test_a_rank_is_the_share_of_the_window_not_above():
    window = Window(step=1)
    window.load_state_dict({"rows": [[i / 10] * 3 for i in range(1, 11)], "waiting": []})
    assert window.rank([0.35, 0.4, 1.0]) == [0.3, 0.4, 1.0]  # 3, 4 and 10 of 10
    assert window.rank([0.05, 0.0, 2.0]) == [0.0, 0.0, 1.0]


def test_a_metric_of_0_ranks_0_although_the_window_starts_with_zeros():
    window = Window(step=1)
    assert window.rank([0.0, 0.1, 1.0]) == [0.0, 1.0, 1.0]  # 128 zeros: whatever is more is above all


def test_ranks_have_one_decimal():
    window = Window(step=1)
    window.load_state_dict({"rows": [[0.5] * 3] * 2 + [[0.9] * 3] * 5, "waiting": []})
    assert window.rank([0.5, 0.9, 0.4]) == [0.3, 1.0, 0.0]  # 2 / 7 = 0.286


def test_the_rollouts_of_a_step_are_ranked_alike_and_enter_together():
    window, row = {"path": None, "step": 3}, truth([A])
    first = [ranked(objects([100, 100, right, 199]), row, window)["iou"] for right in (119, 159, 199)]
    assert first == [1, 1, 1]  # against 128 zeros
    # The window now holds 128 zeros and IoUs of 0.2, 0.6 and 1.
    state = get_window(WindowConfig(path=None, step=3)).state_dict()
    assert len(state["rows"]) == 131
    assert [one[0] for one in state["rows"][-3:]] == [0.2, 0.6, 1.0] and state["waiting"] == []


def test_the_window_forgets_the_oldest():
    window = Window(step=1)
    for number in range(1, CONSTANTS.window + 11):
        window.add([number, 1.0, 1.0])
    rows = [one[0] for one in window.state_dict()["rows"]]
    assert rows == list(range(11, CONSTANTS.window + 11))
    assert window.rank([10 + CONSTANTS.window / 2, 1, 1])[0] == 0.5


def test_a_window_goes_on_from_its_file(tmp_path, monkeypatch):
    settings, row = {"path": str(tmp_path / "run" / "window.json"), "step": 2}, truth([A])
    for right in (119, 159, 199):  # two enter and are kept; the third waits and is lost with the process
        ranked(objects([100, 100, right, 199]), row, settings)
    before = get_window(WindowConfig(**settings)).state_dict()
    monkeypatch.setattr(dr_seg, "_windows", {})
    after = get_window(WindowConfig(**settings)).state_dict()
    assert after["rows"] == before["rows"] and (len(before["waiting"]), after["waiting"]) == (1, [])


def test_a_state_is_restored_whole():
    first = Window(step=5)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        first.add([value] * 3)
    second = Window(step=5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    assert second.rank([0.25] * 3) == first.rank([0.25] * 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"rows": [[1, 2]], "waiting": []}',
        '{"rows": [], "waiting": []}',
        '{"rows": [[1, 2, NaN]], "waiting": []}',
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "window.json"
    path.write_text(text)
    with refused(ConfigError, "unreadable_window", f"samr1.reward.window.path: {path}", "Remove"):
        get_window(WindowConfig(path=str(path), step=2))


@pytest.mark.parametrize("window", [{"path": None, "step": 0}, {"path": None, "step": True}, {"step": 1}, {}, None])
def test_a_wrong_window_is_named(window):
    with refused(ConfigError, "no_window" if window is None else "invalid_value", "samr1.reward.window"):
        score(compute_score, "", truth([A]), reward={"window": window})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a <look>red</look></think><answer>[]</answer>", 1),
        ("<think>a</think><answer><look>red</look></answer>", 1),
        ("<think>a <look> </look></think><answer>[]</answer>", 0),
        ("<look>red</look>", 0),
        ("<think><look>red</think></look>", 0),
        ("<think><look>red</look>", 0),
    ],
)
def test_look_wants_words_inside_think_or_answer(text, expected):
    assert looks(text) == expected
