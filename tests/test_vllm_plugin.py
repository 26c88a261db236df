"""The vLLM plug-in with stand-ins for vLLM's modules; tests/vllm/ has the real ones."""

import sys
from importlib.metadata import distribution
from types import ModuleType, SimpleNamespace

import pytest

from samr1_verl.vllm_plugin import keep_linear_weights


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Put a vLLM in place whose platform is, or is not, the CPU; returns its `_custom_ops`."""

    def install(*, cpu: bool, **flags: bool) -> ModuleType:
        package, platforms, operators = (ModuleType(f"vllm{part}") for part in ("", ".platforms", "._custom_ops"))
        package.__version__ = "9.9"
        platforms.current_platform = SimpleNamespace(is_cpu=lambda: cpu)
        operators.__dict__.update(flags)
        for module in (package, platforms, operators):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return operators

    return install


def test_turns_onednn_off_on_the_cpu(pretend) -> None:
    operators = pretend(cpu=True, _supports_onednn=True)
    keep_linear_weights()
    keep_linear_weights()
    assert operators._supports_onednn is False


def test_changes_and_imports_nothing_elsewhere(pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    operators = pretend(cpu=False, _supports_onednn=True)
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", None)  # importing it raises
    before = dict(operators.__dict__)
    keep_linear_weights()
    assert operators.__dict__ == before


def test_names_a_vllm_that_lacks_the_flag(pretend) -> None:
    pretend(cpu=True)
    with pytest.raises(RuntimeError, match=r"_supports_onednn: .*vLLM 9\.9.* 0\.24\.0"):
        keep_linear_weights()


def test_vllm_finds_it_by_its_entry_point() -> None:
    (point,) = distribution("samr1-verl").entry_points.select(group="vllm.general_plugins")
    assert point.load() is keep_linear_weights
