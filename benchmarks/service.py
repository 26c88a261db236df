"""Cost of the engine beyond the segmenter itself.

    python benchmarks/service.py once     16 images x G rollouts through the engine, cold and warm, against E and D
                                          and against a segmenter that encodes anew for every rollout
    python benchmarks/service.py decode   a group of 8 against eight calls of segment-anything's own predict

E and D are the seconds of an encode and of a decode with its IoU, measured in the same run. Every figure is wall time,
then processor time: on a machine that others use, the second is the one to read. `--backend segment_anything` takes a
randomly initialised ViT-B, as decode always does. Each command prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.service_commands import Command, parser_of, run
from benchmarks.service_scenes import Scene, segmenter_config
from samr1_verl.geometry.overlap import Overlap
from samr1_verl.segmenters import Segmenter, load_segmenter
from samr1_verl.service.engine import Engine

GIGABYTE = 1_000_000_000


class Clock:
    """Wall and processor seconds since it was made; processor time is this process's."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> np.ndarray:
        return np.array([time.perf_counter() - self._start[0], time.process_time() - self._start[1]])


def timed(compute: Callable[[], Any]) -> np.ndarray:
    """Wall and processor seconds of a call."""
    clock = Clock()
    compute()
    return clock.read()


def ratios(seconds: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Wall and processor seconds over those of the reference."""
    return {"wall": round(float(seconds[0] / reference[0]), 3), "cpu": round(float(seconds[1] / reference[1]), 3)}


def ious(engine: Engine, scenes: list[Scene]) -> list[float]:
    """Of all scenes' prompts, each its own request, all at once."""

    async def ask() -> list[Overlap]:
        requests = ((scene, prompt) for scene in scenes for prompt in scene.prompts)
        return await asyncio.gather(
            *(engine.overlap(scene.path, scene.sha256, [prompt], scene.truth) for scene, prompt in requests)
        )

    return [overlap.pixels.intersection / overlap.pixels.union for overlap in asyncio.run(ask())]


class References:
    """Seconds of the segmenter alone on some scenes: `encode` (E), `decode` (D, with its IoU) and `anew` (both)."""

    def __init__(self, segmenter: Segmenter, scenes: list[Scene]) -> None:
        self._segmenter, self._scenes = segmenter, scenes
        self.encode: list[np.ndarray] = []
        self.decode: list[np.ndarray] = []
        self.anew: list[np.ndarray] = []

    def measure(self) -> None:
        """E and D. Called before and after the engine's turn, because others use the machine too."""
        for scene in self._scenes:
            clock = Clock()
            embedding = self._segmenter.encode(scene.pixels())
            self.encode.append(clock.read())
            for prompt in scene.prompts[:4]:
                clock = Clock()
                scene.iou(self._segmenter.decode(embedding, [prompt])[0].mask)
                self.decode.append(clock.read())

    def measure_anew(self) -> None:
        """An encode and a decode per rollout, as other code bases do it."""
        for scene in self._scenes:
            for prompt in scene.prompts[:2]:
                clock = Clock()
                scene.iou(self._segmenter.decode(self._segmenter.encode(scene.pixels()), [prompt])[0].mask)
                self.anew.append(clock.read())


def once(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cold and warm groups through the engine, against the sum of their encodes and decodes."""
    segmenter = load_segmenter(segmenter_config(arguments.backend, folder))
    result: dict[str, Any] = {"backend": arguments.backend, "images": arguments.images}
    for group in arguments.groups:
        scenes = [Scene(folder, index, group) for index in range(arguments.images)]
        engine, references = Engine(segmenter, GIGABYTE), References(segmenter, scenes[: arguments.references])
        segmenter.encode(scenes[0].pixels())  # warm-up
        references.measure()
        turn = partial(ious, engine, scenes)
        cold, warm = timed(turn), timed(turn)
        references.measure()
        references.measure_anew()
        engine.close()
        e, d, anew = (np.mean(values, axis=0) for values in (references.encode, references.decode, references.anew))
        rollouts = arguments.images * group
        result[f"G={group}"] = {
            "E": e.round(4).tolist(),
            "D": d.round(4).tolist(),
            "cold_s": cold.round(2).tolist(),
            "warm_s": warm.round(2).tolist(),
            "cold_over_sum": ratios(cold, arguments.images * e + rollouts * d),
            "warm_over_sum": ratios(warm, rollouts * d),
            "anew_over_cold": ratios(rollouts * anew, cold),
        }
        print(f"{arguments.backend}, G={group}: {result[f'G={group}']}")
    return result


def decode(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A group of 8 for overlaps, against eight times the library's predict and a NumPy IoU on its full-size mask."""
    from segment_anything import SamPredictor

    segmenter: Any = load_segmenter(segmenter_config("segment_anything", folder))
    scene = Scene(folder, 0, 8)
    scene.enlarge(arguments.scale)
    predictor = SamPredictor(segmenter._model)
    predictor.set_image(scene.pixels())
    engine, truth = Engine(segmenter, GIGABYTE), scene.truth.union_and_ignore()[0]
    asyncio.run(engine.overlap(scene.path, scene.sha256, scene.prompts[:1], scene.truth))  # encodes

    def library() -> list[float]:
        results = []
        for prompt in scene.prompts:
            masks, scores, _ = predictor.predict(
                np.array(prompt.points), np.array(prompt.labels), np.array(prompt.box), multimask_output=True
            )
            mask = masks[scores.argmax()]
            results.append((mask & truth).sum() / (mask | truth).sum())
        return results

    def decoder_only() -> None:
        model, features = predictor.model, predictor.features
        with torch.inference_mode():
            for prompt in scene.prompts:
                tensors = segmenter._prompt_tensors(scene.truth.size, [prompt])
                sparse, dense = model.prompt_encoder(**tensors, masks=None)
                model.mask_decoder(features, segmenter._image_pe, sparse, dense, multimask_output=True)

    difference = float(np.abs(np.array(library()) - ious(engine, [scene])).max())
    times: dict[str, list[np.ndarray]] = {"library": [], "engine": [], "decoder": []}
    for _ in range(arguments.repeats):
        times["library"].append(timed(library))
        times["engine"].append(timed(partial(ious, engine, [scene])))
        times["decoder"].append(timed(decoder_only))
    engine.close()
    median = {name: np.median(values, axis=0) for name, values in times.items()}
    return {
        "size": list(scene.truth.size),
        "library_s": median["library"].round(3).tolist(),
        "engine_over_library": ratios(median["engine"], median["library"]),
        "decoder_alone_over_library": ratios(median["decoder"], median["library"]),
        "largest_iou_difference": difference,
    }


def main() -> None:
    commands: dict[str, Command] = {"once": once, "decode": decode}
    parser = parser_of(__doc__, commands, backend_of="once")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16], help="once: rollouts per image")
    parser.add_argument("--references", type=int, default=3, help="once: images on which E and D are measured")
    parser.add_argument("--repeats", type=int, default=5, help="decode: turns, of which the median counts")
    parser.add_argument("--scale", type=int, default=1, help="decode: factor by which the image is enlarged")
    run("service", parser, commands)


if __name__ == "__main__":
    main()
