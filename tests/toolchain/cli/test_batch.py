"""`qtool batch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qtool_runtime
from support.fixtures import Artifacts

from .conftest import Invoke

LINES = ["Hello world", "the world", "Hello", "world, hello the world"]
GREEDY = ["--temperature", 0, "--max-tokens", 8]


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_every_line_is_answered_in_order(invoke: Invoke, artifact: Path, prompts: Path) -> None:
    result = invoke("batch", artifact, prompts, "--at-once", 2, *GREEDY)
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [report["prompt"] for report in reports] == LINES
    with qtool_runtime.load(artifact) as model:
        for report in reports:
            message = {"role": "user", "content": report["prompt"]}
            assert report["text"] == model.chat([message], temperature=0, max_tokens=8).read()
            assert report["stop_reason"] in ("length", "eos")


def test_raw_prompts_from_standard_input(invoke: Invoke, artifact: Path) -> None:
    result = invoke("batch", artifact, "-", "--raw", *GREEDY, input="\n".join(LINES[:2]))
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    with qtool_runtime.load(artifact) as model:
        assert [report["text"] for report in reports] == [
            model.generate(line, max_tokens=8).read() for line in LINES[:2]
        ]


def test_no_lines_and_no_file(invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
    result = invoke("batch", artifact, "-", input="")
    assert result.exit_code == 9
    assert "there are no prompts" in result.stderr
    assert invoke("batch", artifact, tmp_path / "missing.txt").exit_code == 2
