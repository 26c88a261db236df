"""What verl gets wrong on the CPU path is put right, and verl still gets it wrong: else the repair must go."""

from __future__ import annotations

import pytest
import torch
from verl.utils import distributed

import samr1_verl.plugin  # noqa: F401  # what `import verl` loads


def test_verl_itself_still_names_gloo_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, verl has mended it: remove `with_one_gloo_backend`."""
    asked = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    distributed.initialize_global_process_group_ray.__wrapped__()
    distributed.initialize_global_process_group_ray()
    assert asked == ["cpu:gloo,cpu:gloo", "cpu:gloo"]
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        torch.distributed.distributed_c10d.BackendConfig(torch.distributed.Backend(asked[0]))
