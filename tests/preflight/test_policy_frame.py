"""The policy's family decides frame and size of its images, and whether fused log-probs are exact."""

import json

import pytest

from samr1_verl.config import samr1_config
from samr1_verl.preflight.policy_frame import check_frame, check_fused, model_type_of
from tests.composing import compose_recipe


def frames(*overrides: str, recipe: str = "samr1") -> list[str]:
    config = compose_recipe(recipe, *overrides)
    return list(check_frame(config, samr1_config(config)))


def folder(tmp_path, model_type: str) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl"),
        ("someone/my-Qwen2.5-VL-7B-sft", "qwen2_5_vl"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
        ("someone/other", None),
        ("/no/such/folder", None),
    ],
)
def test_the_family_follows_from_a_well_known_name(path, expected):
    assert model_type_of(path) == expected


def test_a_config_json_decides_before_the_name(tmp_path):
    place = tmp_path / "Qwen2.5-VL-7B"
    place.mkdir()
    assert model_type_of(folder(place, "qwen3_vl")) == "qwen3_vl"
    (place / "config.json").write_text("no json")
    assert model_type_of(str(place)) is None


def test_qwen3_vl_with_the_papers_recipe_is_told_frame_and_size():
    frame, size = frames("actor_rollout_ref.model.path=Qwen/Qwen3-VL-8B-Instruct")
    assert "samr1.frame is absolute" in frame and "Set samr1.frame=thousand" in frame
    assert "multiples of 32" in size and "Set samr1.policy_size=[832, 832]" in size


@pytest.mark.slow
def test_frames_and_sizes_that_fit_pass(tmp_path):
    assert frames() == frames(recipe="star") == frames("actor_rollout_ref.model.path=someone/other") == []
    qwen2 = ["actor_rollout_ref.model.path=Qwen/Qwen2-VL-7B-Instruct", "samr1.frame=thousand"]
    assert frames(*qwen2) == []
    qwen3 = [f"actor_rollout_ref.model.path={folder(tmp_path, 'qwen3_vl_moe')}", "samr1.frame=thousand"]
    assert frames(*qwen3, "samr1.policy_size=null") == frames(*qwen3, "samr1.policy_size=[1024,768]") == []
    assert "Set samr1.frame=absolute" in frames("samr1.frame=thousand")[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor_rollout_ref.model.fused_kernel_options.impl_backend=triton", "impl_backend is triton"),
        ("actor_rollout_ref.actor.calculate_sum_pi_squared=true", "no whole logits"),
    ],
)
def test_fused_log_probs_are_refused_where_they_do_not_work(override, message):
    (problem,) = check_fused(compose_recipe("samr1", override))
    assert message in problem and "Set actor_rollout_ref.model.use_fused_kernels=false" in problem
    assert list(check_fused(compose_recipe("samr1", override, "actor_rollout_ref.model.use_fused_kernels=false"))) == []


def test_fused_log_probs_need_a_family_for_which_they_are_tested(tmp_path):
    config = compose_recipe("samr1", f"actor_rollout_ref.model.path={folder(tmp_path, 'qwen3_5')}")
    (problem,) = check_fused(config)
    assert "found qwen3_5" in problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "refused"), [("all-linear", False), ("[q_proj,lm_head]", True), ("[q_proj]", False), ("'.*head'", True)]
)
def test_fused_log_probs_do_not_see_an_adapter_of_the_output_layer(targets, refused):
    config = compose_recipe("star", f"actor_rollout_ref.model.target_modules={targets}")
    assert ["adapter of lm_head" in problem for problem in check_fused(config)] == [True] * refused


@pytest.mark.parametrize("name", ["samr1", "seg_zero", "vision_reasoner", "star"])
def test_our_recipes_use_fused_log_probs(name):
    config = compose_recipe(name)
    assert config.actor_rollout_ref.model.use_fused_kernels and list(check_fused(config)) == []
