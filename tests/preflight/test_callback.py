"""A run that cannot work ends before Ray starts, with one message that says what to type."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from samr1_verl.config import samr1_config
from samr1_verl.geometry.images import sha256_of
from samr1_verl.preflight import checks, inputs
from samr1_verl.preflight.callback import Preflight, examine_config
from samr1_verl.rows.measured import write_measured
from tests.composing import compose_recipe
from tests.row_files import make_record, write_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base():
    """The tiny recipe with its hydra node, which the callback receives."""
    return compose_recipe("samr1_tiny", with_hydra=True)


@pytest.fixture
def ready(base, tmp_path, random_policy, small_sam):
    """A configuration of which everything is there; tests change one thing."""
    rows = str(write_rows(tmp_path / "rows.parquet"))
    changes = {
        "data": {"train_files": rows, "val_files": [rows]},
        "actor_rollout_ref": {"model": {"path": str(random_policy)}},
        "samr1": {"segmenter": {"path": str(small_sam)}},
    }
    return OmegaConf.merge(base, changes)


def problems(config, **dotted) -> list[str]:
    for key, value in dotted.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return [problem for _, _, found in examine_config(config) for problem in found]


def only_problem(config, **dotted) -> str:
    found = problems(config, **dotted)
    assert len(found) == 1, found
    return found[0]


def test_a_run_of_which_everything_is_there_starts_without_a_word(ready, capsys):
    Preflight().on_run_start(ready)
    assert capsys.readouterr().err == ""


def test_every_problem_is_in_one_message_and_the_status_is_2(ready, capsys):
    ready.data.train_files = "nowhere/train.parquet"
    ready.samr1.segmenter.path = "nowhere/sam"
    with pytest.raises(SystemExit) as error:
        Preflight().on_run_start(ready)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert re.search(r"1\. data\.train_files: .*nowhere/train\.parquet: .*make data", message)
    assert re.search(r"2\. samr1\.segmenter\.path.* nowhere/sam: .*fetch_sam\.py", message)


def test_a_sweep_checks_each_job(ready):
    ready.samr1.objective.normalizer = "nobody"
    Preflight().on_job_start(ready)  # a single run has been checked at its start
    ready.hydra.mode = RunMode.MULTIRUN
    with pytest.raises(SystemExit):
        Preflight().on_job_start(ready)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("samr1.objective.normalizer", "tokens", "'group', 'batch' or 'sequence'"),
        ("samr1.frame", "pixels", "'absolute' or 'thousand'"),
        ("samr1.prompt", "seg_one", "seg_zero, star, tiny, vision_reasoner"),
        ("samr1.policy_size", [168], "Field required"),
        ("samr1.policy_size", "big", "valid tuple"),
        ("samr1.segmenter.service.mode", "cloud", "'embedded'"),
        ("samr1.segmenter.service.cache_gb", "4", "valid number"),
        ("samr1.segmenter.dtype", "int8", "float32"),
        ("samr1.segmenter.colour", "red", "Extra inputs"),
        ("samr1.objective.standardize", "yes", "valid boolean"),
        ("samr1.reward.thresholds", {"0.5": "much"}, "valid number"),
        ("samr1.reward.caps.points", 0, "greater than 0"),
        ("actor_rollout_ref.actor.clip_ratio_low", -0.2, "equal to 0, found -0.2"),
        ("actor_rollout_ref.actor.clip_ratio_high", "wide", "valid number"),
        ("actor_rollout_ref.actor.kl_loss_coef", -1.0, "equal to 0, found -1.0"),
        ("actor_rollout_ref.actor.optim.lr", "fast", "valid number"),
        ("data.train_batch_size", 0, "greater than 0"),
        ("data.train_batch_size", "many", "valid integer"),
        ("trainer.n_gpus_per_node", None, "valid integer"),
    ],
)
def test_a_wrong_value_is_named_by_its_key_with_what_was_found(ready, key, value, expected):
    found = problems(ready, **{key.replace(".", "__"): value})
    assert any(key in line and re.search(expected, line) for line in found), found


def test_a_key_that_is_missing_or_cannot_be_resolved_is_named(ready):
    ready.samr1.policy_size = "${no.such.key}"
    assert "no.such.key" in only_problem(ready)
    stock = OmegaConf.create({key: value for key, value in ready.items() if key != "samr1"})
    missing = only_problem(stock)
    assert missing.startswith("samr1: ") and "`samr1:`" in missing and "recipes/recipe/samr1.yaml" in missing


def test_estimator_loss_and_normaliser_must_fit(ready):
    message = only_problem(ready, algorithm__adv_estimator="grpo")
    assert "algorithm.adv_estimator is grpo" in message and "policy_loss.loss_mode is samr1" in message
    ready.algorithm.adv_estimator = "samr1"
    message = only_problem(ready, actor_rollout_ref__actor__policy_loss__normalizer="batch")
    assert "policy_loss.normalizer is batch" in message and "algorithm.samr1.normalizer is group" in message
    assert "samr1.objective.normalizer" in message
    verls_own = {"algorithm__adv_estimator": "grpo", "actor_rollout_ref__actor__policy_loss__loss_mode": "vanilla"}
    assert problems(ready, **verls_own) == []


def test_a_kl_coefficient_without_a_reference_model_is_refused(ready):
    message = only_problem(ready, actor_rollout_ref__actor__use_kl_loss=False)
    assert "kl_loss_coef is 0.005" in message and "use_kl_loss=true" in message
    assert problems(ready, actor_rollout_ref__actor__kl_loss_coef=0.0) == []


def test_one_mini_batch_and_idle_reference_model_and_many_workers_are_warned_about(ready, capsys):
    ready.actor_rollout_ref.actor.ppo_mini_batch_size = ready.data.train_batch_size
    ready.actor_rollout_ref.actor.kl_loss_coef = 0.0
    ready.reward.num_workers = 4
    Preflight().on_run_start(ready)
    message = capsys.readouterr().err
    size = f"ppo_mini_batch_size={ready.data.train_batch_size}"
    assert all(part in message for part in (size, "clip range", "use_kl_loss=false", "num_workers=1")), message
    assert list(checks.advice(OmegaConf.merge(ready, {"actor_rollout_ref": {"actor": {"ppo_epochs": 2}}})))[:1] != []


def test_lengths_must_fit_the_rollout(ready):
    message = only_problem(ready, data__max_response_length=4000)
    assert re.search(r"Set actor_rollout_ref\.rollout\.max_model_len=\d+", message)


def test_a_workers_rollouts_must_be_whole_micro_batches(ready):
    group = ready.actor_rollout_ref.rollout.n
    ready.actor_rollout_ref.rollout.n = group + 1
    problems = list(checks.check_micro_batches(ready))
    assert [problem.split(" is ")[0].split(".")[1] for problem in problems] == ["actor", "rollout", "ref"]
    assert all(".n / workers). Set a size" in problem for problem in problems)
    ready.actor_rollout_ref.rollout.n = group
    assert list(checks.check_micro_batches(ready)) == []


def test_places_to_train_must_exist(ready, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ready.trainer.n_gpus_per_node = 3
    assert ["Set ray_kwargs.ray_init.num_gpus=3" in one for one in checks.check_resources(ready)] == [True]
    ready.trainer.n_gpus_per_node = 1
    assert "not installed" in only_problem(ready, actor_rollout_ref__rollout__name="vllm")


def test_a_cpu_recipe_on_a_machine_with_an_accelerator_says_how_to_choose(ready, monkeypatch):
    monkeypatch.setattr(checks, "accelerator_present", lambda: True)
    assert "VERL_PLATFORM=cpu" in only_problem(ready)


def test_flash_attention_must_be_installed_to_be_chosen(ready):
    message = only_problem(ready, actor_rollout_ref__model__override_config__attn_implementation="flash_attention_2")
    assert "pip install flash-attn" in message


def test_groups_are_filtered_by_a_value_that_the_reward_returns(ready):
    ready.algorithm.filter_groups.enable = True
    assert problems(ready) == [] == problems(ready, algorithm__filter_groups__metric="acc")
    message = only_problem(ready, algorithm__filter_groups__metric="iou")
    assert "algorithm.filter_groups.metric is iou, expected reward" in message and "acc" in message


def test_a_ray_cluster_must_answer_at_its_port(ready, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert address in only_problem(ready, ray_kwargs__ray_init__address=address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert problems(ready, ray_kwargs__ray_init__address=None) == []


def rewrite(config, tmp_path, change) -> str:
    """The problem of a data file whose table was changed."""
    path = Path(config.data.train_files)
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    config.data.val_files = str(write_rows(tmp_path / "other" / "rows.parquet"))
    return only_problem(config)


def test_a_data_file_without_a_column_or_without_rows_is_refused(ready, tmp_path):
    assert "column 'sha256'" in rewrite(ready, tmp_path, lambda table: table.drop_columns(["sha256"]))
    ready.data.train_files = str(write_rows(tmp_path / "rows.parquet"))
    message = rewrite(ready, tmp_path, lambda table: table.slice(0, 0))
    assert "no rows" in message and message.startswith("data.train_files: ") and "make data" in message


def test_rows_to_keep_need_their_measurement(ready, tmp_path):
    message = only_problem(ready, samr1__keep_rows={"ceiling": [0.5, 1]})
    assert message.startswith("data.train_files: ") and "column 'ceiling'" in message and "1 of 1 rows" in message
    assert "samr1 data ceiling" in message and "set samr1.keep_rows=null" in message
    measured = tmp_path / "measured.parquet"
    write_measured(Path(ready.data.train_files), measured, {"ceiling": np.array([0.4])})
    message = only_problem(ready, data__train_files=str(measured), samr1__keep_rows={"ceiling": [0.5, 1]})
    assert "ceiling in [0.5, 1]" in message and "found 0.4 to 0.4" in message
    assert problems(ready, data__train_files=str(measured), samr1__keep_rows={"ceiling": [0.2, 1]}) == []


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"ceiling": [0.9, 0.5]}, r"samr1.keep_rows: .*ceiling .*\[0.9, 0.5\], .*\[lowest, highest\]"),
        ({"ceiling": [0.5, 1.5]}, r"samr1.keep_rows.ceiling.1: .*equal to 1, found 1.5"),
        ({"difficulty": [0.5, 1]}, r"samr1.keep_rows.difficulty: Extra"),
    ],
)
def test_bounds_of_rows_are_checked(ready, bounds, expected):
    assert re.search(expected, only_problem(ready, samr1__keep_rows=bounds))


@pytest.mark.parametrize("files", [None, [], 7])
def test_data_files_must_be_named(ready, files):
    assert f"data.train_files is {files}, expected " in only_problem(ready, data__train_files=files)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sha256": "0" * 64}, r"row 0: .*a\.png .*SHA-256 [0-9a-f]{64}, .*0000"),
        ({"height": 48, "width": 65}, r"row 0: .*a\.png .*64x48 .*65x48"),
        ({"masks": ["111"]}, r"row 0: RLE"),
        ({"masks": ["\u00e4\u00e4"]}, r"row 0: RLE"),
        ({"image": "b.png"}, r"1 of 1 images .*b\.png"),
    ],
)
def test_a_row_that_does_not_fit_its_image_is_refused(ready, tmp_path, changes, expected):
    ready.data.train_files = str(write_rows(tmp_path / "bad.parquet", make_record(tmp_path, **changes)))
    assert re.search(expected, only_problem(ready))


def test_every_image_must_be_there_not_only_the_first(ready, tmp_path):
    records = [make_record(tmp_path, f"{i}.png") for i in range(5)]
    ready.data.train_files = str(write_rows(tmp_path / "many.parquet", *records))
    (tmp_path / "3.png").unlink()
    assert re.search(r"1 of 5 images .* 3\.png", only_problem(ready))


def test_a_file_that_is_no_image_is_refused(ready, tmp_path):
    record = make_record(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not an image")
    digest = sha256_of(tmp_path / "a.png")
    ready.data.train_files = str(write_rows(tmp_path / "bad.parquet", record.model_copy(update={"sha256": digest})))
    ready.data.val_files = ready.data.train_files
    assert all("row 0: " in problem and "a.png: unreadable" in problem for problem in problems(ready))


def test_the_policy_must_be_a_model_or_a_hub_id(ready, tmp_path, monkeypatch):
    key = "actor_rollout_ref.model.path"
    assert key in only_problem(ready, actor_rollout_ref__model__path=str(tmp_path / "gone"))
    assert "no config.json" in only_problem(ready, actor_rollout_ref__model__path=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in only_problem(ready, actor_rollout_ref__model__path=str(tmp_path))
    assert problems(ready, actor_rollout_ref__model__path="Qwen/Qwen2.5-VL-7B-Instruct") == []
    monkeypatch.setattr(inputs.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in only_problem(ready)


def test_a_relative_path_is_no_hub_id_where_its_folder_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inputs.hub_id_or_folder("data/policy") == "data/policy"
    (tmp_path / "data").mkdir()
    assert inputs.hub_id_or_folder("data/policy") == Path("data/policy")
    assert inputs.hub_id_or_folder("./data") == Path("data")
    assert inputs.hub_id_or_folder("~/x") == Path.home() / "x"


def test_a_segmenter_of_an_unknown_backend_is_refused(ready):
    message = only_problem(ready, samr1__segmenter__backend="magic")
    assert "'magic'" in message and "onnx" in message


def test_another_data_set_class_is_left_alone(ready):
    ready.data.train_files = "nowhere.parquet"
    ready.data.custom_cls.name = "MyDataset"
    assert problems(ready) == []


def test_the_recipe_names_what_to_type_for_each_input(base):
    prepare = samr1_config(base).prepare
    assert all("Type: " in text or "checkout" in text for text in prepare.model_dump().values())
    for line in (ROOT / "Makefile").read_text().splitlines():
        if line.startswith(".PHONY:"):
            targets = line.split()
    commands = re.findall(r"make (\w+)", yaml.safe_dump(prepare.model_dump()))
    assert commands and set(commands) <= set(targets)


@pytest.mark.slow
def test_main_ppo_ends_before_ray_starts(tmp_path):
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=samr1_tiny", "samr1.frame=pixels"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "\n  1. samr1.frame: " in done.stderr and "'pixels'" in done.stderr
    assert "Traceback" not in done.stderr and "ray init" not in done.stdout
    assert list(tmp_path.iterdir()) == []
