"""Make `data/checkpoints/tiny_policy_list`: the tiny policy with answers in lists of objects, not in Seg-Zero's keys.

    python data/tiny_world/list_dialect.py

Every piece of JSON is one token of the tiny policy. Another form of answer is therefore another tokenizer over the same
weights: four tokens have another spelling, and all other files are links to `data/checkpoints/tiny_policy`. The second
point gets a key without meaning, which the rewards of VisionReasoner and StAR ignore.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
SPELLING = {
    '{"bbox": [': '[{"label": "shape", "bbox_2d": [',
    '], "points_1": [': '], "point_2d": [',
    '], "points_2": [': '], "second": [',
    "]}": "]}]",
}


def respelled(tokenizer: str) -> str:
    """The text of a tokenizer.json in which the tokens of SPELLING have their other spelling, under the same ids."""
    parts = json.loads(tokenizer)
    vocabulary = parts["model"]["vocab"]
    parts["model"]["vocab"] = {SPELLING.get(token, token): number for token, number in vocabulary.items()}
    pattern = parts["pre_tokenizer"]["pattern"]
    words = pattern["Regex"][pattern["Regex"].index("|, |") :]  # the part behind the pieces of JSON stays
    pattern["Regex"] = "|".join(re.escape(piece) for piece in SPELLING.values()) + words
    return json.dumps(parts, indent=2, ensure_ascii=False)


def main(
    policy: Annotated[Path, typer.Option(help="folder of the tiny policy")] = CHECKPOINTS / "tiny_policy",
    out: Annotated[Path, typer.Option(help="folder to make")] = CHECKPOINTS / "tiny_policy_list",
) -> None:
    """Make the tiny policy's list dialect: write its tokenizer and link the other files."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(policy.iterdir()):
        link = out / file.name
        link.unlink(missing_ok=True)
        if file.name == "tokenizer.json":
            link.write_text(respelled(file.read_text()))
        elif file.name != "README.md":
            link.symlink_to(Path("..") / policy.name / file.name if policy.parent == out.parent else file.absolute())


if __name__ == "__main__":
    typer.run(main)
