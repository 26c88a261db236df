"""The recipes of other methods: their papers' settings, their own reward, and tiny variants of another size only."""

import json

import numpy as np
import pytest
from verl.trainer.ppo.reward import get_custom_reward_fn

from samr1_verl.geometry.masks import encode_rle
from samr1_verl.preflight.inputs import check_reward, uses_segmenter
from tests.composing import compose_recipe, differences
from tests.recipes.sizes import MAY_DIFFER, STAR
from tests.row_files import make_record, write_rows

METHODS = ("seg_zero", "vision_reasoner", "star")
MASK = encode_rle(np.ones((9, 9), dtype=bool))
TRUTH = json.dumps({"size": [9, 9], "masks": [MASK], "boxes": [[0, 0, 9, 9]], "points": [[[4, 4], [5, 5]]]})
EXTRA = {"image": "/nowhere.png", "sha256": "0" * 64, "policy_size": [9, 9], "frame": "absolute"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # Seg-Zero's and VisionReasoner's: 16 prompts x 8, lr 1e-6, KL k3 5e-3, clip 0.2, one update a batch
        ("seg_zero", (16, 8, 1e-6, 1e-2, True, 5e-3, 1300, "absolute", [840, 840], 0)),
        ("vision_reasoner", (16, 8, 1e-6, 1e-2, True, 5e-3, 2048, "absolute", [840, 840], 0)),
        # StAR's first stage: 16 prompts x 16, LoRA of rank 64 without KL, Qwen3-VL
        ("star", (16, 16, 1e-5, 1e-3, False, 0, 2048, "thousand", [832, 832], 64)),
    ],
)
def test_a_recipe_is_its_paper(name, settings):
    config = compose_recipe(name)
    actor, rollout, model = (config.actor_rollout_ref[part] for part in ("actor", "rollout", "model"))
    assert settings == (
        config.data.train_batch_size, rollout.n, actor.optim.lr, actor.optim.weight_decay, actor.use_kl_loss,
        actor.kl_loss_coef, config.data.max_response_length, config.samr1.frame, config.samr1.policy_size,
        model.lora_rank,
    )  # fmt: skip
    assert actor.ppo_mini_batch_size == config.data.train_batch_size and rollout.temperature == 1
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.optim.clip_grad) == (0.2, 0.2, 1.0)
    assert (config.algorithm.adv_estimator, actor.policy_loss.loss_mode) == ("grpo", "vanilla")
    assert config.samr1.prompt == name and config.samr1.reward.thresholds is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, *(f"{method}_tiny" for method in METHODS)])
async def test_the_reward_is_the_recipes_and_takes_its_keyword_arguments(name):
    config = compose_recipe(name)
    method = name.removesuffix("_tiny")
    assert config.reward.custom_reward_function.path == f"pkg://reward_fns.{method}"
    result = await get_custom_reward_fn(config)("test", "", TRUTH, dict(EXTRA))
    assert result["think"] == 0 and "point_count" not in result
    with_metric = compose_recipe(name, "samr1.reward.terms.point_count=0")
    assert (await get_custom_reward_fn(with_metric)("test", "", TRUTH, dict(EXTRA)))["point_count"] == 0
    assert uses_segmenter(config) == (method == "star")
    assert uses_segmenter(compose_recipe(name, "samr1.samples=4"))
    assert uses_segmenter(compose_recipe(name, "samr1.reward.terms.s_measure=0"))


@pytest.mark.parametrize("name", METHODS)
def test_a_tiny_variant_changes_size_and_place_only(name):
    changed = differences(compose_recipe(name), compose_recipe(f"{name}_tiny"))
    assert changed == (MAY_DIFFER | STAR if name == "star" else MAY_DIFFER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "names"),
    [
        ("seg_zero_tiny", {"points": [[[20, 15]]]}, ["ground_truth.points", "[1] points"]),
        ("vision_reasoner_tiny", {"points": []}, ["ground_truth.points", "[] points"]),
        ("star_tiny", {"boxes": [], "points": []}, ["ground_truth.boxes", "0 boxes", "1 masks"]),
        ("seg_zero_tiny", None, ["samr1.reward.terms.lenght: "]),
    ],
)
def test_the_preflight_tells_a_reward_that_does_not_fit_its_data(tmp_path, name, changes, names):
    good = {"points": [[[20, 15], [25, 18]]]}
    file = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, **(good | (changes or {}))))
    override = ["+samr1.reward.terms.lenght=1"] if changes is None else []
    config = compose_recipe(name, f"data.train_files={file}", *override)
    (problem,) = check_reward(config)
    assert all(part in problem for part in names), problem
    fitting = compose_recipe(
        name, f"data.train_files={write_rows(tmp_path / 'b.parquet', make_record(tmp_path, **good))}"
    )
    assert list(check_reward(fitting)) == []


@pytest.mark.parametrize("name", ["seg_zero", "vision_reasoner"])
def test_a_method_without_masks_asks_no_segmenter_to_encode(name: str) -> None:
    """Where the segmenter is an application of the cluster, the first question would start it, with its weights."""
    assert compose_recipe(name).data.encode_ahead is None
    assert compose_recipe("samr1").data.encode_ahead is not None
