"""What several folders of tests share: tiny checkpoints, artifacts built from them, golden files."""

from __future__ import annotations

import difflib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import qtool
from support.fixtures import Artifacts, Checkpoints, Golden
from support.tiny import TinyCheckpoint, write_tiny_checkpoint

os.environ.pop("QTOOL_CACHE", None)  # tests of builds build


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="write tests/golden anew instead of comparing with it"
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`tiny_checkpoint("qwen3", tied=False)`: one folder for each combination; read-only."""

    @cache
    def checkpoint(architecture: str = "qwen2", tied: bool = True) -> TinyCheckpoint:
        folder = tmp_path_factory.mktemp("checkpoint") / f"tiny-{architecture}"
        return write_tiny_checkpoint(folder, architecture=architecture, tied=tied)

    return checkpoint


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """`tiny_artifact("x64-int4", "qwen3", tied=False)`: built once for each combination; read-only."""

    @cache
    def artifact(target: str, architecture: str = "qwen2", tied: bool = True) -> Path:
        source = tiny_checkpoint(architecture, tied=tied).folder
        return qtool.build(source, target=target, output=tmp_path_factory.mktemp("artifact") / target).path

    return artifact


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden("plan.json", document)`: fails unless tests/golden/plan.json says the same.

    After an intended change, write the files anew with `pytest --update-goldens` and review what differs.
    """

    def compare(name: str, document: Any) -> None:
        path = Path(__file__).parent / "golden" / name
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        expected = path.read_text("utf-8") if path.is_file() else ""
        lines = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""
        )
        assert text == expected, "\n".join(["see tests/conftest.py: golden", *lines])

    return compare
