"""No probability for image and video tokens in any policy of a process, as in verl's vLLM: the import sets it.

    actor_rollout_ref.model.external_lib: tests.vllm.barred

verl bars these tokens from vLLM's logits alone. The actor gives them up to 3e-4 where the tiny policy is least sure,
and its probabilities of the other tokens are lower by that share. With this module both are over the same tokens.
"""

from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

NEVER = -1e4  # a logit whose probability is 0.0; minus infinity would make the entropy NaN


def bar(model: Qwen2_5_VLForConditionalGeneration) -> None:
    tokens = [model.config.image_token_id, model.config.video_token_id]

    def without(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(tokens, device=logits.device), NEVER)

    model.lm_head.register_forward_hook(without)


original = Qwen2_5_VLForConditionalGeneration.__init__


def __init__(self: Qwen2_5_VLForConditionalGeneration, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    bar(self)


Qwen2_5_VLForConditionalGeneration.__init__ = __init__
