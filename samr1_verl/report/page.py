"""Builds one HTML file from the page's modules, style and data. The file makes no request.

A content security policy in the page forbids all requests. It allows only the script and the style that are in the
page, by their SHA-256. So text that became markup by an error would not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from samr1_verl import __version__
from samr1_verl.report.gallery import Gallery
from samr1_verl.report.panels import panels_of
from samr1_verl.report.run import Curve, Run

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const) (\w+))", re.MULTILINE)


def report(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The HTML of one run or of two runs side by side, and messages about images that cannot be shown.

    Raises:
        MaskError: a sample's mask does not decode.
    """
    everything = [sample for run in runs for samples in run.samples.values() for sample in samples]
    gallery = Gallery(len({sample.sha256 for sample in everything}))
    panels = panels_of([run.curves for run in runs])
    tags = {series.tag for panel in panels for series in panel.series}
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    shown = [
        {
            "name": name,
            "steps": max([step for curve in run.curves.values() for step in curve] + list(run.samples)),
            "curves": {tag: _columns(curve) for tag, curve in run.curves.items() if tag in tags},
            "samples": {step: gallery.step(samples) for step, samples in run.samples.items()},
        }
        for name, run in zip(names, runs, strict=True)
    ]
    data = {"runs": shown, "panels": [panel.as_json() for panel in panels], **gallery.as_json()}
    return render("report", " and ".join(names), data), gallery.problems


def render(name: str, title: str, data: Any, connect: str = "'none'") -> str:
    """The HTML of a page: NAME.jinja with style.css, NAME.js and the modules that it imports.

    Args:
        name: `report`, `playground` or `compare`.
        title: title of the page; any text.
        data: data for the page's script; JSON values.
        connect: addresses that the script may request, as a source expression of the content security policy.
    """
    script, style = bundle(name), (STATIC / "style.css").read_text()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    pages = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)
    return pages.get_template(f"{name}.jinja").render(
        title=title,
        policy=policy,
        script=Markup(script),
        style=Markup(style),
        data=Markup(as_block(data)),
        version=__version__,
    )


def bundle(name: str) -> str:
    """The module NAME.js and all modules that it imports, as one script.

    Each module is the body of a function, after the modules that it imports. Two forms of module syntax are supported,
    each on its own line: `import {…} from "./MODULE.js";`, and `export` before `function` or `const`.
    """
    done: dict[str, str] = {}

    def add(module: str) -> None:
        source = (STATIC / f"{module}.js").read_text()
        for _, needed in _IMPORT.findall(source):
            if needed not in done:
                add(needed)
        body = _EXPORT.sub("", _IMPORT.sub(r"const \1 = \2_js;", source))
        done[module] = (
            f"const {module}_js = (() => {{\n{body}return {{{', '.join(_EXPORT.findall(source))}}};\n}})();\n"
        )

    add(name)
    return "".join(done.values())


def as_block(data: Any) -> str:
    """JSON for a script element of type application/json: without `<`, which could end it or start a comment."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _columns(curve: Curve) -> list[list[Any]]:
    """The steps and the values of a curve; None: not finite, which JSON cannot hold."""
    return [list(curve), [value if math.isfinite(value) else None for value in curve.values()]]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
