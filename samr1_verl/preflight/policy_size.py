"""The size of a policy: its parameters by part and the widths of its layers, for the memory plan.

They are counted on transformers' own model on the meta device, which holds no weights. Only the model's config.json is
needed, or the name of a model in KNOWN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from samr1_verl.config import ConfigError, hub_id_or_folder

_VISION_25 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
_VISION_3 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_VISION_3_LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


def _known(model_type: str, text: tuple[int, ...], vocabulary: int, tied: bool, vision: dict[str, Any]) -> dict:
    """A config.json with the numbers that decide the size. text: width, MLP width, layers, heads, key-value heads."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shared = {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    return {
        "model_type": model_type,
        "text_config": {**dict(zip(names, text, strict=True)), **shared},
        "vision_config": {**vision, "out_hidden_size": text[0]},
        "tie_word_embeddings": tied,
    }


# From the models' config.json on the Hugging Face hub; the tests hold the number of parameters that the hub shows.
KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _known("qwen2_5_vl", (2048, 11008, 36, 16, 2), 151936, True, _VISION_25),
    "Qwen/Qwen2.5-VL-7B-Instruct": _known("qwen2_5_vl", (3584, 18944, 28, 28, 4), 152064, False, _VISION_25),
    "Qwen/Qwen3-VL-2B-Instruct": _known("qwen3_vl", (2048, 6144, 28, 16, 8), 151936, True, _VISION_3),
    "Qwen/Qwen3-VL-4B-Instruct": _known("qwen3_vl", (2560, 9728, 36, 32, 8), 151936, True, _VISION_3),
    "Qwen/Qwen3-VL-8B-Instruct": _known("qwen3_vl", (4096, 12288, 36, 32, 8), 151936, False, _VISION_3_LARGE),
}


class UnknownPolicyError(ConfigError):
    """A policy whose parts the memory plan does not know. It may train all the same."""


@dataclass(frozen=True)
class Tower:
    """The layers of one kind: width of the residual stream, width of the MLP, number of layers."""

    width: int
    mlp: int
    layers: int


@dataclass(frozen=True)
class PolicySize:
    """Numbers of parameters, and the widths on which activations depend."""

    source: str  # the file or table that the numbers come from
    parameters: int
    adapter: int  # LoRA's parameters; 0: the whole policy is trained
    units: tuple[int, int]  # parameters of the two largest groups that FSDP2 gathers at a time
    tensors: tuple[int, ...]  # parameters of each tensor
    tied: bool  # input and output embedding are one tensor
    text: Tower
    vision: Tower
    vocabulary: int
    key_values: int  # numbers per token and layer in the KV cache: key and value of all heads
    patch: int  # side of a patch in pixels
    merge: int  # patches per side that make one token
    patch_values: int  # numbers per patch in pixel_values

    @property
    def trained(self) -> int:
        """The parameters that have a gradient and optimizer states."""
        return self.adapter or self.parameters


def policy_size(model: Any) -> PolicySize:
    """The size of the policy of `actor_rollout_ref.model`.

    Args:
        model: verl's section: path, override_config, lora_rank, target_modules, exclude_modules are read.

    Raises:
        ConfigError: the model's config.json is neither there, in the hub cache, nor in KNOWN.
        UnknownPolicyError: it is of another architecture.
    """
    values, source = _config_json(str(model.path))
    try:
        config = AutoConfig.for_model(**values)
        with torch.device("meta"):
            policy = AutoModelForImageTextToText.from_config(config)
        return _size_of(policy, source, model)
    except (ValueError, AttributeError, KeyError) as error:
        raise UnknownPolicyError(
            "unknown_architecture",
            "actor_rollout_ref.model.path",
            f"found {model.path}, model_type {values.get('model_type')}; the memory plan knows Qwen2-VL, Qwen2.5-VL, "
            f"Qwen3-VL and models of the same form ({type(error).__name__}: {error})",
        ) from error


def _config_json(path: str) -> tuple[dict, str]:
    place = hub_id_or_folder(path)
    file = place / "config.json" if isinstance(place, Path) else try_to_load_from_cache(place, "config.json")
    if isinstance(file, str | Path) and Path(file).is_file():
        return json.loads(Path(file).read_text()), str(file)
    if path in KNOWN:
        return KNOWN[path], f"the built-in numbers of {path}"
    raise ConfigError(
        "no_config_json",
        "actor_rollout_ref.model.path",
        f"found {path}, and no config.json in a folder or in the hub cache; expected one, or one of "
        f"{', '.join(KNOWN)}. Type: hf download {path} config.json",
    )


def _size_of(policy: PreTrainedModel, source: str, model: Any) -> PolicySize:
    text, vision = policy.config.text_config, policy.config.vision_config
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    units = sorted(_units(policy), reverse=True)
    return PolicySize(
        source=source,
        parameters=policy.num_parameters(),
        adapter=sum(_adapter(policy, model)),
        units=(units[0], units[1]),
        tensors=tuple(parameter.numel() for parameter in policy.parameters()),
        tied=bool(policy.config.tie_word_embeddings),
        text=Tower(text.hidden_size, _mlp_width(text), text.num_hidden_layers),
        vision=_vision(vision),
        vocabulary=text.vocab_size,
        key_values=2 * text.num_key_value_heads * head,
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        patch_values=3 * vision.temporal_patch_size * vision.patch_size**2,
    )


def _mlp_width(text: Any) -> int:
    """The width of a token's MLP; with experts: of all experts that a token goes through."""
    experts = getattr(text, "num_experts_per_tok", None)
    return experts * text.moe_intermediate_size if experts else text.intermediate_size


def _vision(vision: Any) -> Tower:
    width = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL's hidden_size is the output's
    mlp = getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio
    return Tower(width, int(mlp), vision.depth)


def _units(policy: PreTrainedModel) -> Iterator[int]:
    """The parameters of each group that verl's apply_fsdp2 wraps: layers, embeddings that are not tied, the rest."""
    layers, tied = set(policy._no_split_modules or ()), bool(policy.config.tie_word_embeddings)
    rest = policy.num_parameters()
    for name, module in policy.named_modules():
        is_embedding = not tied and (isinstance(module, nn.Embedding) or name.endswith("lm_head"))
        if type(module).__name__ in layers or is_embedding:
            size = sum(parameter.numel() for parameter in module.parameters())
            rest -= size
            yield size
    yield rest


def _adapter(policy: PreTrainedModel, model: Any) -> Iterator[int]:
    """LoRA's parameters per linear layer: rank x (inputs + outputs), for the layers that PEFT takes."""
    rank, targets, excluded = model.get("lora_rank") or 0, model.get("target_modules"), model.get("exclude_modules")
    if not rank:
        return
    for name, module in policy.named_modules():
        if (
            not isinstance(module, nn.Linear)
            or name.endswith("lm_head")
            or (excluded and _matches(name, excluded, None))
        ):
            continue
        if _matches(name, targets, "all-linear"):
            yield rank * (module.in_features + module.out_features)


def _matches(name: str, wanted: Any, everything: str | None) -> bool:
    """PEFT's rule: a text is a regular expression for the whole name, a list has ends of names."""
    if wanted == everything:
        return True
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)
