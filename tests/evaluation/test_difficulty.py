"""Success rates and chances of a gradient against brute force; files that are stored, killed, grown or refused."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_fns.samr1 import compute_score
from samr1_verl.config import ConfigError, ServiceConfig
from samr1_verl.evaluation.difficulty import (
    gradient_chance,
    kept_of,
    measure,
    parse_bounds,
    results_of,
)
from samr1_verl.evaluation.journal import ANSWERS, PREDICTIONS, RESULTS
from samr1_verl.evaluation.poll import REWARD, Poll, seed_of
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.policies.base import PolicyError
from samr1_verl.prompts.questions import Questions
from samr1_verl.rows.measured import KEPT, ROWS, check_out, store_measured
from samr1_verl.rows.record import DataError, count_rows, iter_rows, parse_record, read_table, resolve_image
from samr1_verl.scoring.recipe_reward import RecipeReward
from samr1_verl.service.client import get_client
from tests.errors import refused
from tests.evaluation.test_votes import pictures
from tests.evaluation.world import SIZE_WH, RulePolicy, answer, evaluation, measure_slowly, noisy, nothing, rows
from tests.row_files import make_record, write_rows

RIGHT, NEAR, WRONG = answer([16, 12, 32, 24]), answer([16, 12, 32, 20]), answer([40, 30, 60, 44])  # IoU 1, 2/3, 0


def by_number(numbers: Mapping[int, int] | None = None) -> Any:
    """A rule whose row i answers right `numbers[i]` times (default: i), then nearly right once, then wrong."""
    said: dict[int, int] = {}

    def rule(item: Mapping[str, Any], seed: int) -> str:
        index = item["extra_info"]["index"]
        count = said[index] = said.get(index, 0) + 1
        right = index if numbers is None else numbers[index]
        return RIGHT if count <= right else NEAR if count == right + 1 else WRONG

    return rule


def poll(file: Path, rule: Any, samples: int, **more: Any) -> Poll:
    asked = evaluation(file, RulePolicy(rule), **more)
    return Poll(asked, samples, RecipeReward(asked.config.reward))


def test_the_chance_is_that_of_all_groups_without_replacement() -> None:
    for rewards in product((0.0, 1.0, 4.5), repeat=6):
        for group in range(1, 7):
            groups = [set(chosen) for chosen in combinations(rewards, group)]
            share = Fraction(sum(len(values) > 1 for values in groups), len(groups))
            assert gradient_chance(rewards, group) == pytest.approx(float(share), abs=1e-15)


def test_the_chance_is_without_bias() -> None:
    """The mean over every outcome of 4 samples, by its probability, is the chance of a new group of 3."""
    chances = {0.0: 0.5, 1.0: 0.3, 5.0: 0.2}
    mean = sum(
        np.prod([chances[reward] for reward in rewards]) * gradient_chance(rewards, 3)
        for rewards in product(chances, repeat=4)
    )
    assert mean == pytest.approx(1 - sum(chance**3 for chance in chances.values()), abs=1e-12)


def test_many_answers_give_exact_chances() -> None:
    assert gradient_chance([1.0] * 256, 128) == 0.0
    assert gradient_chance([1.0] * 255 + [0.0], 128) == 0.5
    assert 0.999 < gradient_chance([0.0, 1.0] * 128, 16) < 1


def test_rates_are_those_of_a_policy_that_is_right_by_a_rule(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 5)
    answers = poll(file, by_number(), 6, block=2).ask(tmp_path / "out", False, nothing)
    found = measure(answers, (0.7, 0.8), group=3)
    assert list(found.success) == [0.5, 0.7, 0.8], "the tier of success_rate is always there"
    assert found.success_rate.tolist() == [(row + 1) / 6 for row in range(5)]
    assert found.success[0.7].tolist() == found.success[0.8].tolist() == [row / 6 for row in range(5)]
    # Rewards: 6 for right, 4 for nearly right, 2 for wrong. Equal groups of 3 have only right or only wrong answers.
    equal = [10, 4, 1, 1, 4]
    assert found.gradient_chance.tolist() == pytest.approx([1 - count / 20 for count in equal])

    results = results_of(found, [said for row in answers for said in row], {"a": 1})
    assert results["success_rate"] == pytest.approx(0.5) and results["gradient_chance"] == pytest.approx(0.8)
    assert results["mean_reward"] == pytest.approx(np.mean([(6 * row + 4 + 2 * (5 - row)) / 6 for row in range(5)]))
    assert results["tiers"]["0.8"] == {
        "success_rate": pytest.approx(1 / 3),
        "never": 0.2,
        "sometimes": 0.8,
        "always": 0,
    }
    assert (results["rows"], results["samples"], results["group"]) == (5, 6, 3)
    assert results["format_rate"] == 1 and results["unusable"] == {} and results["settings"] == {"a": 1}


def test_an_iou_at_a_tier_is_not_above_it(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 1)
    half = answer([16, 12, 32, 18])  # 96 of 192 pixels
    answers = poll(file, lambda item, seed: half, 2).ask(tmp_path / "out", False, nothing)
    assert measure(answers, (), 2).success_rate.tolist() == [0.0] and answers[0][0].scores[REWARD] == 2.0


async def rewards_again(file: Path, answers: list) -> list[dict[str, float]]:
    config = evaluation(file, RulePolicy(noisy)).config
    questions = Questions(config.prompt, None, {})
    scored = []
    for number, row in enumerate(iter_rows(file)):
        record = parse_record(row, file, number)
        item = questions.item(record, resolve_image(record, file), number)
        for said in answers[number]:
            arguments = (item["data_source"], said.response, item["reward_model"]["ground_truth"], item["extra_info"])
            scored.append(await compute_score(*arguments, segmenter=config.segmenter))
    return scored


def test_rewards_and_overlaps_are_those_of_the_reward(tmp_path: Path) -> None:
    """Also on a row without an object, where an empty mask is wrong and `[]` is right, and with ignored pixels."""
    (tmp_path / "data").mkdir()
    whole = make_record(tmp_path / "data", "a.png", SIZE_WH)
    ignored = np.zeros(SIZE_WH[::-1], dtype=bool)
    ignored[16:30, 20:50] = True
    changes: list[dict] = [{}, {"masks": [], "boxes": []}, {"ignore": encode_rle(ignored)}]
    records = [whole.model_copy(update=change) for change in changes]
    file = write_rows(tmp_path / "data" / "rows.parquet", *records)
    said = [RIGHT, NEAR, WRONG, "?", "<answer>[]</answer>", answer([0, 0, 0.4, 0.4])]
    answers = poll(file, lambda item, seed: said[seed_number(seed)], 6, block=3).ask(tmp_path / "out", False, nothing)
    scored = asyncio.run(rewards_again(file, answers))
    flat = [one for row in answers for one in row]
    assert {one.response for one in flat} == set(said)
    assert [one.scores[REWARD] for one in flat] == [one["score"] for one in scored]
    for tier in (0.0, 0.5, 0.8):
        rates = measure(answers, (tier,), 2).success[tier]
        accuracy = np.reshape([one["acc"] for one in scored], (3, 6))
        assert rates.tolist() == (accuracy > tier).mean(axis=1).tolist()


def seed_number(seed: int) -> int:
    """The number of the answer that a seed of row 0 belongs to."""
    return [seed_of(0, 0, number) for number in range(6)].index(seed)


def stored(file: Path, folder: Path, samples: int = 6, **more: Any) -> dict[str, Any]:
    """Ask, measure and write with the bounds 0.3 to 0.7."""
    asked = poll(file, by_number({row: row for row in range(9)}), samples, block=1, **more)
    answers = asked.ask(folder, False, nothing)
    found = measure(answers, (), 3)
    keep = found.within(0.3, 0.7)
    store_measured(file, folder, found.columns, keep)
    return kept_of(found, (0.3, 0.7), keep)


def test_both_columns_are_stored_and_rows_within_the_bounds_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    records = [
        make_record(tmp_path / "data", f"{row}.png", SIZE_WH, sentence=f"{row}", data_source="ab"[row % 2], ceiling=0.9)
        for row in range(5)
    ]
    file = write_rows(tmp_path / "data" / "rows.parquet", *records)
    kept = stored(file, tmp_path / "out")
    table = read_table(tmp_path / "out" / ROWS)
    assert table["success_rate"].to_pylist() == [(row + 1) / 6 for row in range(5)]
    assert table["gradient_chance"].to_pylist() == pytest.approx([0.5, 0.8, 0.95, 0.95, 0.8])
    assert table["ceiling"].to_pylist() == [0.9] * 5, "an earlier measurement stays"
    assert [row["sentence"] for row in iter_rows(tmp_path / "out" / KEPT)] == ["1", "2", "3"]
    assert kept == {
        "low": 0.3,
        "high": 0.7,
        "rows": 3,
        "gradient_chance": pytest.approx(0.9),
        "sources": {"a": {"kept": 1, "below": 1, "above": 1}, "b": {"kept": 2, "below": 0, "above": 0}},
    }


def test_a_limit_writes_the_measured_rows_alone(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 6)
    stored(file, tmp_path / "out", limit=4)
    assert count_rows(tmp_path / "out" / ROWS) == 4 and count_rows(tmp_path / "out" / KEPT) == 3
    assert None not in read_table(tmp_path / "out" / ROWS)["success_rate"].to_pylist()


def test_kept_rows_of_an_earlier_start_are_removed(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 4)
    stored(file, tmp_path / "out")
    answers = poll(file, noisy, 6, block=1).ask(tmp_path / "out", False, nothing)
    columns = measure(answers, (), 3).columns
    assert store_measured(file, tmp_path / "out", columns, None) == [tmp_path / "out" / ROWS]
    assert not (tmp_path / "out" / KEPT).exists() and count_rows(tmp_path / "out" / ROWS) == 4


def answered_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / ANSWERS).glob(f"*/{PREDICTIONS}"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.thorough)])
def test_kills_at_random_moments_change_no_byte(kills: int, tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 30)
    context = multiprocessing.get_context("forkserver")  # imports once, then a new process starts in no time
    context.set_forkserver_preload(["tests.evaluation.world", "verl.utils.import_utils", "reward_fns.samr1"])
    draw, reached = random.Random(0), [0]
    folder = tmp_path / "killed"
    for _ in range(kills):
        process = context.Process(target=measure_slowly, args=(str(file), str(folder), 0.1))
        process.start()
        deadline = time.monotonic() + 300
        while answered_lines(folder) <= reached[-1] and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was killed while it worked"
        reached.append(answered_lines(folder))
    assert reached == sorted(set(reached)) and reached[-1] < 30 * 8, "every start went on, none was done"
    assert not (folder / ROWS).exists()
    for name in ("killed", "whole"):
        measure_slowly(str(file), str(tmp_path / name), 0.0)
    for name in (ROWS, KEPT, RESULTS):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert 0 < count_rows(folder / KEPT) < count_rows(folder / ROWS) == 30


def test_more_samples_ask_for_the_missing_answers_alone(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 8)
    few = poll(file, noisy, 3).ask(tmp_path / "out", False, nothing)
    more = poll(file, noisy, 5)
    many = more.ask(tmp_path / "out", False, nothing)
    assert more.evaluation.choice.policy.asked == 2 * 2, "two blocks for each of two more answers"
    assert [row[:3] for row in many] == few


def test_an_image_is_encoded_once_with_rewards_as_well(tmp_path: Path) -> None:
    asked = evaluation(pictures(tmp_path / "data", 12), RulePolicy(lambda item, seed: RIGHT), "rewards,0", block=2)
    service = ServiceConfig(mode="embedded", cache_gb=1e-5, cache_dir=None)  # two embeddings of six
    segmenter = asked.config.segmenter.model_copy(update={"service": service})
    reward = RecipeReward({**asked.config.reward, "reward_kwargs": {"segmenter": segmenter}})
    asked = replace(asked, config=replace(asked.config, segmenter=segmenter))
    Poll(asked, 4, reward).ask(tmp_path / "out", False, nothing)
    assert get_client(segmenter).counters().encodes == 6


@pytest.mark.parametrize(
    ("section", "named"),
    [
        (None, ["reward.path: 'pkg://reward_fns.samr1' ", ", None "]),
        ({"path": "pkg://reward_fns.seg_zero"}, ["reward.path: 'pkg://reward_fns.samr1' ", "seg_zero' "]),
        ({"reward_kwargs": {"reward": {"thresholds": {0.5: 1}}}}, ["reward.arguments.reward.thresholds.0.5: None "]),
    ],
)
def test_answers_with_another_reward_are_refused(section: dict | None, named: list[str], tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 4)
    first = poll(file, noisy, 2)
    first.ask(tmp_path / "out", False, nothing)
    reward = None if section is None else RecipeReward({**first.evaluation.config.reward, **section})
    with refused(DataError, "other_settings", *named):
        Poll(first.evaluation, 2, reward).ask(tmp_path / "out", False, nothing)


def test_the_place_of_the_segmenter_is_no_part_of_the_reward(tmp_path: Path) -> None:
    section = evaluation(rows(tmp_path / "data", 1), RulePolicy(noisy)).config.reward
    identity = RecipeReward(section).identity()
    assert identity["path"] == "pkg://reward_fns.samr1" and identity["name"] == "compute_score"
    assert identity["arguments"]["segmenter"]["path"] == "boxes,0"
    assert "service" not in identity["arguments"]["segmenter"] and json.loads(json.dumps(identity)) == identity


def test_a_policy_without_a_usable_answer_is_named_with_its_reasons(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 4)
    said = ["I see nothing.", "I see nothing.", "<answer>no JSON</answer>"]
    asked = poll(file, lambda item, seed: said[item["extra_info"]["index"] % 3], 3)
    answers = asked.ask(tmp_path / "out", False, nothing)
    names = ("12 answers", ": 9 ", "no_answer", "'I see nothing.'", "samr1.prompt", "samr1 predict")
    with refused(PolicyError, "no_usable_answer", *names):
        measure(answers, (), 2)
    none = poll(file, lambda item, seed: "<answer>[]</answer>", 3).ask(tmp_path / "none", False, nothing)
    assert measure(none, (), 2).success_rate.tolist() == [0] * 4, "an answer that says so is usable"


def test_bounds_that_leave_no_row_are_refused_with_the_range(tmp_path: Path) -> None:
    answers = poll(rows(tmp_path / "data", 3), by_number(), 8).ask(tmp_path / "out", False, nothing)
    found = measure(answers, (), 2)
    with refused(DataError, "no_row_left", "--keep 0.5..0.9: ", "3 rows", "0.125 to 0.375"):
        found.within(0.5, 0.9)
    assert found.within(0.125, 0.25).tolist() == [True, True, False], "ends included"


@pytest.mark.parametrize("text", ["", "0.1", "0.1-0.9", "0.9..0.1", "-0.1..0.5", "0..1.1", "a..b", "0..1..1", "nan..1"])
def test_bounds_that_are_none_are_refused(text: str) -> None:
    with refused(ConfigError, "bad_bounds", repr(text), "LOW..HIGH", "0.1..0.9") as found:
        parse_bounds(text)
    assert found.value.where == "--keep"


def test_bounds_are_read() -> None:
    assert [parse_bounds(text) for text in ("0.1..0.9", "0..1", ".5...5")] == [(0.1, 0.9), (0, 1), (0.5, 0.5)]


def test_the_measured_file_is_not_replaced(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 1)
    with refused(DataError, "out_in_results", file, "--out"):
        check_out(file, tmp_path / "other" / ".." / "data")
    check_out(file, tmp_path / "out")


def test_a_reward_that_depends_on_earlier_answers_is_refused() -> None:
    window = {"window": {"path": None, "step": 8}}
    with refused(ConfigError, "reward_ranks_answers", "samr1.reward.window: ", window["window"], "null"):
        RecipeReward({"path": "pkg://reward_fns.dr_seg", "name": "compute_score", "reward_kwargs": {"reward": window}})


def test_a_reward_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def score(*row): return float('nan')\n")
    first = evaluation(rows(tmp_path / "data", 1), RulePolicy(noisy))
    with refused(ConfigError, "score_not_finite", f"{tmp_path / 'bad.py'}, score: ", "nan"):
        Poll(first, 2, RecipeReward({"path": str(tmp_path / "bad.py"), "name": "score"})).ask(
            tmp_path / "out", False, nothing
        )
