"""Votes against the rule written here from StAR's description; polls that fail, grow, shrink or are refused."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samr1_verl.config import ServiceConfig
from samr1_verl.evaluation.ballots import elected
from samr1_verl.evaluation.clock import SharedClock
from samr1_verl.evaluation.journal import ANSWERS, PREDICTIONS
from samr1_verl.evaluation.poll import Poll, curve, seed_of, steps
from samr1_verl.evaluation.votes import elect
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import decode_rle, encode_rle
from samr1_verl.policies.base import Reply
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import read_samples
from samr1_verl.service.client import get_client
from tests.errors import refused
from tests.evaluation.world import SIZE_WH, RulePolicy, answer, evaluation, noisy, rows
from tests.row_files import make_record, write_rows

SIZE = (12, 16)
Answer = list[tuple[np.ndarray, float]] | None  # masks with scores; None: unusable


def by_the_rule(answers: Sequence[Answer]) -> np.ndarray | None:
    """The union of the winners; None: nobody voted."""
    valid = [found for found in answers if found is not None]
    if not valid:
        return None
    nothing = np.zeros(SIZE, dtype=bool)
    if sum(len(found) == 0 for found in valid) >= len(valid) / 2:
        return nothing
    groups: list[dict] = []
    for number, found in enumerate(answers):
        for mask, score in found or []:
            for group in groups:
                first = group["masks"][0]
                union = (mask | first).sum()
                if union and (mask & first).sum() / union >= 0.85:
                    break
            else:
                group = {"masks": [], "scores": [], "voters": set()}
                groups.append(group)
            group["masks"].append(mask)
            group["scores"].append(score)
            group["voters"].add(number)
    kept = [group for group in groups if len(group["voters"]) / len(valid) >= 0.2] or groups
    ranked = sorted(kept, key=lambda group: (-len(group["voters"]), -float(np.mean(group["scores"]))))
    objects = Counter(len(found) for found in valid if found)
    most = max(objects.values())
    count = next(len(found) for found in valid if found and objects[len(found)] == most)  # the earliest of equals
    result = nothing.copy()
    for group in ranked[:count]:
        pairs = list(zip(group["scores"], [mask.sum() for mask in group["masks"]], strict=True))
        result |= group["masks"][pairs.index(max(pairs))]
    return result


def counted(answers: Sequence[Answer]) -> np.ndarray | None:
    """What `elect` says about the same answers."""
    votes = [None if found is None else [(encode_rle(mask), score) for mask, score in found] for found in answers]
    winners = elect(votes, SIZE)
    if winners is None:
        return None
    union = np.zeros(SIZE, dtype=bool)
    for winner in winners:
        union |= decode_rle(winner.mask, SIZE)
    return union


def box(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def random_answer(draw: random.Random) -> Answer:
    """A few places, at each of them almost the same masks; often with equal scores."""
    if draw.random() < 0.2:
        return None
    found = []
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        x, y = draw.choice([0, 6]), draw.choice([0, 5])
        size = draw.choice([0, 5, 6, 6, 6])
        found.append((box(x, y, x + size, y + draw.choice([5, 6])), draw.choice([0.5, 0.9, draw.random()])))
    return found


def test_votes_are_counted_as_star_counts_them() -> None:
    draw = random.Random(0)
    empty = 0
    for _ in range(3000):
        answers = [random_answer(draw) for _ in range(draw.randint(1, 9))]
        expected, found = by_the_rule(answers), counted(answers)
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            assert (expected == found).all()
            empty += not found.any()
    assert 100 < empty < 2000, "both kinds occur"


def test_cases_of_the_rule() -> None:
    here, there, nearly = box(0, 0, 6, 6), box(9, 6, 15, 12), box(0, 0, 7, 6)
    assert (counted([[(here, 0.5)]]) == here).all(), "one answer is itself"
    assert (counted([[(here, 0.5)], [(there, 0.9)], [(here, 0.4)]]) == here).all(), "votes before scores"
    assert (counted([[(here, 0.5)], [(there, 0.9)]]) == there).all(), "equal votes: the score decides"
    assert (counted([[(here, 0.5)], [(nearly, 0.9)]]) == nearly).all(), "36 of 42 pixels: the same object"
    assert not counted([[(here, 0.5)], []]).any(), "half of the answers say that there is none"
    assert (counted([[(here, 0.5)], [], None, [(here, 0.5)]]) == here).all(), "an unusable answer abstains"
    assert counted([None, None]) is None
    both = [(here, 0.5), (there, 0.5)]
    assert (counted([both, both, [(here, 0.5)]]) == here | there).all(), "as many objects as most answers have"


def test_an_elected_row_keeps_the_words_of_an_answer_that_won(tmp_path: Path) -> None:
    said = [answer([8, 6, 24, 18]), "I see nothing.", answer([8, 6, 24, 18]), answer([40, 30, 60, 44])]
    asked = evaluation(rows(tmp_path / "data", 1), RulePolicy(Said(said)), "elected,0", block=1)
    (ballots,) = Poll(asked, 4).run(tmp_path / "out", False, nothing)
    sample = elected(ballots)
    assert sample.response in said[:1] and sample.reason is None
    assert decode_rle(sample.mask, sample.size).sum() == 16 * 12
    assert elected(ballots[1:2]).reason == "no_answer" and elected(ballots[1:2]).scores["format"] == 0
    assert list(read_samples(tmp_path / "out" / PREDICTIONS)) == [sample]
    none = "<answer>[]</answer>"
    silent = evaluation(tmp_path / "data" / "rows.parquet", RulePolicy(Said(["?", none, none])), "elected,0", block=1)
    (ballots,) = Poll(silent, 3).run(tmp_path / "silent", False, nothing)
    assert elected(ballots).reason == "no_target"


class Said:
    """A rule that says these responses, one after the other."""

    def __init__(self, responses: Sequence[str]) -> None:
        self._left = list(responses)

    def __call__(self, item: dict, seed: int) -> str:
        return self._left.pop(0)


class Always:
    """A rule that says the same box."""

    def __call__(self, item: dict, seed: int) -> str:
        return answer([8, 6, 24, 18])


def pictures(folder: Path, count: int) -> Path:
    """`count` sentences, two about each of several images that differ."""
    folder.mkdir()
    records = []
    for number in range(count):
        record = make_record(folder, f"{number // 2}.png", SIZE_WH)
        Image.new("RGB", SIZE_WH, (number // 2, 0, 0)).save(folder / record.image)
        records.append(record.model_copy(update={"sha256": sha256_of(folder / record.image)}))
    return write_rows(folder / "rows.parquet", *records)


def nothing(done: int, total: int) -> None:
    """No progress bar."""


def test_answers_are_seeded_by_row_and_number(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 10)
    seeds: set[int] = set()

    def noting(item: dict, seed: int) -> str:
        seeds.add(seed)
        return noisy(item, seed)

    few = Poll(evaluation(file, RulePolicy(noting), seed=3), 2).run(tmp_path / "few", False, nothing)
    assert seeds == {seed_of(3, start, number) for start in (0, 4, 8) for number in (0, 1)}
    many = Poll(evaluation(file, RulePolicy(noisy), seed=3), 5).run(tmp_path / "many", False, nothing)
    assert [[said.response for said in row] for row in few] == [[said.response for said in row[:2]] for row in many]
    assert len({seed_of(0, row, number) for row in range(50) for number in range(50)}) == 2500
    grown = RulePolicy(noisy)
    again = Poll(evaluation(file, grown, seed=3), 5).run(tmp_path / "few", False, nothing)
    assert grown.asked == 9, "three blocks for each of three more answers"
    assert [[said.response for said in row] for row in again] == [[said.response for said in row] for row in many]
    shrunk = RulePolicy(noisy)
    assert len(Poll(evaluation(file, shrunk, seed=3), 1).run(tmp_path / "few", False, nothing)[0]) == 1
    assert shrunk.asked == 0


def test_a_poll_goes_on_where_it_failed(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 12)
    calls = []

    def failing(item: dict, seed: int) -> str:
        calls.append(item["extra_info"]["index"])
        if len(calls) == 30:
            raise RuntimeError("out of memory")
        return noisy(item, seed)

    with pytest.raises(RuntimeError, match="out of memory"):
        Poll(evaluation(file, RulePolicy(failing), "poll,0"), 4).run(tmp_path / "out", False, nothing)
    stored = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "out" / ANSWERS).glob(f"*/{PREDICTIONS}"))
    assert 16 <= stored <= 28
    torn = tmp_path / "out" / ANSWERS / "001" / PREDICTIONS
    torn.write_bytes(torn.read_bytes()[:-40])
    policy = RulePolicy(noisy)
    after = Poll(evaluation(file, policy, "poll,0"), 4).run(tmp_path / "out", False, nothing)
    assert policy.asked <= 12 - stored // 4 + 1
    whole = Poll(evaluation(file, RulePolicy(noisy), "whole,0"), 4).run(tmp_path / "whole", False, nothing)
    assert [[said.response for said in row] for row in after] == [[said.response for said in row] for row in whole]
    figures = [[{**point, "cost": None} for point in curve(found, 0)] for found in (after, whole)]
    assert figures[0] == figures[1]


def test_an_image_is_encoded_once_for_all_answers_about_it(tmp_path: Path) -> None:
    asked = evaluation(pictures(tmp_path / "data", 12), RulePolicy(Always()), block=2)
    service = ServiceConfig(mode="embedded", cache_gb=1e-5, cache_dir=None)  # two embeddings of six
    segmenter = asked.config.segmenter.model_copy(update={"service": service})
    asked = replace(asked, config=replace(asked.config, segmenter=segmenter))
    Poll(asked, 8).run(tmp_path / "out", False, nothing)
    counters = get_client(segmenter).counters()
    assert counters.requests == 96 and counters.encodes == 6


def test_the_curve_has_the_figures_of_the_first_answers_and_their_cost(tmp_path: Path) -> None:
    assert [steps(votes) for votes in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
    file = pictures(tmp_path / "data", 20)

    def counted_words(item: dict, seed: int) -> str:
        return Reply(noisy(item, seed), 10 + item["extra_info"]["index"])

    started = time.perf_counter()
    found = Poll(evaluation(file, RulePolicy(counted_words)), 6).run(tmp_path / "out", False, nothing)
    passed = time.perf_counter() - started
    points = curve(found, 0)
    assert [point["votes"] for point in points] == [1, 2, 4, 6]
    for point in points:
        votes = point["votes"]
        samples = [elected(row[:votes]) for row in found]
        mean = np.mean([sample.scores["iou/segzero"] for sample in samples])
        assert point["segzero"]["giou"] == pytest.approx(mean, abs=1e-12)
        assert point["segzero"]["giou_ci"][0] <= mean <= point["segzero"]["giou_ci"][1]
        assert point["cost"]["answers"] == 20 * votes
        assert point["cost"]["tokens"] == votes * sum(10 + row for row in range(20))
        assert 0 < point["cost"]["segmenter_seconds"] <= passed and 0 < point["cost"]["policy_seconds"] <= passed
    alone = [row[0].scores["iou/segzero"] for row in found]
    assert points[0]["segzero"]["giou"] == pytest.approx(np.mean(alone), abs=1e-12)
    unknown = Poll(evaluation(file, RulePolicy(noisy)), 1).run(tmp_path / "b", False, nothing)
    assert curve(unknown, 0)[0]["cost"]["tokens"] is None


def test_a_folder_belongs_to_one_kind_of_evaluation_and_one_policy(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 4)
    evaluation(file, RulePolicy(noisy)).run(tmp_path / "plain", False, nothing)
    with refused(DataError, "made_without_votes", tmp_path / "plain", "--votes", "--out"):
        Poll(evaluation(file, RulePolicy(noisy)), 2).run(tmp_path / "plain", False, nothing)
    Poll(evaluation(file, RulePolicy(noisy)), 2).run(tmp_path / "poll", False, nothing)
    with refused(DataError, "made_with_votes", tmp_path / "poll", "--votes", "--out"):
        evaluation(file, RulePolicy(noisy)).run(tmp_path / "poll", False, nothing)
    with refused(DataError, "other_settings", "policy.model: 'rule' ", ", 'other' "):
        Poll(evaluation(file, RulePolicy(noisy), name="other"), 2).run(tmp_path / "poll", False, nothing)


def test_seconds_of_work_that_overlaps_sum_up_to_the_time_that_passed() -> None:
    moments = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0, 11.0])
    clock = SharedClock(lambda: next(moments))
    with clock.task() as first:  # from 1
        with clock.task() as second:  # from 3 to 7
            pass
        assert second.seconds == 2.0
    assert first.seconds == 2.0 + 2.0 + 1.0  # alone to 3, half of 3 to 7, alone to 8
    with clock.task() as third:  # from 10 to 11: nobody worked from 8 to 10
        pass
    assert third.seconds == 1.0
