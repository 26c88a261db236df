"""How fast rewards and the parser are, without a segmenter: CPU seconds of one process.

    python benchmarks/rewards.py

Scores a CPU second of each reward for answers of 1, 5 and 120 objects, everything but the segmenter's own work
included: where a reward compares masks, the stand-in's mask is the box, so the masks are real and only their making is
free. Then the CPU seconds that parsing takes for responses of 62.5 kB to 1 MB, good ones and the worst that were found,
with the growth for sixteen times the length: 16 is linear, somewhat more where a large value leaves the CPU's caches.
The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reward_fns import composed, dr_seg, samr1, seg_zero, star, vision_reasoner
from samr1_verl.answers import has_think_format, parse_answer
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.segmenters.base import Embedding, Prediction, Prompt
from samr1_verl.service import client as service_client

SIDE = 840
MASKS = {
    "segmenter": {"backend": "onnx", "path": "boxes", "device": "cpu", "dtype": "float32"},
    "service": {"mode": "embedded", "cache_gb": 1.0, "cache_dir": None},
}
WINDOW = {"window": {"path": None, "step": 128}}
TERMS = {"terms": {"mask_iou": 1.0, "s_measure": 0.3, "boundary_iou": 0.0, "length": 0.1}}
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


class Boxes:
    """A segmenter whose masks are the boxes, as fast as writing them."""

    identity = "boxes"

    def encode(self, image: np.ndarray) -> Embedding:
        return Embedding({}, (image.shape[0], image.shape[1]))

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [Prediction(rectangle(prompt.box_original, embedding.size), 1.0) for prompt in prompts]


def rectangle(box: Sequence[float] | None, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    x1, y1, x2, y2 = (round(edge) for edge in box or ())
    mask[y1:y2, x1:x2] = True
    return mask


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
    digest = sha256(image.read_bytes()).hexdigest()
    extra = {"image": str(image), "sha256": digest, "policy_size": [SIDE, SIDE], "frame": "absolute"}
    reasoning = "Each of them stands beside the next one. " * 10
    return f"<think>{reasoning}</think><answer>{json.dumps(answer)}</answer>", json.dumps(truth), extra


def seg_zero_response(response: str) -> str:
    """The same answer under Seg-Zero's keys."""
    (one,) = json.loads(response[response.index("<answer>") + 8 : -9])
    answer = {"bbox": one["bbox_2d"], "points_1": one["point_2d"], "points_2": one["point_2d"]}
    return response[: response.index("<answer>")] + f"<answer>{json.dumps(answer)}</answer>"


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of the best of as many runs as fit the budget, at least five, after one to warm up.

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
    found: dict[str, dict[int, float]] = {}
    loop = asyncio.new_event_loop()
    for name, (module, kwargs, counts) in CASES.items():
        for count in counts:
            text, truth, extra = scene(count, image)
            text = seg_zero_response(text) if name == "seg_zero" else text

            def score(text=text, truth=truth, extra=extra, module=module, kwargs=kwargs) -> dict[str, float]:
                return loop.run_until_complete(module.compute_score("benchmark", text, truth, extra, **kwargs))

            result = score()
            assert result["acc"] > 0.5, (name, count, result)
            found.setdefault(name, {})[count] = round(1 / seconds(score), 1)
            print(f"{name:16} {count:4} objects  {found[name][count]:10.1f} scores/s")
    loop.close()
    return found


def parse_seconds() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    good = json.dumps({"bbox": [10, 20, 30, 40], "points_1": [12, 22], "points_2": [13, 33]})
    for mode, lenient in (("strict", False), ("lenient", True)):
        for name, unit in {"a long thought": "word ", **WORST}.items():
            times = []
            for length in LENGTHS:
                part = unit * (length // 2 // len(unit))
                inside = good if name == "a long thought" else f"[{part[:-2]}]" if part.endswith(", ") else part
                text = f"<think>{part}{part if inside is good else ''}</think><answer>{inside}</answer>"

                def parse(text=text, lenient=lenient) -> None:
                    parse_answer(text, lenient=lenient)
                    has_think_format(text)

                times.append(seconds(parse))
            growth = times[-1] / times[0]
            found[f"{mode}, {name}"] = {"seconds": [float(f"{one:.3g}") for one in times], "growth": round(growth, 1)}
            print(f"{mode:8} {name:15} {times[-1] * 1e3:8.2f} ms for 1 MB, {growth:5.1f} times the time of 62.5 kB")
    return found


def main() -> None:
    service_client.load_segmenter = lambda config: Boxes()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(image)
        scores = scores_per_second(image)
    print(json.dumps({"scores_per_second": scores, "parse": parse_seconds()}))


if __name__ == "__main__":
    main()
