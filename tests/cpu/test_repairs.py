"""What verl gets wrong on the CPU path is put right, and verl still gets it wrong: else the repair must go."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from verl.utils import distributed, tensordict_utils

import samr1_verl.plugin  # noqa: F401  # what `import verl` loads

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


def test_verl_itself_still_names_gloo_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, verl has mended it: remove `with_one_gloo_backend`."""
    asked = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    distributed.initialize_global_process_group_ray.__wrapped__()
    distributed.initialize_global_process_group_ray()
    assert asked == ["cpu:gloo,cpu:gloo", "cpu:gloo"]
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        torch.distributed.distributed_c10d.BackendConfig(torch.distributed.Backend(asked[0]))
