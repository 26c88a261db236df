"""What verl gets wrong is put right on every platform, and verl still gets it wrong: else the repair must go."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensordict import TensorDict
from transformers import Qwen2_5_VLForConditionalGeneration
from verl.models.transformers import qwen2_vl
from verl.utils import tensordict_utils

import samr1_verl.plugin  # noqa: F401  # what `import verl` loads
from samr1_verl.training.repairs import with_value_head_required

ROWS = 4
fix = tensordict_utils.maybe_fix_3d_position_ids
verls_fix = fix.__wrapped__


def position_ids(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 100, (ROWS, length), generator=generator) for length in lengths]


def batch(lengths: list[int]) -> TensorDict:
    """As verl's transport joins the sequences of a batch: torch.nested finds the ragged dimension itself."""
    ids = [torch.arange(length) for length in lengths]
    join = {"input_ids": ids, "position_ids": position_ids(lengths)}
    fields = {k: torch.nested.as_nested_tensor(v, layout=torch.jagged) for k, v in join.items()}
    return TensorDict(fields, batch_size=len(lengths))


@pytest.mark.parametrize(
    "lengths",
    [[5, 7, 6, 9], [6, 6, 6, 6], [16, 16, 16, 16], [8], [4, 4]],
    ids=["unequal", "equal", "as long as there are rows in all", "one sequence", "as many tokens as rows"],
)
def test_every_batch_splits_into_its_sequences(lengths: list[int]) -> None:
    data = batch(lengths)
    fix(data)
    fix(data)  # verl calls it for the batch and again for each mini-batch
    chunks = tensordict_utils.chunk_tensordict(data, len(lengths))
    for expected, chunk in zip(position_ids(lengths), chunks, strict=True):
        assert torch.equal(chunk["position_ids"].unbind()[0], expected)
    mini = tensordict_utils.index_select_tensor_dict(data, torch.arange(len(lengths)).flip(0))
    fix(mini)
    assert torch.equal(mini["position_ids"].unbind()[0], position_ids(lengths)[-1])
    padded = torch.nested.to_padded_tensor(data["position_ids"], 0, output_size=(len(lengths), ROWS, max(lengths)))
    assert torch.equal(padded[0, :, : lengths[0]], position_ids(lengths)[0])


def test_text_only_batches_are_left_alone() -> None:
    data = batch([6, 6]).exclude("position_ids")
    before = copy.deepcopy(data)
    fix(data)
    assert set(data.keys()) == set(before.keys())


def test_verl_itself_still_breaks_on_equal_lengths() -> None:
    """When this fails, verl or torch has mended it: remove `with_equal_lengths_repaired`."""
    data = batch([6, 6, 6, 6])
    verls_fix(data)
    with pytest.raises(RuntimeError):
        tensordict_utils.chunk_tensordict(data, 4)


@pytest.fixture(scope="module")
def model(random_policy: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(random_policy).train()


def test_a_micro_batch_of_text_alone_trains_and_gives_the_vision_tower_a_gradient_of_zero(
    model: Qwen2_5_VLForConditionalGeneration,
) -> None:
    """verl replaces lost rollouts by such rows; every worker needs the same gradients to exchange."""
    ids = torch.arange(8).reshape(2, 4)
    embeddings, _ = qwen2_vl._get_input_embeds(model.model, ids)
    assert torch.equal(embeddings, model.get_input_embeddings()(ids))
    embeddings.sum().backward()
    gradients = [parameter.grad for parameter in model.model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    model.zero_grad()


def test_images_are_embedded_as_verl_embeds_them(model: Qwen2_5_VLForConditionalGeneration) -> None:
    ids = torch.full((1, 4), model.config.image_token_id)
    vision = model.config.vision_config
    pixels = torch.rand(16, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    images = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    ours, _ = qwen2_vl._get_input_embeds(model.model, ids, **images)
    verls, _ = qwen2_vl._get_input_embeds.__wrapped__(model.model, ids, **images)
    assert torch.equal(ours, verls)


def test_verl_itself_still_breaks_on_text_alone(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """When this fails, verl has mended it: remove `with_text_only_batches_repaired`."""
    with pytest.raises(AttributeError, match="mean"):
        qwen2_vl._get_input_embeds.__wrapped__(model.model, torch.arange(4).reshape(1, 4))


VALUE_HEAD = "AutoModelForCausalLMWithValueHead"


def test_a_trl_without_verls_class_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.models.transformers import monkey_patch

    for module in ("trl", "trl.experimental", "trl.experimental.ppo"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    available = with_value_head_required(lambda: True)
    assert not available()
    monkeypatch.setattr(sys.modules["trl.experimental.ppo"], VALUE_HEAD, object, raising=False)
    assert available(), "TRL 1.0 to 1.12"
    assert not with_value_head_required(lambda: False)()
    assert monkey_patch.is_trl_available.__name__ == "is_trl_available"
    assert hasattr(monkey_patch.is_trl_available, "repaired_by_samr1")


def test_verl_itself_still_imports_a_class_that_the_installed_trl_lacks(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, verl or TRL has mended it: remove `with_value_head_required`."""
    from verl.models.transformers import monkey_patch

    assert not monkey_patch.is_trl_available()
    monkeypatch.setattr(monkey_patch, "is_trl_available", monkey_patch.is_trl_available.__wrapped__)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with pytest.raises(ImportError, match=VALUE_HEAD):
        monkey_patch.apply_monkey_patch(model)


@pytest.mark.slow
def test_the_repairs_are_not_only_for_the_cpu() -> None:
    """On a machine with an accelerator the plug-in registers no CPU backend, but these repairs."""
    program = (
        "import verl.models.transformers.qwen2_vl as vl, verl.utils.tensordict_utils as tu, sys;"
        "print('samr1_verl.cpu.platform' in sys.modules,"
        "hasattr(vl._get_input_embeds, '__wrapped__'), hasattr(tu.maybe_fix_3d_position_ids, '__wrapped__'))"
    )
    environment = {**os.environ, "VERL_PLATFORM": "nvidia"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
