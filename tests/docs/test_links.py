"""Links of the documents point at files, and what they say about versions is so."""

from __future__ import annotations

import re

import pytest
import yaml

import samr1_verl
from tests.docs.pages import DOCUMENTS, ROOT, Piece, links

LINKING = (*DOCUMENTS, "CHANGELOG.md")


@pytest.mark.parametrize("document", LINKING)
def test_links_point_at_files(document: str) -> None:
    for link in links(document):
        if not re.match(r"https?://", link.text):
            check_link(link)


def check_link(link: Piece) -> None:
    file, _, place = link.text.partition("#")
    target = (ROOT / link.document).parent / file
    assert target.exists(), f"{link}: no {file}"
    if place:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
        known = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert place in known, f"{link}: no heading {place}"


@pytest.mark.parametrize("target", ["docs/none.md", "docs/service.md#no-such-heading"])
def test_a_wrong_link_is_noticed(target: str) -> None:
    with pytest.raises(AssertionError):
        check_link(Piece("README.md", 1, target))


def test_changelog_and_citation_know_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, *_ = re.findall(r"^## \[([\d.]+)\]", changes, flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest == citation["version"] == samr1_verl.__version__


def test_continuous_integration_runs_the_one_command() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()
