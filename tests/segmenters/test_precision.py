"""samr1.segmenter.encoder_precision: the encoder alone computes in it, and what cannot is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samr1_verl.config import ConfigError
from samr1_verl.segmenters import load_segmenter, segmenter_problems
from samr1_verl.segmenters.torch_common import check_precision, float32_as
from tests.errors import refused
from tests.segmenters.test_transformers import FORMS, config_of, image_of
from tests.segmenters.tiny_sams import KINDS

RAY = {"cpus": 1, "min_replicas": 1, "max_replicas": 1}


def settings_now() -> list[str]:
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_the_encoders_alone(folders, kind):
    exact, rounded = (
        load_segmenter(config_of(folders[kind], encoder_precision=precision)) for precision in ("float32", "bfloat16")
    )
    image = image_of((48, 90))
    expected, embedding = exact.encode(image), rounded.encode(image)
    assert {array.dtype for array in embedding.arrays.values()} == {np.dtype(np.float32)}
    assert embedding.nbytes == expected.nbytes
    for name, array in expected.arrays.items():
        difference = np.abs(embedding.arrays[name] - array).mean() / np.abs(array).mean()
        assert 1e-5 < difference < 0.05  # it did compute in another type
    decoded = (segmenter.decode(expected, FORMS["several"]) for segmenter in (rounded, exact))
    for prediction, other in zip(*decoded, strict=True):
        np.testing.assert_array_equal(prediction.mask, other.mask)  # the decoder is the same, to the bit
        assert prediction.score == other.score


def test_tf32_holds_during_the_encode_alone(folders, monkeypatch):
    segmenter: Any = load_segmenter(config_of(folders["sam2"]))
    seen: dict[str, list[str]] = {}
    for name in ("_features", "_predictions"):
        inner = getattr(segmenter, name)

        def noted(*arguments: Any, name: str = name, inner: Any = inner) -> Any:
            seen[name] = settings_now()
            return inner(*arguments)

        monkeypatch.setattr(segmenter, name, noted)
    before = settings_now()
    for precision, encoder in (("float32", "ieee"), ("tf32", "tf32")):
        segmenter._precision = precision  # a CPU refuses it
        segmenter.decode(segmenter.encode(image_of((48, 90))), FORMS["box"])
        assert seen == {"_features": [encoder] * 2, "_predictions": ["ieee"] * 2}
        assert settings_now() == before
    with pytest.raises(RuntimeError, match="lost"), float32_as("tf32"):
        raise RuntimeError("lost")
    assert settings_now() == before


def test_another_precision_is_another_identity_and_the_default_is_the_old_one(folders):
    plain = config_of(folders["sam2"])
    identities = [
        load_segmenter(plain.model_copy(update={"encoder_precision": precision})).identity
        for precision in ("float32", "bfloat16")
    ]
    assert identities[0] == load_segmenter(plain).identity != identities[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "float16", "encoder_precision": "bfloat16"}, "samr1.segmenter.dtype is float16"),
        ({"encoder_precision": "tf32"}, "samr1.segmenter.device is cpu"),
        (
            {
                "encoder_precision": "tf32",
                "device": "auto",
                "service": {"mode": "ray", "cache_gb": 1, "cache_dir": None, "ray": {"gpus": 0, **RAY}},
            },
            "samr1.segmenter.service.ray.gpus is 0",
        ),
    ],
)
def test_a_precision_that_would_be_ignored_is_refused(folders, changes, named):
    (problem,) = segmenter_problems(config_of(folders["sam2"], **changes))
    assert problem.startswith(f"samr1.segmenter.encoder_precision is {changes['encoder_precision']}")
    with refused(ConfigError, "segmenter_not_loadable", problem, named):
        load_segmenter(config_of(folders["sam2"], **changes))


def test_a_gpu_without_tf32_is_refused_when_it_is_known(monkeypatch):
    for capability in ((7, 5), (8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        if capability < (8, 0):
            with refused(ConfigError, "no_tf32", "encoder_precision: found tf32", "on cuda:1", "capability 8.0"):
                check_precision("tf32", torch.device("cuda:1"))
        else:
            check_precision("tf32", torch.device("cuda:1"))
    with refused(ConfigError, "no_tf32", "encoder_precision: found tf32", "on cpu"):
        check_precision("tf32", torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU, where auto is the CPU")
def test_auto_on_a_machine_without_a_gpu_is_a_cpu(folders):
    (problem,) = segmenter_problems(config_of(folders["sam2"], device="auto", encoder_precision="tf32"))
    assert "samr1.segmenter.device is auto" in problem


def test_an_onnx_file_has_a_fixed_precision(small_sam):
    config = config_of(small_sam, backend="onnx", encoder_precision="bfloat16")
    (problem,) = segmenter_problems(config)
    assert problem.startswith("samr1.segmenter.encoder_precision is bfloat16, ")
