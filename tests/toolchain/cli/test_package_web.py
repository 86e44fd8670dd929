"""`qtool package --web`: what it prints, and what it refuses. What it writes: tests/toolchain/web."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qtool
from support.places import node_modules

from .conftest import Invoke


@pytest.fixture(scope="module")
def web_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qtool.build(target="web-int4", output=tmp_path_factory.mktemp("web") / "nano-web-int4").path


def test_command_writes_the_folder(invoke: Invoke, web_artifact: Path, tmp_path: Path) -> None:
    installed = node_modules()
    where = ["--node-modules", installed] if installed else []
    folder = tmp_path / "page"
    result = invoke("package", web_artifact, "--web", folder, *where)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{folder}  ")
    assert "http.server" in result.stderr
    again = invoke("package", web_artifact, "--web", folder, *where)
    assert again.exit_code == 11 and "exists already" in again.stderr
    result = invoke("package", web_artifact, "--web", folder, *where, "--force", "--json")
    report = json.loads(result.stdout)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert report == {"path": str(folder), "files": len(sizes), "bytes": sum(sizes)}
    (folder / "holiday.jpg").touch()
    result = invoke("package", web_artifact, "--web", folder, *where, "--force")
    assert result.exit_code == 11 and "'holiday.jpg'" in result.stderr
    assert (folder / "holiday.jpg").exists()


def test_command_asks_what_to_make(invoke: Invoke, web_artifact: Path) -> None:
    result = invoke("package", web_artifact)
    assert result.exit_code == 2 and "--archive and --web" in result.stderr


def test_missing_libraries_end_with_their_exit_code(
    invoke: Invoke, web_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = invoke("package", web_artifact, "--web", tmp_path / "page")
    assert result.exit_code == 10
    assert "needs the npm package onnxruntime-web@" in result.stderr and "--fetch" in result.stderr


@pytest.mark.parametrize("option", [["--fetch"], ["--node-modules", "libraries"]])
def test_options_of_pages_go_with_pages(invoke: Invoke, web_artifact: Path, option: list[str]) -> None:
    result = invoke("package", web_artifact, "--archive", "model.zip", *option)
    assert result.exit_code == 2 and "go with --web" in result.stderr
