"""A row as ms-swift reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def swift_row(item: Mapping[str, Any], image: str | Path) -> dict[str, Any]:
    """The line of an item in a JSON Lines file; `swift rlhf --dataset rows.jsonl` names the file.

    Args:
        item: an item of `prompts.questions.item_of`.
        image: file of the image in the size that the policy sees. The policy's processor keeps that size, and so does
            ms-swift.
    """
    shown, asked = item["raw_prompt"][0]["content"]
    assert shown["type"] == "image" and asked["type"] == "text", "a question is an image and a text behind it"
    return {
        # ms-swift puts the next entry of `images` in the place of `<image>`.
        "messages": [{"role": "user", "content": f"<image>{asked['text']}"}],
        "images": [str(image)],
        "data_source": item["data_source"],
        "ground_truth": item["reward_model"]["ground_truth"],
        "extra_info": item["extra_info"],
    }
