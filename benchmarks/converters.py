"""Cost of conversion and of loading: rows per second, memory, and the growth of time with the data set.

    python benchmarks/converters.py

It writes the formats of RefCOCO and COCO with synthetic references (640x480 JPEG images, two objects per image, two
sentences per object), converts them at each size in a new process, and loads the largest result in the dataset adapter.
The images are 200 different files under many names, so that the disk's cache serves them. Reading from a slow disk is
an additional cost. Processor seconds are those of all processes together, and stay comparable on a machine that does
other work as well. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from PIL import Image

from benchmarks.places import ROOT

WIDTH, HEIGHT = 640, 480
FILES, OBJECTS, SENTENCES = 200, 2, 2
ROWS_AN_IMAGE = OBJECTS * SENTENCES
MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Cost of a run. `peak_mb`: peak memory of the starting process; `tree_mb`: of this process with its workers."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    tree_mb: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def write_images(folder: Path, count: int) -> None:
    """Write FILES different images under `count` names of COCO's form."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"COCO_train2014_{index + 1:012d}.jpg"
        if index < FILES:
            coarse = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((WIDTH, HEIGHT)).save(path, quality=90)
        else:
            os.link(folder / f"COCO_train2014_{index % FILES + 1:012d}.jpg", path)


def polygon(rng: np.random.Generator) -> list[float]:
    """An ellipse-like outline of 40 corners inside the image."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = rng.uniform(30, 110, 2) * rng.uniform(0.8, 1.0, (40, 1))
    centre = rng.uniform((115, 115), (WIDTH - 115, HEIGHT - 115))
    return (centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2).reshape(-1).tolist()


def write_source(folder: Path, rows: int) -> None:
    """Write refs(unc).p and instances.json with `rows` sentences. Annotations also hold them as `captions`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    for image_id in range(1, rows // ROWS_AN_IMAGE + 1):
        name = f"COCO_train2014_{image_id:012d}.jpg"
        images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for _ in range(OBJECTS):
            number = len(annotations) + 1
            texts = [f"the {word} shape number {number} on the left of the image" for word in ("first", "other")]
            annotation = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "captions": texts}
            annotations.append({**annotation, "segmentation": [polygon(rng)], "bbox": [0, 0, 1, 1], "area": 1.0})
            sents = [{"sent_id": SENTENCES * number + i, "sent": text, "raw": text, "tokens": text.split()}
                     for i, text in enumerate(texts)]  # fmt: skip
            ref = {"ref_id": number, "ann_id": number, "image_id": image_id, "category_id": 1, "split": "train"}
            refs.append({**ref, "file_name": name, "sent_ids": [sent["sent_id"] for sent in sents], "sentences": sents})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    categories = [{"id": 1, "name": "shape"}]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def measured(command: list[str], rows: int) -> Cost:
    """Run a command to its end and measure its memory twenty times per second."""
    start, cpu_start = time.perf_counter(), cpu_of_children()
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    peak = tree = 0
    watched = psutil.Process(process.pid)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak, tree
        while not done.wait(0.05):
            try:
                own = watched.memory_info().rss
                others = sum(child.memory_info().rss for child in watched.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
            peak, tree = max(peak, own), max(tree, own + others)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{out}{errors}")
    return Cost(rows, time.perf_counter() - start, cpu_of_children() - cpu_start, peak / MB, tree / MB)


def cpu_of_children() -> float:
    """Processor seconds of all ended processes that this process started, with the processes that they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def convert(kind: str, source: Path, images: Path, out: Path, rows: int, workers: int = 0) -> Cost:
    """Convert with data/refcoco.py or data/coco.py."""
    places = {
        "refcoco": ["--annotations", source, "--out", out],
        "coco": ["--annotations", source / "instances.json", "--out", out / "train.parquet", "--column", "captions"],
    }[kind]
    script = ROOT / "data" / f"{kind}.py"
    return measured([str(word) for word in (script, *places, "--images", images, "--workers", workers)], rows)


LOAD = """
import json, os, pickle, psutil, sys, time
opened = []
def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".jpg"):
        opened.append(1)
sys.addaudithook(note)
from transformers import AutoProcessor
from samr1_verl.training.dataset import SegmentationDataset
from omegaconf import OmegaConf
from hydra import compose, initialize_config_module
file, policy = sys.argv[1:]
with initialize_config_module("verl.trainer.config", version_base=None):
    data = compose("ppo_trainer", ["+recipe=samr1_tiny"]).data
processor = AutoProcessor.from_pretrained(policy)
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
rows = SegmentationDataset([file], processor.tokenizer, data, processor)
seconds, after = time.perf_counter() - start, process.memory_info().rss
start = time.perf_counter()
sizes = [len(pickle.dumps(rows[i])) for i in range(0, len(rows), max(1, len(rows) // 1000))]
print(json.dumps({
    "rows": len(rows), "seconds": seconds, "added_mb": (after - before) / 1e6, "images_opened": len(opened),
    "item_ms": 1e3 * (time.perf_counter() - start) / len(sizes), "item_bytes": sum(sizes) / len(sizes),
}))
"""


def load(file: Path) -> dict[str, Any]:
    """Load the rows in the dataset adapter, in a new process."""
    policy = ROOT / "data" / "checkpoints" / "tiny_policy"
    command = [sys.executable, "-c", LOAD, str(file), str(policy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(
    rows: Annotated[
        list[int] | None, typer.Option(help="number of rows; repeatable; default: 1000, 10000, 50000")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="folder to work in; default: the system's temporary folder")
    ] = None,
) -> None:
    """Measure conversion at several sizes, and loading at the largest size."""
    sizes = sorted(rows or [1_000, 10_000, 50_000])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        write_images(work / "train2014", sizes[-1] // ROWS_AN_IMAGE)
        costs: dict[str, list[Cost]] = {"refcoco": [], "coco": []}
        print(
            f"{'converter':10}{'rows':>8}{'seconds':>10}{'rows/s':>9}{'cpu s':>8}{'peak MB':>9}{'with workers MB':>17}"
        )
        for size in sizes:
            source = work / f"source_{size}"
            write_source(source, size)
            for kind, runs in costs.items():
                cost = convert(kind, source, work / "train2014", work / f"{kind}_{size}", size)
                runs.append(cost)
                show(kind, cost)
        half = sizes[len(sizes) // 2]
        alone = convert("refcoco", work / f"source_{half}", work / "train2014", work / "alone", half, workers=1)
        show("1 worker", alone)
        together = costs["refcoco"][len(sizes) // 2]
        loaded = load(work / f"refcoco_{sizes[-1]}" / "train.parquet")
    print(
        f"loading {loaded['rows']:,} rows: {loaded['seconds']:.1f} s, {loaded['added_mb']:.0f} MB resident, "
        f"{loaded['images_opened']} images opened; an item takes {loaded['item_bytes']:.0f} bytes and "
        f"{loaded['item_ms']:.2f} ms"
    )
    summary: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": loaded}
    for kind, runs in costs.items():
        further = [
            1e3 * (later.cpu_seconds - earlier.cpu_seconds) / (later.rows - earlier.rows)
            for earlier, later in pairwise(runs)
        ]
        memory = runs[-1].peak_mb / runs[0].peak_mb
        summary[kind] = {
            "runs": [asdict(cost) for cost in runs],
            "cpu_ms_per_further_row": further,
            "peak_ratio": memory,
        }
        print(
            f"{kind}: a further row takes {', then '.join(f'{cost_ms:.2f}' for cost_ms in further)} ms of processor "
            f"time; {runs[-1].rows / runs[0].rows:.0f} times the rows take {memory:.2f} times the memory"
        )
    summary["speedup"] = alone.seconds / together.seconds
    print(f"all cores against one, {half:,} rows: {summary['speedup']:.2f} times as fast")
    print(json.dumps(summary))


def show(name: str, cost: Cost) -> None:
    """Print a line of the table."""
    print(
        f"{name:10}{cost.rows:8,}{cost.seconds:10.1f}{cost.rows_per_second:9.0f}{cost.cpu_seconds:8.1f}"
        f"{cost.peak_mb:9.0f}{cost.tree_mb:17.0f}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
