"""How the page is put together: which curves it draws, what it embeds, how large it may get."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import make_run
from samr1_verl.answers import Reason
from samr1_verl.report.gallery import PIXELS, Gallery
from samr1_verl.report.page import STATIC, as_block, bundle, report
from samr1_verl.report.panels import panels_of
from samr1_verl.report.run import read_run

LOGGED = {
    "reward/score": ("Reward", "reward"),
    "reward/seg": ("Terms of the reward", "seg"),
    "reward/acc": ("Mask IoU", "IoU"),
    "reward/answer/not_json": ("Unusable answers", "not_json"),
    "critic/groups/zero_advantage_frac": ("Groups without a gradient", "share"),
    "val-core/shapes/giou/lisa": ("gIoU, shapes", "lisa"),
    "val-core/a/b/ciou/segzero": ("cIoU, a/b", "segzero"),
    "val-core/shapes/acc/mean@1": ("Mask IoU, shapes", "mean@1"),
    "val-aux/shapes/reward/mean@1": ("Reward, shapes", "mean@1"),
    "val-aux/shapes/answer/no_answer/mean@1": ("Unusable answers, shapes", "no_answer"),
    "actor/kl_loss": ("KL to the reference", "KL"),
    "actor/pg_clipfrac_high": ("Clip fractions", "high"),
    "response_length/mean": ("Response length", "mean"),
    "actor/entropy": ("Entropy", "entropy"),
    "actor/grad_norm": ("Gradient norm", "norm"),
    "reward/seconds/mean": ("Reward latency", "mean"),
    "reward/exposed_seconds": ("Time added by the reward", "seconds"),
    "reward/step_share": ("Share of a step", "share"),
    "service/cache_hits": ("Embedding cache", "service/cache_hits"),
    "timing_s/step": ("Seconds of a step", "step"),
}
NOT_DRAWN = (
    "reward/intersection",
    "reward/ignored",
    "reward/ignored_predicted",
    "val-aux/num_turns/mean",
    "perf/mfu/actor",
)


def test_every_curve_that_a_reader_asks_for_has_its_panel():
    curves = {tag: {1: 0.5} for tag in (*LOGGED, *NOT_DRAWN)}
    drawn = {series.tag: (panel.title, series.label) for panel in panels_of([curves]) for series in panel.series}
    assert drawn == LOGGED


def test_reasons_that_never_held_are_named_and_not_drawn():
    curves = {f"reward/answer/{reason.value}": {1: 0.0, 2: 0.0} for reason in Reason}
    (panel,) = panels_of([curves, {"reward/answer/outside": {1: 0.1}}])
    assert [series.label for series in panel.series] == ["outside"]
    assert panel.note.endswith("Never: " + ", ".join(sorted(one.value for one in Reason if one.value != "outside")))


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a\u2028b", "<img>", '"\\', "\x00\x1f"])
def test_data_cannot_end_its_element(text):
    block = as_block({"text": text})
    assert "<" not in block and json.loads(block) == {"text": text}


@pytest.mark.parametrize(
    ("page", "tests"),
    [("report", "test_controls.py"), ("playground", "test_playground.py"), ("compare", "test_comparison.py")],
)
def test_every_control_of_a_page_is_used_in_the_browser(page, tests):
    controls = re.findall(r"<(?:button|input|select)[^>]* id=\"([\w-]+)\"", (STATIC / f"{page}.jinja").read_text())
    used = (Path(__file__).parent / tests).read_text()
    layers = [name for name in controls if name.startswith("layer-")]
    assert len(layers) >= 3 and "#layer-{layer}" in used
    assert [name for name in controls if name not in layers and f"#{name}" not in used] == []


@pytest.mark.parametrize("name", ["report", "playground", "compare"])
def test_the_bundle_holds_every_module_once_after_what_it_needs(name):
    script = bundle(name)
    found = re.findall(r"^const (\w+)_js = \(\(\) => \{$", script, re.MULTILINE)
    assert len(found) == len(set(found)) and found[-1] == name
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    for module in found:
        for needed in re.findall(r'from "\./(\w+)\.js"', (STATIC / f"{module}.js").read_text()):
            assert found.index(needed) < found.index(module)


def test_the_page_names_no_other_place(run):
    page, problems = report([run])
    assert problems == []
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert re.search(r"""default-src 'none'; script-src 'sha256-[^' ]+'; style-src""", page.replace("&#39;", "'"))


def test_two_runs_of_one_name_are_told_apart(run):
    elsewhere = replace(run, folder=run.folder.parent / "elsewhere" / run.folder.name)
    for page, named in ((report([run])[0], [run.name]), (report([run, elsewhere])[0], [run.folder, elsewhere.folder])):
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        assert [one["name"] for one in data["runs"]] == list(map(str, named))


@pytest.mark.thorough
def test_a_long_run_stays_below_ten_megabytes(tmp_path):
    make_run(tmp_path, steps=200, rows=10)
    page, _ = report([read_run(tmp_path)])
    assert 1e6 < len(page.encode()) <= 10e6


def test_many_images_share_a_bounded_number_of_pixels(run):
    gallery = Gallery(images=2000)
    one = run.samples[1][0]
    gallery.sample(one)
    width, height = gallery.images[0]["size"]
    assert 2000 * width * height <= PIXELS
    assert (width / height) == pytest.approx(one.size[1] / one.size[0], rel=0.05)
