"""The policy's family against the frame and size of its images, and against fused log-probs.

A policy writes coordinates as it was trained to. In another frame its answers are valid and wrong, and a run trains on
without an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from omegaconf import DictConfig, ListConfig

from samr1_verl.config import ACTOR, Samr1Config, hub_id_or_folder
from samr1_verl.geometry.frames import Frame

MODEL = "actor_rollout_ref.model"


class Family(NamedTuple):
    """A family of policies: its frame, and pixels per side of one image token."""

    name: str
    frame: Frame
    factor: int


# By `model_type` of config.json. Sources: arXiv 2409.12191 sec. 2.2 (Qwen2-VL: coordinates from 0 to 1000), 2502.13923
# sec. 2.1 (Qwen2.5-VL: pixels of the image as it is given), 2511.21631 (Qwen3-VL: 0 to 1000 again).
FAMILIES = {
    "qwen2_vl": Family("Qwen2-VL", "thousand", 28),
    "qwen2_5_vl": Family("Qwen2.5-VL", "absolute", 28),
    "qwen3_vl": Family("Qwen3-VL", "thousand", 32),
    "qwen3_vl_moe": Family("Qwen3-VL", "thousand", 32),
}
# Names of hub models without a copy of their config.json here.
NAMES = {r"qwen-?3-?vl.*-a\d+b": "qwen3_vl_moe", r"qwen-?3-?vl": "qwen3_vl", r"qwen-?2\.5-?vl": "qwen2_5_vl",
         r"qwen-?2-?vl": "qwen2_vl"}  # fmt: skip


def model_type_of(path: str) -> str | None:
    """`model_type` from a folder's or the hub cache's config.json, else from a well-known name; None: not known."""
    place = hub_id_or_folder(path)
    file = place / "config.json" if isinstance(place, Path) else try_to_load_from_cache(place, "config.json")
    if isinstance(file, str | Path) and Path(file).is_file():
        try:
            return json.loads(Path(file).read_text()).get("model_type")
        except (ValueError, AttributeError):
            return None  # verl's own message names the file
    if isinstance(place, Path):
        return None
    return next((kind for name, kind in NAMES.items() if re.search(name, path.lower())), None)


def check_frame(config: DictConfig, settings: Samr1Config) -> Iterator[str]:
    """`samr1.frame` is the frame in which the policy answers, and its processor keeps images of `samr1.policy_size`."""
    path = str(config.actor_rollout_ref.model.path)
    family = FAMILIES.get(model_type_of(path) or "")
    if family is None:
        return
    if settings.frame != family.frame:
        yield (
            f"samr1.frame is {settings.frame}, and {MODEL}.path is {path}: {family.name} answers in the frame "
            f"{family.frame}. Set samr1.frame={family.frame}"
        )
    if settings.policy_size is not None and any(side % family.factor for side in settings.policy_size):
        wanted = [max(1, round(side / family.factor)) * family.factor for side in settings.policy_size]
        yield (
            f"samr1.policy_size is {list(settings.policy_size)}, and {MODEL}.path is {path}: {family.name} takes "
            f"multiples of {family.factor} pixels. Set samr1.policy_size={wanted}"
        )


def check_fused(config: DictConfig) -> Iterator[str]:
    """Fused log-probs are exact for the policy, its adapter and the backend."""
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if not model.use_fused_kernels:
        return
    off = f"Set {MODEL}.use_fused_kernels=false"
    backend = (model.fused_kernel_options or {}).get("impl_backend")
    if backend != "torch":
        yield f"{MODEL}.fused_kernel_options.impl_backend is {backend}, expected torch, the only tested one. {off}"
    kind = model_type_of(str(model.path))
    if kind is not None and kind not in FAMILIES:
        yield f"{MODEL}.use_fused_kernels is true, and is exact for {', '.join(FAMILIES)} only, found {kind}. {off}"
    if model.lora_rank and _takes_output_layer(model.target_modules):
        yield (
            f"{MODEL}.target_modules is {model.target_modules}: fused log-probs do not see an adapter of lm_head. "
            f"Leave lm_head out, or: {off}"
        )
    if actor.get("calculate_sum_pi_squared"):
        yield f"{ACTOR}.calculate_sum_pi_squared is true, and fused log-probs have no whole logits. {off}"


def _takes_output_layer(targets: Any) -> bool:
    """PEFT's rule: a text is a regular expression for the whole name, and `all-linear` leaves the output layer out."""
    if isinstance(targets, str):
        return targets != "all-linear" and re.fullmatch(targets, "lm_head") is not None
    return isinstance(targets, list | ListConfig) and "lm_head" in targets
