"""`qtool package`, `qtool cache`, `qtool matrix`, and the cache of `qtool build`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.fixtures import Artifacts

from .conftest import Invoke


class TestPackage:
    def test_writes_a_model_package(self, invoke: Invoke, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        folders = [tiny_artifact("x64-int4"), tiny_artifact("cuda-int4")]
        result = invoke("package", *folders, "--model-package", tmp_path / "package")
        assert result.exit_code == 0, result.stderr
        assert "2 variants" in result.stdout
        assert "CUDAExecutionProvider" in result.stdout
        report = invoke("package", *folders, "--model-package", tmp_path / "package", "--force", "--json")
        assert json.loads(report.stdout)["variants"]["x64-int4"] == "CPUExecutionProvider"

    def test_writes_an_archive(self, invoke: Invoke, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        artifact = tiny_artifact("android-arm64-int4")
        result = invoke("package", artifact, "--archive", tmp_path / "model.zip")
        assert result.exit_code == 0, result.stderr
        assert "fits: Google Play, one asset or AI pack, at most 1,500 MB" in result.stdout
        report = invoke("package", artifact, "--archive", tmp_path / "model.zip", "--force", "--json")
        document = json.loads(report.stdout)
        assert document["bytes"] == (tmp_path / "model.zip").stat().st_size
        assert all(store["fits"] for store in document["stores"])

    @pytest.mark.parametrize("options", [[], ["--archive", "a", "--model-package", "b"]])
    def test_one_thing_is_made_at_a_time(
        self, invoke: Invoke, options: list[str], tiny_artifact: Artifacts
    ) -> None:
        result = invoke("package", tiny_artifact("x64-int4"), *options)
        assert result.exit_code == 2
        assert "Say what to make" in result.stderr

    def test_an_archive_is_of_one_artifact(self, invoke: Invoke, tmp_path: Path) -> None:
        assert invoke("package", "a", "b", "--archive", tmp_path / "c").exit_code == 2

    def test_refusals_have_their_exit_codes(
        self, invoke: Invoke, tiny_artifact: Artifacts, tmp_path: Path
    ) -> None:
        artifact = tiny_artifact("x64-int4")
        assert invoke("package", tmp_path, "--model-package", tmp_path / "out").exit_code == 7
        assert invoke("package", artifact, "--model-package", tmp_path).exit_code == 11
        assert invoke("package", artifact, "--archive", tmp_path).exit_code == 11


class TestCache:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("QTOOL_CACHE_DIR", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_keeps_what_is_built_with_it(self, invoke: Invoke, tmp_path: Path, folder: Path) -> None:
        assert "0.0 MB of 20,000 MB" in invoke("cache").stdout
        build = ("build", "--target", "x64-int4", "--cache", "-o")
        assert "from the cache" not in invoke(*build, tmp_path / "one").stdout
        assert "from the cache" in invoke(*build, tmp_path / "other").stdout
        assert json.loads(invoke(*build, tmp_path / "third", "--json").stdout)["from_cache"] is True
        table = invoke("cache").stdout.splitlines()
        assert table[-1].startswith("nano      x64-int4  1.8 MB")
        (entry,) = json.loads(invoke("cache", "--json").stdout)["entries"]
        assert (folder / entry["key"] / "manifest.json").is_file()
        assert "1.8 MB dropped" in invoke("cache", "--clear").stdout
        assert json.loads(invoke("cache", "--clear", "--json").stdout)["freed"] == 0

    def test_is_off_unless_it_is_asked_for(
        self, invoke: Invoke, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert invoke("build", "--target", "x64-int4", "-o", tmp_path / "one").exit_code == 0
        monkeypatch.setenv("QTOOL_CACHE", "1")
        assert invoke("build", "--target", "x64-int4", "-o", tmp_path / "two", "--no-cache").exit_code == 0
        assert not folder.exists()
        assert invoke("build", "--target", "x64-int4", "-o", tmp_path / "three").exit_code == 0
        assert folder.is_dir()

    def test_a_damaged_entry_is_told_on_stderr(self, invoke: Invoke, tmp_path: Path, folder: Path) -> None:
        build = ("build", "--target", "x64-int4", "--cache", "-o")
        invoke(*build, tmp_path / "one")
        (entry,) = folder.iterdir()
        (entry / "tokenizer.json").write_text("{}")
        result = invoke(*build, tmp_path / "other")
        assert result.exit_code == 0
        assert "is damaged, and built again: " in result.stderr
        (entry / "manifest.json").write_text("{}")
        assert "(damaged)" in invoke("cache").stdout


class TestMatrix:
    def test_prints_what_a_step_can_put_out(self, invoke: Invoke) -> None:
        result = invoke("matrix", "Qwen/Qwen3-0.6B", "-t", "x64-int4", "-t", "arm64-int4")
        assert [job["name"] for job in json.loads(result.stdout)["include"]] == [
            "Qwen3-0.6B-x64-int4",
            "Qwen3-0.6B-arm64-int4",
        ]

    def test_takes_all_targets_by_default(self, invoke: Invoke) -> None:
        import qtool_targets

        result = invoke("matrix", "a/b", "--format", "gitlab")
        matrix = json.loads(result.stdout)["build"]["parallel"]["matrix"]
        assert [job["TARGET"] for job in matrix] == qtool_targets.names()

    def test_refuses_an_unknown_target(self, invoke: Invoke) -> None:
        assert invoke("matrix", "a/b", "-t", "x65").exit_code == 5


def test_plans_and_inspect_say_what_fits_which_phone(invoke: Invoke, tiny_artifact: Artifacts) -> None:
    (line,) = [
        line
        for line in invoke("build", "--target", "android-arm64-int4", "--plan").stdout.splitlines()
        if line.startswith("phones ")
    ]
    assert "4 GB: 4,096 tokens; 6 GB: 4,096 tokens; 8 GB: 4,096 tokens; with 50% of the memory" in line
    assert "phones    4 GB: " in invoke("inspect", tiny_artifact("android-arm64-int4")).stdout
    assert "phone" not in invoke("inspect", tiny_artifact("x64-int4")).stdout
