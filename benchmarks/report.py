"""Size of a report, and how long a browser takes to open it: 200 steps with 10 samples each, from a run made of noise.

The images are 640x480 and as detailed as photographs, the masks ragged, the responses of 150 words, so that nothing
compresses well. The page's size is held against that of its parts: log, samples and images. A page is open
when all charts and the first cards of the gallery are there and the cards' images decoded; each time counts from the
request, in a browser that has not seen the page. Prints one JSON object as its last line.

    python benchmarks/report.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from scipy import ndimage

from data.fetch_chromium import launch
from samr1_verl.answers import Reason
from samr1_verl.geometry.images import sha256_of
from samr1_verl.geometry.masks import box_of, encode_rle, inscribed_points, intersection_union
from samr1_verl.report.page import report
from samr1_verl.report.run import EVENTS, read_run
from samr1_verl.scoring.sample import FOLDER, Sample, write_samples
from samr1_verl.service.wire import WirePrompt

TERMS = ("seg", "think", "format")
REASONS = (Reason.NOT_JSON, Reason.MISSING_POINTS, Reason.OUTSIDE)
OPEN = """async () => {
    const cards = [...document.querySelectorAll('.card')], charts = document.querySelectorAll('.chart path.line');
    await Promise.all(cards.flatMap((card) => [...card.querySelectorAll('img')]).map((image) => image.decode()));
    return [cards.length, charts.length];
}"""


def noise(rng: np.random.Generator, size: tuple[int, int], grain: float) -> np.ndarray:
    """Smooth noise, HxW float64 in [0, 1]."""
    field = ndimage.gaussian_filter(rng.random(size), grain)
    return (field - field.min()) / (field.max() - field.min())


def save_image(rng: np.random.Generator, path: Path, size: tuple[int, int]) -> str:
    """Draw an image file; its SHA-256."""
    channels = [sum(noise(rng, size, grain) for grain in (1, 4, 24)) / 3 for _ in range(3)]
    Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8)).save(path, quality=95)
    return sha256_of(path)


def blob(rng: np.random.Generator, base: np.ndarray, spread: float, fine: list[np.ndarray]) -> np.ndarray:
    """A ragged mask, HxW bool, never empty: where `base` plus noise of weight `spread` is high.

    The noise is one of the fields `fine`, shifted at random: drawing a new one takes most of a sample's time.
    """
    shift = tuple(rng.integers(base.shape))
    field = base + spread * np.roll(fine[rng.integers(len(fine))], shift, axis=(0, 1))
    return field > np.quantile(field[::4, ::4], 0.9)  # of each 16th pixel, which is as ragged and much faster


class World:
    """Rows with images and true masks, and samples of them. Everything follows from the seed."""

    def __init__(self, folder: Path, rows: int, seed: int, size: tuple[int, int] = (480, 640)):
        folder.mkdir(parents=True, exist_ok=True)
        self.rng, self.size = np.random.default_rng(seed), size
        self.words = np.array(["".join(self.rng.choice(list("aeiounrstlmk"), 6)) for _ in range(500)])
        self.paths = [folder / f"{row}.jpg" for row in range(rows)]
        self.digests = [save_image(self.rng, path, size) for path in self.paths]
        self.fields = [noise(self.rng, size, 40) for _ in range(rows)]
        self.fine = [noise(self.rng, size, 3) for _ in range(16)]
        self.truths = [blob(self.rng, field, 0.1, self.fine) for field in self.fields]
        # Once per row: a row's truth is the same at every step.
        self.truth_rles = [encode_rle(truth) for truth in self.truths]
        self.prompts = [
            WirePrompt.model_validate({"box": box_of(truth), "points": inscribed_points(truth, 2), "labels": (1, 1)})
            for truth in self.truths
        ]

    def text(self, words: int) -> str:
        return " ".join(self.rng.choice(self.words, words))

    def sample(self, row: int, skill: float) -> Sample:
        """A sample of a row; `skill` in [0, 1] brings the mask near the truth. One in eight cannot be used."""
        truth, unusable = self.truths[row], self.rng.random() < 0.125
        mask = np.zeros_like(truth) if unusable else blob(self.rng, self.fields[row], 1.1 - skill, self.fine)
        intersection, union = intersection_union(mask, truth)
        reason = REASONS[self.rng.integers(len(REASONS))] if unusable else None
        terms = {"seg": 4.0 * intersection / union, "think": 1.0, "format": float(reason is None)}
        scores = {"score": sum(terms.values()), "acc": intersection / union, **terms}
        scores |= {"intersection": float(intersection), "union": float(union)}
        scores |= {f"answer/{flag.value}": float(flag is reason) for flag in Reason}
        return Sample(
            index=row,
            data_source=f"noise_{row % 2}",
            category=("thing", "stuff")[row % 2],
            sentence=f"row {row}: {self.rng.choice(self.words)}",
            image=str(self.paths[row]),
            sha256=self.digests[row],
            size=self.size,
            response=f"<think>{self.text(150)}</think><answer>{json.dumps({'bbox': self.prompts[row].box})}</answer>",
            reason=None if reason is None else reason.value,
            shapes=() if unusable else (self.prompts[row],),
            mask=encode_rle(mask),
            truth=self.truth_rles[row],
            ignore=None,
            scores=scores,
        )


def write_log(run: Path, rng: np.random.Generator, steps: int) -> None:
    """The curves that training logs, with noise for values."""
    from torch.utils.tensorboard import SummaryWriter

    tags = ["reward/score", "reward/acc", "actor/kl_loss", "actor/entropy", "actor/grad_norm", "reward/step_share"]
    tags += [f"reward/{term}" for term in TERMS] + [f"reward/answer/{reason.value}" for reason in Reason]
    tags += [f"actor/pg_clipfrac_{side}" for side in ("high", "low")]
    tags += [f"response_length/{kind}" for kind in ("mean", "min", "max")]
    tags += ["reward/seconds/mean", "reward/seconds/max", "reward/exposed_seconds", "timing_s/step", "timing_s/gen"]
    tags += [
        f"val-core/noise_{source}/{kind}/{protocol}"
        for source in (0, 1)
        for kind in ("giou", "ciou")
        for protocol in ("lisa", "segzero")
    ]
    with SummaryWriter(str(run / EVENTS)) as writer:
        for step in range(1, steps + 1):
            for tag in tags:
                writer.add_scalar(tag, rng.random(), step)


def make_run(run: Path, steps: int, rows: int, seed: int = 0, size: tuple[int, int] = (480, 640)) -> World:
    """A run's folder with a log, and samples of every row at every step."""
    world = World(run / "images", rows, seed, size)
    sentences = {row: world.sample(row, 0).sentence for row in range(rows)}
    for step in range(1, steps + 1):
        samples = [world.sample(row, step / steps) for row in range(rows)]
        samples = [sample.model_copy(update={"sentence": sentences[sample.index]}) for sample in samples]
        write_samples(samples, run / FOLDER / f"{step}.jsonl")
    write_log(run, world.rng, steps)
    return world


def seconds_to_open(page: Path, repeats: int) -> tuple[list[float], list[int]]:
    """Seconds of each opening, and the numbers of cards and lines."""
    from playwright.sync_api import sync_playwright

    times, counts = [], [0, 0]
    with sync_playwright() as playwright:
        for _ in range(repeats):
            browser = launch(playwright)
            tab = browser.new_page(viewport={"width": 1440, "height": 900})
            tab.goto("about:blank")
            began = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector(".card")
            counts = tab.evaluate(OPEN)
            times.append(time.perf_counter() - began)
            browser.close()
    return times, counts


def main(
    steps: Annotated[int, typer.Option(help="steps of the run, each with samples")] = 200,
    rows: Annotated[int, typer.Option(help="samples per step")] = 10,
    repeats: Annotated[int, typer.Option(help="openings of the page")] = 5,
) -> None:
    """Make a run, write its report, open it. The last line is one JSON object."""
    with tempfile.TemporaryDirectory(prefix="samr1_report_") as folder:
        run = Path(folder, "run")
        make_run(run, steps, rows)
        parts = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
        began = time.perf_counter()
        text, _ = report([read_run(run)])
        wrote = time.perf_counter() - began
        page = Path(folder, "report.html")
        page.write_text(text, encoding="utf-8")
        times, (cards, lines) = seconds_to_open(page, repeats)
        size = page.stat().st_size
    result = {
        "steps": steps,
        "samples": steps * rows,
        "page_mb": round(size / 1e6, 2),
        "parts_mb": round(parts / 1e6, 2),
        "page_of_parts": round(size / parts, 3),
        "write_s": round(wrote, 1),
        "open_s_median": round(statistics.median(times), 2),
        "open_s_max": round(max(times), 2),
        "cards": cards,
        "lines": lines,
    }
    print(f"{size / 1e6:.1f} MB from {parts / 1e6:.1f} MB; open after {statistics.median(times):.2f} s (median)")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
