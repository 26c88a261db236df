"""SAM as two ONNX files, run by onnxruntime: an image encoder and SAM's standard mask decoder.

The folder holds `encoder.onnx` (image [1, 3, 1024, 1024] to embedding [1, 256, 64, 64]) and `sam.onnx`, the decoder
with the inputs and outputs of segment-anything's export script and one mask per prompt. data/fetch_sam.py fetches a
small pair. MobileSAM and SAM ViT-B/L/H exports have the same inputs and outputs.

Preprocessing is segment-anything's: longest side to 1024 with PIL's antialiased bilinear filter, SAM's mean and
deviation, zeros to the right and below. Coordinates are scaled by the same factors as the image, without a shift: the
decoder adds half a pixel itself, at the input size of 1024, as with segment-anything's predictor.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samr1_verl.config import ConfigError, SegmenterConfig
from samr1_verl.geometry.images import ImageError, sha256_of
from samr1_verl.geometry.prompt import Prompt
from samr1_verl.segmenters.base import Embedding, Prediction, SegmenterError

ENCODER, DECODER = "encoder.onnx", "sam.onnx"
SIDE = 1024  # pixels of the encoder's input
# Mean and deviation per channel, RGB, from segment-anything.
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], dtype=np.float32)
DECODER_INPUTS = {
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
}
PREPROCESSING = "longest-1024-bilinear"
# SAM's labels of points, in addition to 1 (on the object) and 0 (not on it).
PADDING, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 2, 3


def problems(config: SegmenterConfig) -> Iterator[str]:
    """The reasons why this segmenter cannot be loaded here, one message per reason. Loads no weights."""
    if importlib.util.find_spec("onnxruntime") is None:
        yield "samr1.segmenter.backend is onnx, and onnxruntime is not installed. Type: pip install 'samr1-verl[onnx]'"
    if config.dtype != "float32":
        yield (
            f"samr1.segmenter.dtype is {config.dtype}, but an ONNX file has a fixed dtype. Set the key to float32, or "
            "use another backend"
        )
    if config.encoder_precision != "float32":
        yield (
            f"samr1.segmenter.encoder_precision is {config.encoder_precision}, but an ONNX file has a fixed precision. "
            "Set the key to float32, or use another backend"
        )
    if not config.multimask:
        yield (
            "samr1.segmenter.multimask is false, but an ONNX file has a fixed choice of the mask. Leave the key out, "
            "or use another backend"
        )
    folder = Path(config.path).expanduser()
    missing = [str(folder / name) for name in (ENCODER, DECODER) if not (folder / name).is_file()]
    if missing:
        yield (
            f"samr1.segmenter.path is {config.path}: no file {' and no file '.join(missing)}. "
            f"Type: python data/fetch_sam.py --out {config.path}, or name a folder with {ENCODER} and {DECODER}"
        )


def load(config: SegmenterConfig) -> OnnxSegmenter:
    """Load both files onto `samr1.segmenter.device`. Raises ConfigError as `OnnxSegmenter`."""
    return OnnxSegmenter(Path(config.path).expanduser(), config.device)


class OnnxSegmenter:
    """The segmenter of one folder; implements `base.Segmenter`.

    Args:
        folder: has encoder.onnx and sam.onnx.
        device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.

    Raises:
        ConfigError: a file is not such a model, or the device does not exist.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        providers = _providers(device)
        self._encoder = _session(folder / ENCODER, providers, inputs=None)
        self._decoder = _session(folder / DECODER, providers, inputs=DECODER_INPUTS)
        self._encoder_input = self._encoder.get_inputs()[0].name
        # Inputs of every prompt: no mask of an earlier round is used.
        self._no_mask = {
            "mask_input": np.zeros((1, 1, SIDE // 4, SIDE // 4), dtype=np.float32),
            "has_mask_input": np.zeros(1, dtype=np.float32),
        }
        self.identity = identity_of(folder)
        self.device = "cpu" if providers == ["CPUExecutionProvider"] else f"cuda:{providers[0][1]['device_id']}"

    def encode(self, image: np.ndarray) -> Embedding:
        """The embedding of an image, HxWx3 uint8 RGB in the original frame.

        Its array is `image_embeddings` [1, 256, 64, 64] float32. Raises ImageError for an image that is too thin.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 HxWx3, RGB")
        embedding = self._encoder.run(None, {self._encoder_input: preprocess(image)})[0]
        return Embedding({"image_embeddings": embedding}, (image.shape[0], image.shape[1]))

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """One mask per prompt, in order, HxW bool in the original frame: the pixels whose logit is above 0."""
        return [self._decode_prompt(embedding, prompt) for prompt in prompts]

    def _decode_prompt(self, embedding: Embedding, prompt: Prompt) -> Prediction:
        coordinates, labels = prompt_arrays(prompt, embedding.size)
        masks, scores = self._decoder.run(
            ["masks", "iou_predictions"],
            {
                **embedding.arrays,
                **self._no_mask,
                "point_coords": coordinates[None],
                "point_labels": labels[None],
                "orig_im_size": np.asarray(embedding.size, dtype=np.float32),
            },
        )
        if masks.shape != (1, 1, *embedding.size):
            raise SegmenterError(
                "decoder_output_differs",
                DECODER,
                f"made masks {masks.shape} for an image of {embedding.size}, expected one mask of that size. Export it "
                "with --return-single-mask",
            )
        if not (np.isfinite(scores).all() and np.isfinite(masks).all()):
            raise SegmenterError(
                "prediction_not_finite",
                DECODER,
                "made a mask or a predicted IoU with values that are no numbers. Get the weights again: "
                "python data/fetch_sam.py",
            )
        return Prediction(masks[0, 0] > 0, float(scores[0, 0]))


def identity_of(folder: Path) -> str:
    """Identity of the weights in a folder, from the content of both files and the name of the preprocessing."""
    content = "".join(sha256_of(folder / name) for name in (ENCODER, DECODER)) + PREPROCESSING
    return f"onnx-{hashlib.sha256(content.encode()).hexdigest()[:32]}"


def resized(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image of `size` (H, W) after its longest side is scaled to 1024, rounded half up."""
    scale = SIDE / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def preprocess(image: np.ndarray) -> np.ndarray:
    """The encoder's input, [1, 3, 1024, 1024] float32, of an image HxWx3 uint8 RGB in the original frame.

    Raises:
        ImageError: the image is too thin: its short side would have 0 pixels.
    """
    height, width = resized((image.shape[0], image.shape[1]))
    if not (height and width):
        raise ImageError(
            "image_too_thin",
            f"{image.shape[1]}x{image.shape[0]} pixels",
            f"too thin, the short side would have no pixel with a long side of {SIDE}",
        )
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.zeros((1, 3, SIDE, SIDE), dtype=np.float32)
    pixels[0, :, :height, :width] = ((np.asarray(scaled, dtype=np.float32) - MEAN) / DEVIATION).transpose(2, 0, 1)
    return pixels


def prompt_arrays(prompt: Prompt, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of SAM's decoder for a prompt in the original frame of an image of `size` (H, W).

    Returns:
        Coordinates [N, 2] XY in pixels of the encoder's input (1024) and labels [N], both float32. Points come first,
        then the two corners of the box, or a padding point where there is no box.
    """
    height, width = resized(size)
    points, labels = list(prompt.points), list(prompt.labels)
    if prompt.box is not None:
        x1, y1, x2, y2 = prompt.box
        points += [(x1, y1), (x2, y2)]
        labels += [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    coordinates = np.asarray(points, dtype=np.float64) * (width / size[1], height / size[0])
    if prompt.box is None:
        coordinates, labels = np.concatenate([coordinates, [(0.0, 0.0)]]), [*labels, PADDING]
    return coordinates.astype(np.float32), np.asarray(labels, dtype=np.float32)


def _providers(device: str) -> list[Any]:
    import onnxruntime

    kind, _, index = device.partition(":")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(
            "unknown_device", "samr1.segmenter.device", f"found {device!r}, expected auto, cpu, cuda or cuda:N"
        )
    if kind == "cuda" and not has_cuda:
        raise ConfigError(
            "no_cuda",
            "samr1.segmenter.device",
            f"found {device!r}, and this onnxruntime has no CUDA. Set it to auto or cpu, or type: pip install "
            "onnxruntime-gpu",
        )
    cpu: list[Any] = ["CPUExecutionProvider"]
    if kind == "cpu" or not has_cuda:
        return cpu
    # onnxruntime's default is TF32 on GPUs that have it.
    return [("CUDAExecutionProvider", {"device_id": int(index or 0), "use_tf32": 0}), *cpu]


def _session(path: Path, providers: list[Any], inputs: set[str] | None) -> Any:
    """An onnxruntime session. `inputs`: expected names of its inputs; None: one image is expected."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    # Waiting threads sleep: the policy generates on the same cores, and busy waiting doubles a decode's CPU time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ConfigError(
            "weights_not_loadable",
            f"samr1.segmenter.path: {path}",
            f"no ONNX model that onnxruntime loads ({error}). Delete it and type: python data/fetch_sam.py",
        ) from error
    actual = {node.name: node.shape for node in session.get_inputs()}
    if inputs is None:
        fits = len(actual) == 1 and next(iter(actual.values()))[1:] == [3, SIDE, SIDE]
        expected = f"one image [1, 3, {SIDE}, {SIDE}]"
    else:
        fits, expected = set(actual) == inputs, ", ".join(sorted(inputs))
    if not fits:
        raise ConfigError(
            "model_inputs_differ",
            f"samr1.segmenter.path: {path}",
            f"takes {actual}, expected {expected}. Export SAM with segment-anything's own script",
        )
    return session
