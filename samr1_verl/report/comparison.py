"""The comparison of two evaluations as one HTML file: differences, and the rows that changed most, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samr1_verl.report.gallery import Gallery
from samr1_verl.report.page import render
from samr1_verl.scoring.sample import Sample


def comparison_page(comparison: Mapping[str, Any], pairs: Sequence[tuple[Sample, Sample]]) -> tuple[str, list[str]]:
    """The HTML of a comparison, and messages about images that cannot be shown.

    Args:
        comparison: as `evaluation.compare.compare` returns it, with the names `a` and `b` of the evaluations.
        pairs: the samples of A and B by row, of at least the rows in `changed`.

    Raises:
        MaskError: a mask does not decode.
    """
    by_row = {a.index: (a, b) for a, b in pairs}
    shown = [by_row[row["row"]] for row in comparison["changed"]]
    gallery = Gallery(len({a.sha256 for a, _ in shown}))
    changes = [
        {**{key: row[key] for key in ("a", "b", "change")}, "sides": [gallery.sample(sample) for sample in sides]}
        for row, sides in zip(comparison["changed"], shown, strict=True)
    ]
    figures = {key: value for key, value in comparison.items() if key != "changed"}
    data = {"comparison": figures, "changes": changes, **gallery.as_json()}
    return render("compare", f"{comparison['a']} and {comparison['b']}", data), gallery.problems
