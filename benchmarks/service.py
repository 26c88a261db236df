"""What the engine costs beyond the segmenter itself.

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
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from service_scenes import GIGABYTE, Clock, Scene, both, segmenter_config, timed

from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.geometry.masks import encode_rle
from samr1_verl.segmenters import Prompt, load_segmenter
from samr1_verl.service.engine import Engine


def once(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cold and warm groups through the engine, against the sum of their encodes and decodes."""
    segmenter = load_segmenter(segmenter_config(arguments.backend, folder))
    result: dict[str, Any] = {"backend": arguments.backend, "images": arguments.images}
    for group in arguments.groups:
        scenes = [Scene(folder, index, group) for index in range(arguments.images)]
        engine = Engine(segmenter, GIGABYTE)

        async def ask(scenes: list[Scene] = scenes, engine: Engine = engine) -> None:
            await asyncio.gather(
                *(engine.overlap(one.path, one.sha256, [prompt], one.truth) for one in scenes for prompt in one.prompts)
            )

        segmenter.encode(scenes[0].pixels())  # warm-up
        encode, decode, anew = [], [], []

        def measure(scenes: list[Scene] = scenes, encode: list = encode, decode: list = decode) -> None:
            """E and D before and after, because others use the machine too."""
            for scene in scenes[: arguments.references]:
                clock = Clock()
                embedding = segmenter.encode(scene.pixels())
                encode.append(clock.read())
                for prompt in scene.prompts[:4]:
                    clock = Clock()
                    scene.iou(segmenter.decode(embedding, [prompt])[0].mask)
                    decode.append(clock.read())

        measure()
        cold, warm = timed(lambda ask=ask: asyncio.run(ask())), timed(lambda ask=ask: asyncio.run(ask()))
        measure()
        for scene in scenes[: arguments.references]:  # what other code bases do
            for prompt in scene.prompts[:2]:
                clock = Clock()
                scene.iou(segmenter.decode(segmenter.encode(scene.pixels()), [prompt])[0].mask)
                anew.append(clock.read())
        engine.close()
        e, d, again = (np.mean(values, axis=0) for values in (encode, decode, anew))
        rollouts = arguments.images * group
        result[f"G={group}"] = {
            "E": e.round(4).tolist(),
            "D": d.round(4).tolist(),
            "cold_s": cold.round(2).tolist(),
            "warm_s": warm.round(2).tolist(),
            "cold_over_sum": both(cold, arguments.images * e + rollouts * d),
            "warm_over_sum": both(warm, rollouts * d),
            "anew_over_cold": both(rollouts * again, cold),
        }
        print(f"{arguments.backend}, G={group}: {result[f'G={group}']}")
    return result


def enlarge(scene: Scene, scale: int) -> None:
    """The scene with its image, truth and prompts `scale` times as large."""
    image = open_image(scene.path)
    image.resize((image.width * scale, image.height * scale)).save(scene.path)
    scene.sha256 = sha256_of(scene.path)
    mask = np.kron(scene.truth.union_and_ignore()[0], np.ones((scale, scale), dtype=bool))
    scene.truth = GroundTruth(size=mask.shape, masks=(encode_rle(mask),))
    scene.prompts = [
        Prompt(
            tuple(scale * value for value in one.box_original),
            tuple((x * scale, y * scale) for x, y in one.points_original),
            one.labels,
        )
        for one in scene.prompts
    ]


def decode(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A group of 8 for overlaps, against eight times the library's predict and a NumPy IoU on its full-size mask."""
    from segment_anything import SamPredictor

    segmenter: Any = load_segmenter(segmenter_config("segment_anything", folder))
    scene = Scene(folder, 0, 8)
    enlarge(scene, arguments.scale)
    predictor: SamPredictor = segmenter._predictor
    engine, truth = Engine(segmenter, GIGABYTE), scene.truth.union_and_ignore()[0]
    asyncio.run(engine.overlap(scene.path, scene.sha256, scene.prompts[:1], scene.truth))  # encodes

    def library() -> list[float]:
        ious = []
        for one in scene.prompts:
            masks, scores, _ = predictor.predict(
                np.array(one.points_original), np.array(one.labels), np.array(one.box_original), multimask_output=True
            )
            mask = masks[scores.argmax()]
            ious.append((mask & truth).sum() / (mask | truth).sum())
        return ious

    async def ask() -> list[float]:
        found = await asyncio.gather(
            *(engine.overlap(scene.path, scene.sha256, [one], scene.truth) for one in scene.prompts)
        )
        return [one.intersection / one.union for one in found]

    def decoder_only() -> None:
        model, features = predictor.model, predictor.features
        with torch.inference_mode():
            for one in scene.prompts:
                sparse, dense = model.prompt_encoder(**segmenter._prompt_tensors(scene.truth.size, [one]), masks=None)
                model.mask_decoder(features, segmenter._image_pe, sparse, dense, multimask_output=True)

    difference = float(np.abs(np.array(library()) - asyncio.run(ask())).max())
    times: dict[str, list[np.ndarray]] = {"library": [], "engine": [], "decoder": []}
    for _ in range(arguments.repeats):
        times["library"].append(timed(library))
        times["engine"].append(timed(lambda: asyncio.run(ask())))
        times["decoder"].append(timed(decoder_only))
    engine.close()
    median = {name: np.median(values, axis=0) for name, values in times.items()}
    return {
        "size": list(scene.truth.size),
        "library_s": median["library"].round(3).tolist(),
        "engine_over_library": both(median["engine"], median["library"]),
        "decoder_alone_over_library": both(median["decoder"], median["library"]),
        "largest_iou_difference": difference,
    }


def main() -> None:
    commands = {"once": once, "decode": decode}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--backend", choices=("onnx", "segment_anything"), default="onnx", help="of once")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--references", type=int, default=3, help="images on which E, D and re-encoding are measured")
    parser.add_argument("--repeats", type=int, default=5, help="of decode")
    parser.add_argument("--scale", type=int, default=1, help="decode: enlarges the image")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as temporary:
        result = commands[arguments.command](arguments, Path(temporary))
    print(json.dumps({"benchmark": f"service {arguments.command}", **result}))


if __name__ == "__main__":
    main()
