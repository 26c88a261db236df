"""Recipes for other GPUs and policies: samr1.yaml with other sizes, which pass the preflight and the memory plan."""

import importlib.util

import pytest

from samr1_verl.config import samr1_config
from samr1_verl.preflight.callback import examine_config
from samr1_verl.preflight.plan import Given, examine_memory
from tests.composing import NAMES, compose_recipe, differences
from tests.recipes.sizes import OTHER_GPUS
from tests.row_files import write_rows


def test_every_recipe_of_the_paper_is_listed():
    assert OTHER_GPUS.keys() == {name for name in NAMES if name.startswith("samr1_")} - {
        "samr1_tiny",
        "samr1_refine_tiny",
    }


@pytest.mark.parametrize("name", OTHER_GPUS)
def test_a_recipe_changes_sizes_and_policy_only(name):
    assert differences(compose_recipe("samr1"), compose_recipe(name)) == OTHER_GPUS[name][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_GPUS)
def test_a_recipe_passes_the_preflight_of_a_machine_with_its_gpus(name, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *args: module == "vllm" or find(module, *args))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rows = write_rows(tmp_path / "rows.parquet")
    workers = compose_recipe(name).trainer.n_gpus_per_node
    there = [f"data.train_files={rows}", f"data.val_files={rows}", f"+ray_kwargs.ray_init.num_gpus={workers}"]
    found = [line for _, _, lines in examine_config(compose_recipe(name, *there)) for line in lines]
    assert found == []
    found = [line for _, _, lines in examine_config(compose_recipe(name, *there[:2])) for line in lines]
    assert [line.split(",")[0] for line in found] == [f"trainer.n_gpus_per_node is {workers}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samr1", *OTHER_GPUS])
def test_the_memory_plan_fits_the_recipes_gpus(name):
    gpu_gb = 80 if name == "samr1" else OTHER_GPUS[name][0]
    config = compose_recipe(name)
    for finding in examine_memory(config, samr1_config(config), {"devices": []}, Given(gpu_gb, 1000, 1000)):
        assert finding.problems == [], finding.subject
    if gpu_gb < 80:  # and does not without the recipe's keys
        base = compose_recipe("samr1", f"trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}")
        findings = examine_memory(base, samr1_config(base), {"devices": []}, Given(gpu_gb, 1000, 1000))
        assert any(finding.problems for finding in findings)
