"""`samr1 predict`: text, files and pictures say the same, for one image and for several."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.config import ConfigError
from samr1_verl.geometry.images import ImageError
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.policies.inference_config import compose_recipe
from samr1_verl.policies.load import config_for
from samr1_verl.policies.predict import Predictor
from samr1_verl.scoring.sample import Sample
from tests.errors import refused
from tests.evaluation.world import RulePolicy, answer, inference_config
from tests.policies.chat_server import ChatServer, serving
from tests.policies.scripted import Scripted


def predict(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.fixture
def options(small_sam: Path, warm_policy: Path) -> list[str]:
    values = {"samr1.segmenter.path": small_sam, "actor_rollout_ref.model.path": warm_policy}
    return [part for key, path in values.items() for part in ("--set", f"{key}={path}")]


def images(drawn: Path) -> list[Path]:
    return sorted((drawn / "images").glob("test_*.png"))


@pytest.mark.slow
def test_the_tiny_policy_answers_about_several_images(options: list[str], drawn: Path, tmp_path: Path) -> None:
    first, second = images(drawn)[:2]
    status, output = predict(first, second, "Segment the Red square.", *options, "--out", tmp_path)
    assert status == 0, output
    for image in (first, second):
        stem = tmp_path / f"{image.stem}.segment_the_red_square"
        sample = Sample.model_validate_json(Path(f"{stem}.json").read_text())
        assert sample.image == str(image) and sample.truth is None and sample.scores == {} and sample.reason is None
        mask = np.asarray(Image.open(f"{stem}.mask.png"))
        assert set(np.unique(mask)) == {0, 255} and np.array_equal(mask == 255, decode_rle(sample.mask, sample.size))
        before, after = np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(f"{stem}.overlay.png"))
        changed = (before != after).any(axis=2)
        assert changed[mask == 255].mean() > 0.9 and not changed.all()
        assert str(image) in output and sample.response.split("<think>")[1].split("</think>")[0] in output
        (box,) = [shape.box for shape in sample.shapes]
        assert f"box       {', '.join(f'{edge:.1f}' for edge in box)}" in output
        assert f"{int((mask == 255).sum()):,} pixels" in output
    assert output.count("file ") == 6 and len(list(tmp_path.iterdir())) == 6


def test_a_dialogue_is_told_turn_by_turn(options: list[str], drawn: Path, tmp_path: Path) -> None:
    """Its first answer, its second one with a point beside the object, and done; through a server."""
    first, done = '{"bbox": [20, 20, 60, 60], "points": [[40, 40]]}', "<think>it fits</think><answer>done</answer>"
    second = '{"bbox": [40, 30, 90, 90], "points": [[60, 60], [41, 31]], "labels": [1, 0]}'
    script = [
        f"<think>there\x1b</think><answer>{first}</answer>",
        f"<think>more</think><answer>{second}</answer>",
        done,
    ]
    with serving(ChatServer(Scripted(script)).app) as address:
        asked = ("--recipe", "samr1_refine_tiny", *options, "--server", address, "--out", tmp_path)
        status, output = predict(images(drawn)[0], "it", *asked)
    assert status == 0, output
    told = [line.split(maxsplit=1) for line in output.splitlines() if line.startswith("  ")]
    assert [key for key, _ in told if key != "file"] == [
        *("turn", "reasoning", "box", "point", "mask"),
        *("turn", "reasoning", "box", "point", "point", "mask"),
        *("turn", "reasoning", "done"),
    ]
    assert [value for key, value in told if key == "reasoning"] == ["there\N{REPLACEMENT CHARACTER}", "more", "it fits"]
    assert output.count("(not on it)") == 1 and "\x1b" not in output
    stem = f"{images(drawn)[0].stem}.it"
    kinds = ("overlay.png", "mask.png", "json", "turn1.overlay.png", "turn2.overlay.png")
    assert [Path(value).name for key, value in told if key == "file"] == [f"{stem}.{kind}" for kind in kinds]
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{kind}" for kind in kinds}
    last, one, two = (np.asarray(Image.open(tmp_path / f"{stem}.{kind}")) for kind in (kinds[0], *kinds[3:]))
    assert np.array_equal(last, two) and not np.array_equal(one, two)
    sample = Sample.model_validate_json((tmp_path / f"{stem}.json").read_text())
    assert sample.response == script[1] and [turn.text for turn in sample.turns] == script
    assert sample.turns[2].mask is None and sample.mask == sample.turns[1].mask != sample.turns[0].mask


async def test_questions_are_answered_together_and_in_order(drawn: Path) -> None:
    policy = RulePolicy(lambda item, seed: answer([item["extra_info"]["index"], 2, 20, 20]))
    predictor = Predictor(policy, inference_config(), batch_size=3)
    asked = [(image, f"sentence {number}") for number, image in enumerate(images(drawn)[:4] * 2)]
    samples = await predictor.predict_all(asked)
    assert policy.asked == 3 and [(Path(one.image), one.sentence) for one in samples] == asked
    scale = samples[0].size[1] / 64
    assert [one.shapes[0].box[0] for one in samples] == pytest.approx([number * scale for number in range(8)])
    assert (await predictor.predict(*asked[0])).model_dump() == samples[0].model_dump()


async def test_an_unusable_answer_is_an_empty_mask_and_lenient_parsing_reads_more(drawn: Path) -> None:
    image = images(drawn)[0]
    policy = RulePolicy(lambda item, seed: 'It is here: {"bbox": ["8", "6", "32", "24"]}')
    strict = await Predictor(policy, inference_config()).predict(image, "it")
    assert strict.reason == "no_answer" and not decode_rle(strict.mask, strict.size).any() and strict.shapes == ()
    lenient = await Predictor(policy, inference_config(), lenient=True).predict(image, "it")
    assert lenient.reason is None and decode_rle(lenient.mask, lenient.size).mean() == pytest.approx(1 / 7.1, rel=0.1)
    off = RulePolicy(lambda item, seed: '{"bbox": [80, 60, 90, 70]}')
    assert (await Predictor(off, inference_config(), lenient=True).predict(image, "it")).reason == "outside"


async def test_what_is_no_image_is_said_before_anybody_is_asked(drawn: Path, tmp_path: Path) -> None:
    policy = RulePolicy(lambda item, seed: "")
    predictor = Predictor(policy, inference_config())
    (tmp_path / "text.png").write_text("no image")
    with refused(ImageError, "no_such_image", tmp_path / "gone.png"):
        await predictor.predict_all([(images(drawn)[0], "it"), (tmp_path / "gone.png", "it")])
    with refused(ImageError, "unreadable_image", tmp_path / "text.png"):
        await predictor.predict_all([(images(drawn)[0], "it"), (tmp_path / "text.png", "it")])
    assert policy.asked == 0


@pytest.mark.slow
def test_the_command_says_what_is_wrong(options: list[str], drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for image, said in (("gone.png", "no such image"), ("text.png", "unreadable as an image")):
        status, output = predict(tmp_path / image, "it", *options, "--out", tmp_path / "out")
        assert status == 1 and f"{image}: {said}" in output and "Traceback" not in output
    status, output = predict(images(drawn)[0], "it", *options, "--policy", tmp_path / "gone", "--recipe", "samr1_tiny")
    assert status == 1 and "no such folder" in output
    status, output = predict(images(drawn)[0], "it", "--set", "actor_rollout_ref.model.path=none/here/at_all")
    assert (
        status == 1
        and "actor_rollout_ref.model.path: " in output
        and "data/tiny_world/warm_up.py makes it again" in output
    )


def test_images_of_one_name_and_several_folders_do_not_overwrite_each_other(
    options: list[str], drawn: Path, tmp_path: Path
) -> None:
    copies = [
        Path(shutil.copy(image, tmp_path / name))
        for image, name in zip(images(drawn), ("a.png", "b.png"), strict=False)
    ]
    (tmp_path / "other").mkdir()
    twin = Path(shutil.copy(copies[1], tmp_path / "other" / "a.png"))
    assert predict(copies[0], twin, "it", *options, "--out", tmp_path / "out")[0] == 0
    stored = [json.loads(file.read_text())["image"] for file in sorted((tmp_path / "out").glob("*.json"))]
    assert stored == [str(twin), str(copies[0])]


@pytest.mark.slow
def test_a_checkpoint_is_asked_as_its_run_was_trained(small_sam: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "latest_checkpointed_iteration.txt").write_text("4")
    config = compose_recipe("samr1_tiny", ["samr1.policy_size=[112,112]", f"samr1.segmenter.path={small_sam}"])
    del config.samr1["samples"]  # a key that older runs do not have
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    found = config_for(str(run), None, [], server=False)
    assert found.prompt.policy_size == (112, 112) and (found.max_new_tokens, found.dtype) == (48, "float32")
    assert config_for(str(run / "global_step_4" / "actor"), None, [], server=False) == found
    changed = config_for(str(run), None, ["data.max_response_length=7"], server=False)
    assert changed.max_new_tokens == 7
    file = run / ".hydra" / "config.yaml"
    wrong = {"samr1.polcy_size=[56,56]": "polcy_size", "+samr1.samples=1": "+samr1", "samr1": "'samr1'"}
    for override, found_there in wrong.items():
        code = "does_not_fit" if "=" in override else "not_key_value"
        with refused(ConfigError, code, "--set", found_there, "key=value", file):
            config_for(str(run), None, [override], server=False)
    named = config_for(str(run), "samr1_tiny", [f"samr1.segmenter.path={small_sam}"], server=False)
    assert named.prompt.policy_size == (140, 140), "a recipe that is named goes before the run's"
    file.write_text("samr1: [1")
    with refused(ConfigError, "unreadable_config", file):
        config_for(str(run), None, [], server=False)
    file.write_text("data: {max_response_length: 8}")
    with refused(ConfigError, "no_recipe", "samr1"):
        config_for(str(run), None, [], server=False)


def test_a_service_in_a_trainings_cluster_is_embedded_here(small_sam: Path) -> None:
    overrides = ["samr1.segmenter.service.mode=ray", f"samr1.segmenter.path={small_sam}"]
    assert config_for(None, "samr1_tiny", overrides, server=False).segmenter.service.mode == "embedded"
