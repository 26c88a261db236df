"""The table of rollouts until a held-out gIoU, from runs whose curves are known."""

from __future__ import annotations

from benchmarks.compute import DRAWN, GIOU, reached, rollouts_until, table


def test_rollouts_are_those_drawn_until_the_first_validation_at_the_goal() -> None:
    curves = {GIOU: {0: 0.5, 4: 0.7, 8: 0.81, 12: 0.79}, DRAWN: {step: 10.0 for step in range(1, 13)}}
    run = reached(curves, 8)
    assert run == {"step": [0, 4, 8, 12], "giou": [0.5, 0.7, 0.81, 0.79], "rollouts": [0, 320, 640, 960]}
    assert rollouts_until(run, 0.8) == (640, True)
    assert rollouts_until(run, 0.9) == (960, False)
    counted = {GIOU: {4: 0.7}, "critic/groups/count": {step: 8.0 for step in range(1, 5)}}
    assert reached(counted, 8)["rollouts"] == [256], "without dynamic sampling every group is in the batch"


def test_variants_are_compared_seed_by_seed() -> None:
    def run(*gious: float) -> dict[str, list[float]]:
        return {"step": [4, 8, 12], "giou": list(gious), "rollouts": [256, 512, 768]}

    results = {"every_row": [run(0.7, 0.8, 0.8), run(0.7, 0.7, 0.8)], "both": [run(0.8, 0.8, 0.8), run(0.7, 0.7, 0.7)]}
    plain, both = table(results, 0.8).splitlines()[2:]
    assert plain == "| `every_row` | 640 ± 181 |  | 2 of 2 | 0.800 ± 0.000 |"
    assert both.startswith("| `both` | 512 ± 362 | -128 [") and both.endswith("| 1 of 2 | 0.750 ± 0.071 |")
    alone = table({name: runs[:1] for name, runs in results.items()}, 0.8)
    assert "| `both` | 256 | -256 | 1 of 1 | 0.800 |" in alone and "nan" not in alone
