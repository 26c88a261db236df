"""The table of rollouts until a held-out gIoU, from runs whose curves are known."""

from __future__ import annotations

from pathlib import Path

from benchmarks.compute import COUNT, DRAWN, GIOU, logged, reached, rollouts_until, table


def test_rollouts_are_those_drawn_until_the_first_validation_at_the_goal() -> None:
    curves = {GIOU: {0: 0.5, 4: 0.7, 8: 0.81, 12: 0.79}, DRAWN: {step: 10.0 for step in range(1, 13)}}
    assert reached(curves, 8, 0.8) == {"step": [0, 4, 8], "giou": [0.5, 0.7, 0.81], "rollouts": [0, 320, 640]}
    assert rollouts_until(reached(curves, 8, 0.8), 0.8) == (640, True)
    assert rollouts_until(reached(curves, 8, 0.9), 0.9) == (960, False)
    counted = {GIOU: {4: 0.7}, DRAWN: {}, COUNT: {step: 8.0 for step in range(1, 5)}}
    assert reached(counted, 8, 0.8)["rollouts"] == [256], "without dynamic sampling every group is in the batch"


def test_the_curves_are_those_of_the_console(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    assert logged(log) == {GIOU: {}, DRAWN: {}, COUNT: {}}
    start = "(TaskRunnerV1 pid=1) step:"
    log.write_text(
        f"{start}0 - {GIOU}:0.5 - x:1\n{start}1 - {COUNT}:8.0 - {GIOU}/other:0.9\nProgress 1/2\n"
        f"{start}4 - {COUNT}:8.0 - {GIOU}:np.float64(7.5e-1)\n{start}4 - {COUNT}:8.0 - {GIOU}:0.76\n"
    )
    assert logged(log) == {GIOU: {0: 0.5, 4: 0.76}, DRAWN: {}, COUNT: {1: 8.0, 4: 8.0}}


def test_variants_are_compared_seed_by_seed() -> None:
    def run(*gious: float) -> dict[str, list[float]]:
        return {"step": [4, 8, 12], "giou": list(gious), "rollouts": [256, 512, 768]}

    results = {"every_row": [run(0.7, 0.8, 0.8), run(0.7, 0.7, 0.8)], "both": [run(0.8, 0.8, 0.8), run(0.7, 0.7, 0.7)]}
    plain, both = table(results, 0.8).splitlines()[2:]
    assert plain == "| `every_row` | 640 ± 181 |  | 12 ± 0 | 2 of 2 |"
    assert both.startswith("| `both` | 512 ± 362 | -128 [") and both.endswith("| 12 ± 0 | 1 of 2 |")
    alone = table({name: runs[:1] for name, runs in results.items()}, 0.8)
    assert "| `both` | 256 | -256 | 12 | 1 of 1 |" in alone and "nan" not in alone
