"""Speed of the rewards and of the parser, without a segmenter: CPU seconds of one process.

    python benchmarks/rewards.py

Scores per CPU second of each reward, for answers of 1, 5 and 120 objects, with everything but the segmenter's own work:
where a reward compares masks, the stand-in's mask is the box, so the masks are real and only their making is free.
Then the CPU seconds of parsing responses of 62.5 kB to 1 MB, good ones and the worst that are known, with the growth
for sixteen times the length: 16 is linear, somewhat more where a large value leaves the CPU's caches. The last line is
one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from benchmarks.boxes import rectangle
from reward_fns import composed, dr_seg, samr1, seg_zero, star, vision_reasoner
from samr1_verl.answers import has_think_format, parse_answer
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import encode_rle

SIDE = 840
MASKS = {
    "segmenter": {
        "backend": "benchmarks.boxes",
        "path": "none",
        "device": "cpu",
        "dtype": "float32",
        "service": {"mode": "embedded", "cache_gb": 1.0, "cache_dir": None},
    }
}
WINDOW = {"reward": {"window": {"path": None, "step": 128}}}
TERMS = {"reward": {"terms": {"mask_iou": 1.0, "s_measure": 0.3, "boundary_iou": 0.0, "length": 0.1}}}
# Rewards of one object, or of answers with at most 16, take no more.
CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "seg_zero": (seg_zero, {}, (1,)),
    "vision_reasoner": (vision_reasoner, {}, (1, 5, 120)),
    "dr_seg": (dr_seg, WINDOW, (1, 5, 120)),
    "samr1": (samr1, MASKS, (1, 5)),
    "composed": (composed, {**MASKS, **TERMS}, (1, 5)),
    "star": (star, MASKS, (1, 5, 120)),
}
LENGTHS = [62_500, 125_000, 250_000, 500_000, 1_000_000]
WORST = {
    "objects": '{"bbox": [1, 2, 3, 4], "points": [[1, 2]]}, ',
    "numbers": "12, ",
    "brackets": "[",
    "bracket pairs": "[]",
    "braces": "{",
    "tags": "<answer>",
    "quotes": '"',
    "digits": "1",
}
BUDGET_S = 0.3  # of measuring one case


def scene(count: int, image: Path) -> tuple[str, str, dict[str, Any]]:
    """A response that names `count` objects a little off, its ground truth and extra_info."""
    corners = [(60 * (i % 13), 75 * (i // 13)) for i in range(count)]
    boxes = [[x, y, x + 50, y + 60] for x, y in corners]
    points = [[[x + 25, y + 30], [x + 25, y + 40]] for x, y in corners]
    masks = [encode_rle(rectangle(box, (SIDE, SIDE))) for box in boxes]
    truth = {"size": [SIDE, SIDE], "masks": masks, "ignore": None, "boxes": boxes, "points": points}
    answer = [
        {"label": "shape", "bbox_2d": [x + 3, y + 3, x + 50, y + 60], "point_2d": [x + 20, y + 30]} for x, y in corners
    ]
    extra = {"image": str(image), "sha256": sha256_of(image), "policy_size": [SIDE, SIDE], "frame": "absolute"}
    reasoning = "Each of them stands beside the next one. " * 10
    return f"<think>{reasoning}</think><answer>{json.dumps(answer)}</answer>", json.dumps(truth), extra


def seg_zero_response(response: str) -> str:
    """The same answer under Seg-Zero's keys."""
    (target,) = json.loads(response[response.index("<answer>") + 8 : -9])
    answer = {"bbox": target["bbox_2d"], "points_1": target["point_2d"], "points_2": target["point_2d"]}
    return response[: response.index("<answer>")] + f"<answer>{json.dumps(answer)}</answer>"


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of the best of as many runs as fit the budget, at least five, after a warm-up.

    CPU time, because both scoring and parsing compute and never wait, and other processes share the machine.
    """
    run()
    times: list[float] = []
    while sum(times) < BUDGET_S or len(times) < 5:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def scores_per_second(image: Path) -> dict[str, dict[int, float]]:
    """Scores per CPU second: reward → objects of the answer → rate."""
    rates: dict[str, dict[int, float]] = {name: {} for name in CASES}
    loop = asyncio.new_event_loop()

    def score(module: Any, kwargs: dict[str, Any], text: str, truth: str, extra: dict[str, Any]) -> dict[str, float]:
        return loop.run_until_complete(module.compute_score("benchmark", text, truth, extra, **kwargs))

    for name, (module, kwargs, counts) in CASES.items():
        for count in counts:
            text, truth, extra = scene(count, image)
            text = seg_zero_response(text) if name == "seg_zero" else text
            run = partial(score, module, kwargs, text, truth, extra)
            result = run()
            assert result["acc"] > 0.5, (name, count, result)
            rates[name][count] = round(1 / seconds(run), 1)
            print(f"{name:16} {count:4} objects  {rates[name][count]:10.1f} scores/s")
    loop.close()
    return rates


def parse(text: str, lenient: bool) -> None:
    """The parser's share of a reward."""
    parse_answer(text, lenient=lenient)
    has_think_format(text)


def response_of(unit: str, length: int, answer: str | None) -> str:
    """A response of about `length` characters: `unit` repeated in the thought, and in the answer where that is None."""
    part = unit * (length // 2 // len(unit))
    if answer is not None:
        return f"<think>{part}{part}</think><answer>{answer}</answer>"
    inside = f"[{part[:-2]}]" if part.endswith(", ") else part
    return f"<think>{part}</think><answer>{inside}</answer>"


def parse_seconds() -> dict[str, dict[str, Any]]:
    """CPU seconds for each of LENGTHS, and the growth from the first to the last: case → both."""
    results: dict[str, dict[str, Any]] = {}
    good = json.dumps({"bbox": [10, 20, 30, 40], "points_1": [12, 22], "points_2": [13, 33]})
    cases: dict[str, tuple[str, str | None]] = {"a long thought": ("word ", good)}
    cases |= {name: (unit, None) for name, unit in WORST.items()}
    for mode, lenient in (("strict", False), ("lenient", True)):
        for name, (unit, answer) in cases.items():
            times = [seconds(partial(parse, response_of(unit, length, answer), lenient)) for length in LENGTHS]
            growth = times[-1] / times[0]
            results[f"{mode}, {name}"] = {"seconds": [float(f"{t:.3g}") for t in times], "growth": round(growth, 1)}
            print(f"{mode:8} {name:15} {times[-1] * 1e3:8.2f} ms for 1 MB, {growth:5.1f} times the time of 62.5 kB")
    return results


def main() -> None:
    """Speed of the rewards and of the parser, without a segmenter. The last line is one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(image)
        scores = scores_per_second(image)
    print(json.dumps({"scores_per_second": scores, "parse": parse_seconds()}))


if __name__ == "__main__":
    typer.run(main)
