"""What a path in a recipe means to the libraries that know the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path


def hub_id_or_folder(value: str) -> str | Path:
    """A model value as verl and transformers read it: a folder, or a hub id (owner/name) when there can be no folder.

    A relative path such as data/policy has the form of a hub id; it counts as a path where its parent folder exists.
    """
    path = Path(value).expanduser()
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value) and not path.exists() and not path.parent.is_dir()
    return value if is_id else path
