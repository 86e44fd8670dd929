"""`qtool health`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.fixtures import Artifacts

from .conftest import Invoke


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


def test_a_healthy_artifact(invoke: Invoke, artifact: Path) -> None:
    result = invoke("health", artifact, "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["check", "value", "threshold"]
    assert lines[1] == ["ok", "tokens", "16", "at", "least", "16"]
    assert {line[0] for line in lines[1:]} == {"ok"}


def test_a_threshold_that_is_not_met(invoke: Invoke, artifact: Path) -> None:
    result = invoke("health", artifact, "--min-decode-rate", 1e9, "--max-time-to-first-token", 600)
    assert result.exit_code == 13
    assert "FAILED  decode_rate " in result.stdout
    assert "at least 1,000,000,000" in result.stdout
    assert f"error: {artifact} is not healthy: decode_rate is " in result.stderr


def test_json(invoke: Invoke, artifact: Path) -> None:
    result = invoke("health", artifact, "--json", "--max-resident-bytes", 1)
    assert result.exit_code == 13
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [check["name"] for check in report["checks"] if not check["ok"]] == ["resident_bytes"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--min-decode-rate", 0], 9, "min_decode_rate is 0.0; valid"),
        (["--min-decode-rate", "fast"], 2, "'fast' is not a valid float"),
        (["--context", 9999], 9, "context is 9999"),
        (["--provider", "tpu"], 8, "'tpu' is unknown"),
    ],
)
def test_options_that_cannot_be(
    invoke: Invoke, artifact: Path, options: list[object], code: int, message: str
) -> None:
    result = invoke("health", artifact, *options)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
