"""256 answers to /v1/score of a real server: in one request, against 256 requests, one by one and sixteen at a time.

    python benchmarks/score_route.py    32 answers about each of 8 drawn scenes, the small SAM, SAM-R1's reward

The server runs in a process of its own, as `samr1 serve` starts it, with the embeddings of the 8 images made before the
clock starts. Each side has other answers, so that no mask is known. The benchmark ends with an error where a score
differs from that of a plain call in this process. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.soak_servers import free_port
from examples.score_client import score
from reward_fns.samr1 import compute_score
from samr1_verl.policies.load import config_for
from samr1_verl.scoring.route import RowFiles

FILE = Path("data/shapes/test.parquet")
SCENES, GROUP, SIDE = 8, 32, 168
Answers = list[dict[str, Any]]


def answers_of(seed: int) -> Answers:
    """GROUP answers about each row, with boxes around the true one."""
    draw, files = np.random.default_rng(seed), RowFiles([FILE])
    answers = []
    for row in range(SCENES):
        record, _ = files.record(f"test:{2 * row}")
        scale = np.array([SIDE / record.width, SIDE / record.height] * 2)
        for _ in range(GROUP):
            box = (np.array(record.boxes[0]) * scale + draw.uniform(-4, 4, 4)).clip(0, SIDE).round(2).tolist()
            middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
            text = json.dumps({"bbox": box, "points_1": middle, "points_2": middle})
            answers.append({"row": row, "response": f"<think>here it is</think><answer>{text}</answer>"})
    return answers


def rows() -> list[dict[str, Any]]:
    return [{"id": f"test:{2 * row}", "policy_size": [SIDE, SIDE], "frame": "absolute"} for row in range(SCENES)]


async def plain(answers: Answers) -> list[dict[str, float]]:
    """The scores of a plain call in this process."""
    segmenter, files, scores = config_for(None, "samr1_tiny", [], server=False).segmenter, RowFiles([FILE]), []
    for answer in answers:
        record, image = files.record(f"test:{2 * answer['row']}")
        extra = {"image": str(image), "sha256": record.sha256, "policy_size": [SIDE, SIDE], "frame": "absolute"}
        truth, text = record.ground_truth(), answer["response"]
        scores.append(await compute_score(record.data_source, text, truth, extra, segmenter=segmenter))
    return scores


def start(port: int) -> subprocess.Popen[bytes]:
    command = ["-m", "samr1_verl.cli", "serve", "--backend", "onnx", "--path", "data/weights/small_sam"]
    options = ["--port", str(port), "--root", str(FILE.parent), "--rows", str(FILE)]
    return subprocess.Popen([sys.executable, *command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def when_ready(ask: Callable[[], Any]) -> None:
    """Ask until the server listens. Raises the last error after two minutes."""
    for left in range(240, -1, -1):
        try:
            ask()
            return
        except ConnectionError as error:
            if not left:
                raise error
        except OSError as error:
            if not left or "refused" not in str(error):
                raise error
        time.sleep(0.5)


def main(repeats: Annotated[int, typer.Option(min=1, help="turns of each side; the fastest counts")] = 3) -> None:
    """Time the three sides and print the ratios. The last line is one JSON object."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    server = start(port)

    def whole(answers: Answers) -> list[dict[str, float]]:
        return score(address, "samr1", rows(), answers)

    def single(answer: dict[str, Any]) -> dict[str, float]:
        (found,) = score(address, "samr1", [rows()[answer["row"]]], [{**answer, "row": 0}])
        return found

    def sixteen(answers: Answers) -> list[dict[str, float]]:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(single, answers))

    sides: dict[str, Callable[[Answers], list[dict[str, float]]]] = {
        "one request": whole,
        "256 requests, sixteen at a time": sixteen,
        "256 requests, one by one": lambda answers: list(map(single, answers)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    try:
        when_ready(lambda: whole(answers_of(0)))
        for turn in range(repeats):
            for number, (name, ask) in enumerate(sides.items()):
                answers = answers_of(1 + 3 * turn + number)
                began = time.perf_counter()
                found = ask(answers)
                seconds[name].append(time.perf_counter() - began)
                if not turn and found != asyncio.run(plain(answers)):
                    raise SystemExit(f"{name}: a score differs from that of a plain call")
    finally:
        server.terminate()
        server.wait()
    table = Table(title=f"{SCENES * GROUP} answers")
    for column in ("", "seconds", "times one request"):
        table.add_column(column, justify="right" if column else "left")
    best = {name: min(turns) for name, turns in seconds.items()}
    ratios = {name: value / best["one request"] for name, value in best.items()}
    for name, value in best.items():
        table.add_row(name, f"{value:.2f}", f"{ratios[name]:.2f}")
    Console().print(table)
    typer.echo(json.dumps({"answers": SCENES * GROUP, "seconds": seconds, "ratios": ratios}))


if __name__ == "__main__":
    typer.run(main)
