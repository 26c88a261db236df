"""The doctor passes where a run would work, and finds what verl and Hydra hide."""

import re

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.preflight import doctor, probe
from tests.row_files import write_rows

# Makes one module fail to import in every fresh interpreter.
BROKEN_OBJECTIVE = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "samr1_verl.training.objective":
            raise RuntimeError("broken on purpose")

sys.meta_path.insert(0, Broken())
"""


@pytest.fixture
def ready(tmp_path, random_policy, small_sam) -> list[str]:
    """Overrides with which everything that samr1_tiny needs is there."""
    rows = write_rows(tmp_path / "rows.parquet")
    return [
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        f"actor_rollout_ref.model.path={random_policy}",
        f"samr1.segmenter.path={small_sam}",
    ]


@pytest.fixture
def imported(monkeypatch) -> None:
    """The report comes from this process, which has imported verl: a fresh interpreter spends 6 seconds on that."""
    monkeypatch.setattr(doctor, "_probe", probe.probe)


SIZES = ("--host-gb", "100", "--disk-gb", "100")  # what is free here depends on the tests beside this one


def run(recipe: str, *overrides: str):
    result = CliRunner().invoke(app, ["doctor", "--recipe", recipe, *SIZES, *overrides])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.slow
def test_status_0_only_when_everything_holds(ready):
    result = run("samr1_tiny", *ready)
    assert result.exit_code == 0, result.output
    assert "✗" not in result.output and result.output.count("✓") >= 12
    assert re.search(r"\+recipe=samr1_tiny .*recipes/recipe/samr1_tiny\.yaml", result.output)


def test_a_missing_input_and_a_wrong_value_say_what_to_type(imported, ready, tmp_path):
    result = run("samr1_tiny", *ready, f"data.train_files={tmp_path / 'gone.parquet'}")
    assert result.exit_code == 1 and f"data.train_files: {tmp_path / 'gone.parquet'}: " in result.output
    assert "Type: make data" in result.output and "✓ model" in result.output


@pytest.mark.thorough
def test_a_plug_in_that_verl_hides_shows_its_traceback(ready, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(BROKEN_OBJECTIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run("samr1_tiny", *ready)
    assert result.exit_code == 1
    assert "✗ plug-in" in result.output and "RuntimeError: broken on purpose" in result.output
    assert "plugin.py" in result.output


def test_a_recipe_that_hydra_would_take_for_a_plain_value_is_found_out(imported, ready):
    result = run("samr2", *ready)
    assert result.exit_code == 1
    assert "✗ +recipe=samr2" in result.output and "Known recipes: samr1, samr1_3b_1x80" in result.output


@pytest.mark.thorough
def test_another_distribution_that_hides_every_hydra_plug_in_is_found_out(ready, tmp_path, monkeypatch):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run("samr1_tiny", *ready)
    assert result.exit_code == 1 and "Hydra plug-in of samr1-verl" in result.output


def test_a_file_that_hides_our_recipe_is_noticed_and_a_recipe_of_ones_own_is_not():
    ours, other = ["samr1", "pkg://recipes/recipe/samr1.yaml"], ["main", "file:///there/recipe/samr1.yaml"]
    report = {"sources": [other, ours], "compose_error": None, "recipes": ["samr1"]}
    assert "/there/recipe/samr1.yaml (from main) hides pkg://recipes" in doctor._recipe("samr1", report).problems[0]
    for sources in ([other], [ours], [ours, other]):
        assert doctor._recipe("samr1", {**report, "sources": sources}).problems == []


def test_an_override_that_does_not_compose_is_shown(imported, ready):
    result = run("samr1_tiny", *ready, "samr1.no_such_key=1")
    assert result.exit_code == 1 and "no_such_key" in result.output


def test_versions_that_do_not_fit_name_what_to_install(monkeypatch):
    wanted = ["verl>=99", "no-such-package>=1", "torch>=2.11", "sam; extra == 'x'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    found = doctor._versions()
    assert len(found.problems) == 2
    assert re.search(r"verl is [\d.]+, .*>=99.* pip install 'verl>=99'", found.problems[0])
    assert "no-such-package" in found.problems[1] and ">=1" in found.problems[1]


def test_an_environment_that_keeps_plug_ins_out_is_noticed(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    assert "unset VERL_USE_EXTERNAL_PLUGINS" in doctor._entry_point().problems[0]
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other, samr1")
    assert doctor._entry_point().problems == []
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    assert "--force-reinstall" in doctor._entry_point().problems[0]
