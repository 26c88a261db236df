"""The tiny policy's second dialect: the same weights and ids, another spelling."""

import asyncio
import json
from pathlib import Path

from transformers import AutoProcessor

from data.tiny_world import list_dialect
from reward_fns.vision_reasoner import compute_score

CHECKPOINTS = Path(list_dialect.__file__).parents[1] / "checkpoints"
ANSWER = '<answer>{"bbox": [10, 20, 30, 40], "points_1": [20, 30], "points_2": [15, 25]}</answer>'


def test_the_committed_folder_is_what_the_script_makes(tmp_path):
    list_dialect.main(CHECKPOINTS / "tiny_policy", tmp_path / "made")
    made, committed = tmp_path / "made", CHECKPOINTS / "tiny_policy_list"
    names = {file.name for file in made.iterdir()}
    assert names == {file.name for file in committed.iterdir()} and "model.safetensors" in names
    for name in names:
        assert (made / name).read_bytes() == (committed / name).read_bytes(), name


def test_an_answer_of_the_tiny_policy_is_a_list_of_objects_in_the_other_spelling():
    first, second = (AutoProcessor.from_pretrained(CHECKPOINTS / name) for name in ("tiny_policy", "tiny_policy_list"))
    ids = first.tokenizer(f"<think>it is at the centre</think>{ANSWER}")["input_ids"]
    text = second.tokenizer.decode(ids)
    assert second.tokenizer(text)["input_ids"] == ids
    truth = {"size": [140, 140], "masks": [], "boxes": [[10, 20, 30, 40]], "points": [[[20, 30]]]}
    extra = {"image": None, "sha256": None, "policy_size": [140, 140], "frame": "absolute"}
    assert asyncio.run(compute_score("test", text, json.dumps(truth), extra))["score"] == 7
