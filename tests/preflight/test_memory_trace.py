"""The bytes per activation and per logit of the plan, against storages that are alive while the operations run."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.utils.torch_functional import entropy_from_logits

from samr1_verl.preflight.gpu_memory import (
    BACKWARD,
    CHECKPOINT,
    CHUNK,
    CHUNK_BACKWARD,
    CHUNK_FORWARD,
    FORWARD,
    LOGIT_BOTH,
    LOGIT_ENTROPY,
    LOGIT_UPDATE,
    MASK,
    SAVED,
)
from tests.preflight.live_bytes import LiveBytes

ROWS, TOKENS, LAYERS = 2, 300, 3


def text_model(width: int, mlp: int, checkpointing: bool, layers: int):
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [width // 32, 3 * width // 64, 3 * width // 64],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": width,
        },
    )
    config._attn_implementation = "sdpa"
    model = AutoModelForImageTextToText.from_config(config).to(torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train().model.language_model


def trace(width: int, mlp: int, checkpointing: bool, training: bool, layers: int = LAYERS) -> tuple[int, int]:
    """(bytes kept after the forward pass, largest number of bytes), without weights and gradients of weights."""
    model = text_model(width, mlp, checkpointing, layers)
    inputs = torch.randn(ROWS, TOKENS, width, dtype=torch.bfloat16, requires_grad=True)
    owned = [inputs, *model.parameters()]
    for tensor in owned:
        tensor.grad = torch.zeros_like(tensor)  # gradients that are there already are not counted
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[0, :7] = 0
    known = [*owned, *model.buffers(), *(tensor.grad for tensor in owned)]
    positions = torch.arange(TOKENS).expand(3, ROWS, TOKENS)
    with LiveBytes(known) as live, torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        hidden = model(inputs_embeds=inputs, position_ids=positions, attention_mask=mask, use_cache=False)[0]
        kept = live.now
        if training:
            hidden.sum().backward()
    return kept, live.peak


@pytest.mark.parametrize(("width", "mlp"), [(256, 1344), (512, 1536)])  # the 7B model's ratio of 5.3, the 8B model's 3
def test_a_text_layer_takes_what_the_plan_says(width, mlp):
    tokens, pairs = ROWS * TOKENS, ROWS * TOKENS**2
    inputs = LAYERS * CHECKPOINT * width * tokens
    backward = inputs + tokens * (BACKWARD[0] * mlp + BACKWARD[1] * width) + MASK * pairs
    forward = tokens * (FORWARD[0] * mlp + FORWARD[1] * width) + MASK * pairs
    everything = LAYERS * tokens * (SAVED[0] * mlp + SAVED[1] * width)
    assert 0.8 < trace(width, mlp, checkpointing=True, training=True)[1] / backward <= 1.0
    assert 0.8 < trace(width, mlp, checkpointing=False, training=False)[1] / forward <= 1.0
    assert 0.8 < trace(width, mlp, checkpointing=False, training=True)[0] / everything <= 1.0


def test_gradient_checkpointing_keeps_the_layers_inputs():
    shallow, deep = (trace(256, 1024, checkpointing=True, training=True, layers=layers)[0] for layers in (2, 6))
    assert (deep - shallow) / 4 == CHECKPOINT * 256 * ROWS * TOKENS


def logits_peak(training: bool, entropy: bool) -> float:
    """Bytes per logit of verl's padded path, with the float32 of CUDA's autocast, which the CPU's does not have."""
    tokens, words = 256, 4096
    weight = torch.nn.Parameter(torch.randn(words, 16).bfloat16())
    hidden = torch.randn(4, tokens // 4, 16).bfloat16().requires_grad_()
    labels = torch.zeros(tokens, dtype=torch.long)
    with LiveBytes([weight, hidden]) as live, torch.set_grad_enabled(training):
        logits = F.linear(hidden, weight)
        if entropy:
            spread = torch.softmax(logits.float(), -1)
            live_entropy = torch.logsumexp(logits, -1) - torch.sum(spread * logits, -1)
        rows = torch.cat(list(logits.unbind()))  # verl takes the padding out
        log_probs = [
            F.log_softmax(row.float(), -1).gather(-1, label[None]) for row, label in zip(rows, labels, strict=True)
        ]
        del rows
        if training:
            loss = torch.cat(log_probs).sum() + (live_entropy.sum() if entropy else 0)
            loss.backward()
    return live.peak / (tokens * words)


def test_logits_take_what_the_plan_says():
    assert logits_peak(training=True, entropy=False) == pytest.approx(LOGIT_UPDATE, rel=0.05)
    assert logits_peak(training=False, entropy=True) == pytest.approx(LOGIT_ENTROPY, rel=0.05)
    assert logits_peak(training=True, entropy=True) == pytest.approx(LOGIT_BOTH, rel=0.05)
    assert entropy_from_logits.__module__ == "verl.utils.torch_functional"  # the function whose steps are above


def test_the_fused_path_takes_one_chunk():
    words, width = 4096, 16
    weight = torch.nn.Parameter(torch.randn(words, width).bfloat16())
    hidden = torch.randn(4, 400, width).bfloat16().requires_grad_()
    labels = torch.zeros(4, 400, dtype=torch.long)
    with LiveBytes([weight, hidden]) as live:
        log_probs, _ = FusedLinearForPPO(impl_backend="torch")(hidden, weight, labels)
        forward = live.peak
        log_probs.sum().backward()
    chunk = CHUNK * words
    assert forward / chunk == pytest.approx(CHUNK_FORWARD, rel=0.05)
    assert live.peak / chunk == pytest.approx(CHUNK_BACKWARD, rel=0.05)
