"""The numbers of the memory plan's model: parameters as the hub shows them, verl's FSDP groups, PEFT's adapters."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText
from verl.utils.fsdp_utils import _select_fsdp2_wrap_targets

from samr1_verl.config import ConfigError
from samr1_verl.preflight.policy_size import KNOWN, Tower, UnknownPolicyError, policy_size
from tests.errors import refused

# The number of parameters that the Hugging Face hub shows for each model's safetensors files.
PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}


def size_of(path, **values):
    return policy_size(OmegaConf.create({"path": str(path), **values}))


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_of_known_models_are_the_published_numbers(name):
    size = size_of(name)
    assert size.parameters == PUBLISHED[name] == sum(size.tensors)
    assert size.source == f"the built-in numbers of {name}" and size.trained == size.parameters


def test_the_7b_model_counted_by_hand():
    size, width, mlp = size_of("Qwen/Qwen2.5-VL-7B-Instruct"), 3584, 18944
    embedding = 152_064 * width
    attention = (width * width + width) + 2 * (width * 512 + 512) + width * width  # q, k and v with biases, o
    layer = attention + 3 * width * mlp + 2 * width
    block = 2 * 1280 + (1280 * 3840 + 3840) + (1280 * 1280 + 1280) + (3 * 1280 * 3420 + 2 * 3420 + 1280)
    merger = 1280 + (5120 * 5120 + 5120) + (5120 * width + width)
    vision = 1176 * 1280 + 32 * block + merger
    assert size.parameters == 2 * embedding + 28 * layer + width + vision
    assert size.units == (embedding, embedding) and not size.tied
    assert size.text == Tower(width, mlp, 28) and size.vision == Tower(1280, 3420, 32)
    assert (size.key_values, size.patch, size.merge, size.patch_values) == (2 * 4 * 128, 14, 2, 1176)


def test_a_folder_is_counted_as_its_weights(random_policy):
    size = size_of(random_policy)
    with safe_open(next(random_policy.glob("*.safetensors")), "pt") as file:
        assert size.parameters == sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def test_groups_are_those_that_verl_wraps(random_policy):
    policy = AutoModelForImageTextToText.from_pretrained(random_policy)
    wrapped = [
        sum(parameter.numel() for parameter in module.parameters())
        for module in _select_fsdp2_wrap_targets(policy, list(policy._no_split_modules))
    ]
    rest = policy.num_parameters() - sum(wrapped)
    assert size_of(random_policy).units == tuple(sorted([*wrapped, rest], reverse=True)[:2])


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"], r".*layers\.[01]\..*_proj"])
@pytest.mark.parametrize("excluded", [None, ".*visual.*"])
def test_adapters_are_those_that_peft_makes(random_policy, targets, excluded):
    policy = AutoModelForImageTextToText.from_pretrained(random_policy)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, exclude_modules=excluded)
    adapted = get_peft_model(policy, lora)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    size = size_of(random_policy, lora_rank=4, target_modules=targets, exclude_modules=excluded)
    assert size.adapter == size.trained == trained > 0


def test_an_unknown_hub_id_and_a_model_without_images_say_what_is_expected(tmp_path):
    with refused(ConfigError, "no_config_json", "model.path: found some/policy", "hf download some/policy"):
        size_of("some/policy")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    known = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL"
    with refused(UnknownPolicyError, "unknown_architecture", f"found {tmp_path}", "model_type qwen2;", known):
        size_of(tmp_path)


def test_counting_holds_no_weights():
    before = torch.get_default_device()
    assert size_of("Qwen/Qwen3-VL-8B-Instruct").parameters > 8e9  # 35 GB in float32, more than this test may take
    assert torch.get_default_device() == before
