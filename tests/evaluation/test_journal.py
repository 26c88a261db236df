"""An evaluation that is killed, torn, changed or started twice: the figures are those of an uninterrupted one."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from samr1_verl.evaluation.journal import PREDICTIONS
from samr1_verl.evaluation.run import results_of
from samr1_verl.rows.record import DataError
from samr1_verl.scoring.sample import read_samples
from tests.errors import refused
from tests.evaluation.world import RulePolicy, evaluation, noisy, rows, run_slowly

ROWS, BLOCK = 90, 4


def nothing(done: int, total: int) -> None:
    """No progress bar."""


def lines(folder: Path) -> int:
    file = folder / PREDICTIONS
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.thorough)])
def test_kills_at_random_moments_change_nothing(kills: int, tmp_path: Path) -> None:
    file = rows(tmp_path / "data", ROWS)
    context = multiprocessing.get_context("forkserver")  # imports once, then a new process starts in no time
    context.set_forkserver_preload(["tests.evaluation.world"])
    draw, reached = random.Random(0), [0]
    folder = tmp_path / "killed"
    for _ in range(kills):
        process = context.Process(target=run_slowly, args=(str(file), str(folder), 0.1))
        process.start()
        deadline = time.monotonic() + 120
        while lines(folder) <= reached[-1] and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was killed while it worked"
        reached.append(lines(folder))
    assert reached == sorted(set(reached)) and reached[-1] < ROWS, "every start went on, none was done"

    policy = RulePolicy(noisy)
    after = evaluation(file, policy, "killed,0", seed=7).run(folder, False, nothing)
    whole = evaluation(file, RulePolicy(noisy), "killed,0", seed=7).run(tmp_path / "whole", False, nothing)
    assert len(after) == ROWS and 0 < policy.asked <= -(-(ROWS - reached[-1]) // BLOCK) + 1
    assert (folder / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()
    assert results_of(after, "lisa", 0, {}) == results_of(whole, "lisa", 0, {})


@pytest.mark.parametrize("cut", [1, 50, 700, 2500])
def test_what_is_torn_off_is_asked_again(cut: int, tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 10)
    evaluation(file, RulePolicy(noisy)).run(tmp_path / "out", False, nothing)
    path = tmp_path / "out" / PREDICTIONS
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    policy = RulePolicy(noisy)
    samples = evaluation(file, policy).run(tmp_path / "out", False, nothing)
    assert policy.asked >= 1 and len(samples) == 10 and path.read_bytes() == whole


def test_a_finished_evaluation_asks_nobody_and_restart_forgets(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 6)
    policies = [RulePolicy(noisy) for _ in range(3)]
    for policy, restart in zip(policies, (False, False, True), strict=True):
        evaluation(file, policy).run(tmp_path / "out", restart, nothing)
    assert [policy.asked for policy in policies] == [2, 0, 2]


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    samples = evaluation(rows(tmp_path / "data", 9), RulePolicy(noisy), limit=5).run(tmp_path / "out", False, nothing)
    assert [sample.sentence for sample in samples] == [f"sentence {number}" for number in range(5)]


def test_rows_that_finish_in_another_order_are_stored_in_theirs(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 20)
    many = evaluation(file, RulePolicy(noisy, seconds=0.01, parallel=7), block=1)
    one = evaluation(file, RulePolicy(noisy), block=1)
    assert many.run(tmp_path / "a", False, nothing) == one.run(tmp_path / "b", False, nothing)
    assert [sample.index for sample in read_samples(tmp_path / "a" / PREDICTIONS)] == list(range(20))


@pytest.mark.parametrize(
    ("change", "before", "now"),
    [
        ({"name": "another"}, "policy.model: 'rule' ", ", 'another' "),
        ({"segmenter": "finer,0"}, "segmenter.path: 'boxes,0' ", ", 'finer,0' "),
        ({"lenient": True}, "parsing: 'strict' ", ", 'lenient' "),
        ({"block": 2}, "batch_size: 4 ", ", 2 "),
        ({"limit": 3}, "limit: None ", ", 3 "),
    ],
)
def test_other_settings_are_refused(change: dict, before: str, now: str, tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 6)
    evaluation(file, RulePolicy(noisy)).run(tmp_path / "out", False, nothing)
    stored = (tmp_path / "out" / PREDICTIONS).read_bytes()
    with refused(DataError, "other_settings", tmp_path / "out", before, now, "--restart"):
        evaluation(file, RulePolicy(noisy), **change).run(tmp_path / "out", False, nothing)
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == stored


def test_other_rows_are_refused_and_the_same_rows_elsewhere_are_not(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 6)
    evaluation(file, RulePolicy(noisy)).run(tmp_path / "out", False, nothing)
    moved = (tmp_path / "data").rename(tmp_path / "moved") / "rows.parquet"
    assert len(evaluation(moved, RulePolicy(noisy)).run(tmp_path / "out", False, nothing)) == 6
    with refused(DataError, "other_settings", tmp_path / "out", "file_sha256"):
        evaluation(rows(tmp_path / "more", 8), RulePolicy(noisy)).run(tmp_path / "out", False, nothing)


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 6)

    def intrude(done: int, total: int) -> None:
        with refused(DataError, "folder_in_use", tmp_path / "out" / PREDICTIONS):
            evaluation(file, RulePolicy(noisy)).run(tmp_path / "out", False, nothing)

    assert len(evaluation(file, RulePolicy(noisy)).run(tmp_path / "out", False, intrude)) == 6


def test_a_policy_that_fails_leaves_what_was_answered(tmp_path: Path) -> None:
    file = rows(tmp_path / "data", 12)

    def failing(item: dict, seed: int) -> str:
        if item["extra_info"]["index"] == 9:
            raise RuntimeError("out of memory")
        return noisy(item, seed)

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluation(file, RulePolicy(failing)).run(tmp_path / "out", False, nothing)
    assert lines(tmp_path / "out") in (4, 8)
    policy = RulePolicy(noisy)
    assert len(evaluation(file, policy).run(tmp_path / "out", False, nothing)) == 12 and policy.asked <= 2
