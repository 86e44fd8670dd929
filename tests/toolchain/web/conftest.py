"""A packaged page of the embedded model, in Node.js and in a browser; tests say which of these is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qtool
import qtool_runtime
from qtool.web.page import package_web
from support.browser import find_chromium
from support.fixtures import Node
from support.places import node_modules


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium (Debian: apt install chromium; or name one in QTOOL_CHROMIUM)")
    return path


@pytest.fixture(scope="session")
def web_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model for browsers; read-only."""
    return qtool.build(target="web-int4", output=tmp_path_factory.mktemp("web") / "nano-web-int4").path


@pytest.fixture(scope="session")
def page_folder(web_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page; read-only."""
    folder = tmp_path_factory.mktemp("page") / "page"
    return package_web(web_artifact, folder, node_modules=node_modules()).path


@pytest.fixture(scope="session")
def python_model(web_artifact: Path) -> qtool_runtime.Model:
    """The same artifact in the Python runtime."""
    return qtool_runtime.load(web_artifact, provider="cpu")


@pytest.fixture(scope="session")
def node(page_folder: Path) -> Iterator[Node]:
    """`node("encode", texts=[...])`: what tasks.mjs returns for a task, run with the page's own modules."""
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("no Node.js")
    command = [executable, str(Path(__file__).parent / "tasks.mjs"), str(page_folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def run(task: str, **parameters: Any) -> Any:
            print(json.dumps({"task": task, **parameters}), file=process.stdin, flush=True)
            reply = json.loads(process.stdout.readline())
            assert "failure" not in reply, reply["failure"]
            return reply["result"]

        yield run
        process.stdin.close()
