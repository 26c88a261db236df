"""What the README shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_rewards_example_prints_a_score(tmp_path: Path, drawn: Path, small_sam: Path) -> None:
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (example,) = [block for block in blocks if "compute_score(" in block]
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "shapes").symlink_to(drawn)
    (tmp_path / "data" / "weights" / "small_sam").symlink_to(small_sam)
    script = re.sub(r"^ {4}", "", example, flags=re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'score': " in done.stdout and "'format': 1.0" in done.stdout


def test_every_file_that_documents_link_to_is_there() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "data/README.md"):
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / document).read_text(encoding="utf-8")):
            if "://" not in target:
                assert (folder / target).exists(), f"{document} links to {target}"
