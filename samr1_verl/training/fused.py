"""Log-probs from hidden states, without whole logits, where FSDP2 shards the output layer by itself.

With `actor_rollout_ref.model.use_fused_kernels` verl computes log-probs in chunks of 512 tokens from hidden states and
the output layer's weight, so the logits of a micro-batch never exist as a whole: 8 rows of 2,600 tokens over 152,000
words would be 6.3 GB in bf16, several times that with their copies and gradients. verl reads the weight past the
layer. Where input and output embeddings are two matrices (Qwen2.5-VL-7B, Qwen3-VL-8B), FSDP2 shards the output layer by
itself and gathers it when the layer is called, which verl's function does not do. Of Qwen2.5-VL it then fails; of
Qwen3-VL it gathers a weight in fp32, which fails beside hidden states in bf16, and in fp32 no rank gets the other
ranks' gradients of the layer.

The replacement calls the output layer, with the fused computation as its forward function. So FSDP2 gathers, casts and
reduces as for whole logits, and hidden states are those of verl's forward function for whole logits.
tests/training/test_fused_log_probs.py compares both paths, and fails when verl's own function works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Of verl: the module with the forward functions of a family, and its output class.
FAMILIES = {
    "verl.models.transformers.qwen2_vl": "Qwen2VLCausalLMOutputForPPO",
    "verl.models.transformers.qwen3_vl": "Qwen3VLCausalLMOutputForPPO",
}


def with_output_layer_called(forward: Callable[..., Any]) -> Callable[..., Any]:
    """verl's fused forward function of a family, through the output layer. `forward` has it in its module."""
    family = forward.__globals__
    output_class = family[FAMILIES[forward.__module__]]

    @functools.wraps(forward)
    def forward_with_torch_backend(
        self: Any,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        temperature: float = 1.0,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Log-probs and entropies of the next tokens, both (B, T), T tokens of prompt, response and padding.

        Args:
            input_ids: int64 (B, T). labels: int64 (B, T); None: `input_ids`.
            temperature: divisor of the logits.
            shift_labels: int64 (B, T), the labels already moved by one position; None: they are moved here.
            kwargs: of verl's forward function for whole logits.
        """
        from verl.utils.experimental.torch_functional import FusedLinearForPPO

        if shift_labels is None:
            source = input_ids if labels is None else labels
            if source is None:
                raise ValueError("neither input_ids nor labels nor shift_labels: found None, expected tokens")
            shift_labels = torch.roll(source, shifts=-1, dims=-1)
        head = self.lm_head
        fused = FusedLinearForPPO(impl_backend=getattr(self, "_verl_fused_kernels_backend", "torch"))

        def log_probs_and_entropy(hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return fused(hidden_states, head.weight, shift_labels, temperature)

        with _forward_of(head, log_probs_and_entropy):
            output = family["forward_with_normal_backend"](self, input_ids=input_ids, **kwargs)
        log_probs, entropy = output.logits
        return output_class(log_probs=log_probs, entropy=entropy, hidden_states=output.hidden_states)

    return forward_with_torch_backend


@contextmanager
def _forward_of(layer: torch.nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Replace the layer's forward function; its hooks, FSDP2's among them, stay."""
    layer.forward = function
    try:
        yield
    finally:
        del layer.forward
