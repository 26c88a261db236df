"""Every kind of checkpoint is found and loads with its own weights, and what is none says so."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from samr1_verl.policies.base import PolicyError
from samr1_verl.policies.checkpoints import Files, find, run_of
from samr1_verl.policies.local import LocalPolicy
from tests.errors import refused
from tests.policies.checkpoints import adapted, edit_json, lora_run, sharded_run, without_weights, write_adapter

NO_BASE = "no/such/base"


def weights(policy: LocalPolicy) -> dict[str, torch.Tensor]:
    return policy.model.state_dict()


@pytest.fixture
def run(warm_policy: Path, tmp_path: Path) -> Path:
    """A run with two checkpoints that hold merged weights."""
    for step in (8, 16):
        shutil.copytree(warm_policy, tmp_path / "run" / f"global_step_{step}" / "actor" / "huggingface")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("16")
    return tmp_path / "run"


def test_a_run_means_its_last_checkpoint_and_a_checkpoint_itself(run: Path) -> None:
    first, last = (run / f"global_step_{step}" for step in (8, 16))
    assert find(str(run), NO_BASE) == Files(last / "actor" / "huggingface")
    for place in (first, first / "actor", first / "actor" / "huggingface"):
        assert find(str(place), NO_BASE) == Files(first / "actor" / "huggingface")
        assert run_of(str(place)) == run
    assert run_of(str(run)) == run and run_of(str(run.parent)) is None and run_of(None) is None
    assert find("Qwen/Qwen2.5-VL-7B-Instruct", NO_BASE) == Files("Qwen/Qwen2.5-VL-7B-Instruct")


def test_a_stamp_changes_with_the_weights(run: Path) -> None:
    files = find(str(run), NO_BASE)
    before = files.stamp()
    assert before == files.stamp()
    (files.model / "model.safetensors").touch()
    assert files.stamp() != before


def test_weights_are_loaded_as_the_rollout_had_them_whatever_verl_wrote_beside_them(
    warm_policy: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(warm_policy, tmp_path / "saved"))
    edit_json(folder / "config.json", dtype="bfloat16")  # as verl's hf_model says of float32 weights
    assert LocalPolicy(Files(folder), 8).model.dtype == torch.bfloat16
    policy = LocalPolicy(Files(folder), 8, dtype="float32")
    original = weights(LocalPolicy(Files(warm_policy), 8))
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights(policy).items())


@pytest.mark.slow
def test_verls_shards_are_merged_by_its_own_merger_once(warm_policy: Path, tmp_path: Path) -> None:
    actor = sharded_run(warm_policy, tmp_path / "run", 3)
    with refused(PolicyError, "not_merged", actor, "2 FSDP shards", "--merge"):
        find(str(tmp_path / "run"), NO_BASE)
    files = find(str(tmp_path / "run"), NO_BASE, merge=True)
    assert files == Files(actor / "merged")
    merged = weights(LocalPolicy(files, 8))
    original = weights(LocalPolicy(Files(warm_policy), 8))
    assert merged.keys() == original.keys()
    assert all(torch.equal(merged[name], original[name].bfloat16()) for name in original)
    for shard in actor.glob("*.pt"):
        shard.unlink()
    assert find(str(actor), NO_BASE) == files, "merged before: no flag, no shards"


def test_a_merge_that_fails_leaves_nothing_behind(warm_policy: Path, tmp_path: Path) -> None:
    actor = tmp_path / "run" / "global_step_1" / "actor"
    without_weights(warm_policy, actor / "huggingface")
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"torn")
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    with refused(PolicyError, "merge_failed", actor):
        find(str(actor), NO_BASE, merge=True)
    assert sorted(path.name for path in actor.iterdir()) == [
        "fsdp_config.json",
        "huggingface",
        "model_world_size_1_rank_0.pt",
    ]


def test_a_lora_adapter_is_laid_over_the_model_it_names_or_the_recipes(warm_policy: Path, tmp_path: Path) -> None:
    adapter = write_adapter(warm_policy, tmp_path / "adapter")
    files = find(str(adapter), NO_BASE)
    assert files == Files(warm_policy, adapter)
    loaded = weights(LocalPolicy(files, 8))
    base = AutoModelForImageTextToText.from_pretrained(warm_policy)
    reference = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    assert loaded.keys() == reference.keys()
    assert all(torch.equal(loaded[name], reference[name]) for name in reference)
    changed = [
        name for name, tensor in weights(LocalPolicy(Files(warm_policy), 8)).items() if (tensor != loaded[name]).any()
    ]
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)

    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert find(str(adapter), str(warm_policy)) == files
    with refused(PolicyError, "no_base_model", adapter / "adapter_config.json", "model.path", tmp_path / "gone"):
        find(str(adapter), str(tmp_path / "gone"))


def test_a_checkpoint_of_a_lora_training_is_merged_with_its_adapter_beside_it(
    warm_policy: Path, tmp_path: Path
) -> None:
    actor = lora_run(warm_policy, tmp_path / "run")
    with refused(PolicyError, "not_merged", actor, "--merge"):
        find(str(actor), NO_BASE)
    files = find(str(actor), NO_BASE, merge=True)
    assert files == Files(actor / "merged", actor / "merged" / "lora_adapter")
    found, expected = weights(LocalPolicy(files, 8)), adapted(warm_policy).merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=0.01, atol=0.01)


def test_an_adapter_that_does_not_fit_its_model_is_refused(warm_policy: Path, tmp_path: Path) -> None:
    adapter = write_adapter(warm_policy, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "v_proj" not in name},
        adapter / "adapter_model.safetensors",
    )
    with refused(PolicyError, "adapter_does_not_fit", adapter, "missing adapter keys"):
        LocalPolicy(find(str(adapter), NO_BASE), 8)
    save_file(
        {name: tensor[:, :1].contiguous() for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    with refused(PolicyError, "adapter_does_not_fit", adapter, "size mismatch"):
        LocalPolicy(find(str(adapter), NO_BASE), 8)


def test_what_is_no_checkpoint_says_what_is_missing(run: Path, warm_policy: Path, tmp_path: Path) -> None:
    with refused(PolicyError, "no_such_folder", tmp_path / "none" / "here"):
        find(str(tmp_path / "none" / "here"), NO_BASE)
    with refused(PolicyError, "no_model_folder", tmp_path, "config.json"):
        find(str(tmp_path), NO_BASE)
    with refused(PolicyError, "no_weights", tmp_path / "empty", "*.safetensors"):
        find(str(without_weights(warm_policy, tmp_path / "empty")), NO_BASE)
    (run / "latest_checkpointed_iteration.txt").write_text("24")
    said = run / "latest_checkpointed_iteration.txt"
    with refused(PolicyError, "no_such_step", said, "global_step_24", "global_step_16, global_step_8"):
        find(str(run), NO_BASE)


def test_another_architecture_is_named(warm_policy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(warm_policy, tmp_path / "text"))
    edit_json(folder / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with refused(PolicyError, "takes_no_images", folder, "'gpt2'"):
        LocalPolicy(Files(folder), 8)
    edit_json(folder / "config.json", model_type="no_such_model")
    with refused(PolicyError, "unreadable_model", folder, "no_such_model"):
        LocalPolicy(Files(folder), 8)


def test_weights_of_another_architecture_are_not_filled_with_random_numbers(warm_policy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(warm_policy, tmp_path / "renamed"))
    tensors = load_file(folder / "model.safetensors")
    few = {name: tensor for name, tensor in tensors.items() if "layers.0.self_attn" not in name}
    save_file(few, folder / "model.safetensors", metadata={"format": "pt"})
    with refused(
        PolicyError, "other_architecture", folder, f"{len(tensors) - len(few)} missing keys", "layers.0.self_attn"
    ):
        LocalPolicy(Files(folder), 8)
    other = {name: tensor[..., :64].contiguous() for name, tensor in tensors.items()}
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyError) as found:
        LocalPolicy(Files(folder), 8)
    assert found.value.code in ("other_architecture", "weights_not_loaded")
