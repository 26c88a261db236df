"""The command `samr1 serve`, where it refuses to start. tests/service/test_http_client.py starts it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from samr1_verl.cli import app
from samr1_verl.service.guard import is_loopback
from samr1_verl.service.wire import TOKEN_VARIABLE


def serve(*arguments: str) -> str:
    outcome = CliRunner(env={"COLUMNS": "1000"}).invoke(app, ["serve", *arguments])
    assert outcome.exit_code == 2, outcome.output
    return " ".join(outcome.output.split())


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "::", "gpu-box"])
def test_an_address_that_others_reach_needs_a_token(monkeypatch, host):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert f"Set {TOKEN_VARIABLE} to a token first" in serve("--backend", "onnx", "--path", "weights", "--host", host)
    assert not is_loopback(host)


def test_loopback_needs_none():
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"))


def test_what_the_segmenter_lacks_is_said(tmp_path):
    assert "no file" in serve("--backend", "onnx", "--path", str(tmp_path))
    assert "this version has onnx, segment_anything, transformers" in serve("--backend", "sam9", "--path", "weights")
    assert "does not import" in serve("--backend", "no.such.module", "--path", "weights")
    assert "samr1.segmenter.service.cache_dtype" in serve(
        "--backend", "onnx", "--path", "weights", "--cache-dtype", "int8"
    )


def test_https_needs_a_certificate_and_its_key(tmp_path):
    certificate = tmp_path / "certificate.pem"
    certificate.write_text("")
    files = ("--backend", "onnx", "--path", str(tmp_path), "--ssl-certfile", str(certificate))
    assert "HTTPS needs both" in serve(*files)
    assert "gone.pem is no file" in serve(*files, "--ssl-keyfile", str(tmp_path / "gone.pem"))
