"""`samr1 eval --votes` with the tiny policy and the small SAM, in this process and behind a server."""

import json
from pathlib import Path
from typing import Any

import pytest

from samr1_verl.policies.checkpoints import Files
from samr1_verl.policies.local import LocalPolicy
from samr1_verl.scoring.sample import read_samples
from tests.cli.test_evaluate import evaluate, options, results
from tests.policies.chat_server import ChatServer, serving

__all__ = ["options"]  # a fixture


def responses(folder: Path, number: int) -> list[str]:
    return [sample.response for sample in read_samples(folder / "answers" / f"{number:03}" / "predictions.jsonl")]


@pytest.mark.slow
def test_the_curve_is_printed_stored_and_grows(options: list[str], drawn: Path, tmp_path: Path) -> None:
    file = drawn / "test.parquet"
    status, output = evaluate(file, *options, "--out", tmp_path / "a", "--votes", "2")
    assert status == 0, output
    found = results(output)
    assert found["votes"] == 2 and [point["votes"] for point in found["curve"]] == [1, 2]
    assert found["settings"]["policy"]["temperature"] == 1.0, "that of the recipe's rollouts"
    last = found["curve"][-1]
    assert found["giou"] == last["lisa"]["giou"] and found["giou_ci"] == last["lisa"]["giou_ci"]
    assert last["cost"]["answers"] == 16 and last["cost"]["tokens"] > 16 * 5
    assert "N answers a row" in output and f"{found['giou']:.3f}" in output
    voted = list(read_samples(tmp_path / "a" / "predictions.jsonl"))
    assert [sample.index for sample in voted] == list(range(8))
    assert json.loads((tmp_path / "a" / "results.json").read_text())["curve"] == found["curve"]

    grown = results(evaluate(file, *options, "--out", tmp_path / "a", "--votes", "3")[1])
    whole = results(evaluate(file, *options, "--out", tmp_path / "b", "--votes", "3")[1])
    assert [responses(tmp_path / "a", number) for number in range(3)] == [
        responses(tmp_path / "b", number) for number in range(3)
    ]
    assert responses(tmp_path / "a", 0) != responses(tmp_path / "a", 1)
    for point, other, before in zip(grown["curve"], whole["curve"], [*found["curve"], None], strict=True):
        assert point["lisa"] == other["lisa"]
        assert before is None or point["lisa"] == before["lisa"]


@pytest.mark.slow
def test_a_server_gets_a_seed_for_every_answer(
    options: list[str], warm_policy: Path, drawn: Path, tmp_path: Path
) -> None:
    chat = ChatServer(LocalPolicy(Files(warm_policy), 48))
    with serving(chat.app) as address:
        arguments = ("--server", address, "--votes", "3", "--temperature", "0.7", "--limit", "4")
        status, output = evaluate(drawn / "test.parquet", *options, *arguments, "--out", tmp_path)
        assert status == 0, output
        assert len(chat.asked) == 12 and len({body["seed"] for body in chat.asked}) == 12
        assert {body["temperature"] for body in chat.asked} == {0.7}
        again = evaluate(drawn / "test.parquet", *options, *arguments, "--out", tmp_path)
        assert again[0] == 0 and len(chat.asked) == 12, "every answer is stored"
    assert results(output)["curve"][-1]["cost"]["tokens"] > 0


@pytest.mark.parametrize("votes", ["0", "-3", "257", "many"])
def test_a_number_of_votes_that_is_none_is_refused(votes: str, drawn: Path) -> None:
    status, output = evaluate(drawn / "test.parquet", "--votes", votes)
    assert status == 2 and "Invalid value for '--votes'" in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--temperature", "0"], "--temperature: found 0 with --votes 4, expected more than 0"),
        (
            ["--set", "actor_rollout_ref.rollout.temperature=0"],
            "actor_rollout_ref.rollout.temperature: found 0 with --votes 4",
        ),
    ],
)
def test_votes_of_greedy_answers_are_refused(
    arguments: list[str], named: str, options: list[str], drawn: Path, tmp_path: Path
) -> None:
    out: list[Any] = ["--out", tmp_path / "out"]
    status, output = evaluate(drawn / "test.parquet", *options, *arguments, "--votes", "4", *out)
    assert status == 1 and named in output and not (tmp_path / "out").exists()
