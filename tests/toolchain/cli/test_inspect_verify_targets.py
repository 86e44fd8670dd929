"""`qtool inspect`, `qtool verify` and `qtool targets`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qtool_targets
from support.fixtures import Artifacts

from .conftest import Invoke


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


class TestInspect:
    def test_shows_what_is_inside(self, invoke: Invoke, artifact: Path) -> None:
        result = invoke("inspect", artifact)
        assert result.exit_code == 0
        assert result.stderr == ""
        for expected in (
            "tiny-qwen3",
            "qwen3, ",
            "2 layers",
            "cpu, onnxruntime >=",
            "256 tokens",
            "float32, 1,024 bytes a token, updated in place",
            "not measured",
            "model.onnx.data",
            "com.microsoft 1: ",
            "MatMulNBits x1",
        ):
            assert expected in result.stdout
        table = [line.split() for line in result.stdout.splitlines()]
        assert ["embedding", "4", "32", "asymmetric", "rtn", "1"] in [cells[:6] for cells in table]

    def test_json_is_the_manifest(self, invoke: Invoke, artifact: Path) -> None:
        document = json.loads(invoke("inspect", artifact, "--json").stdout)
        assert document == json.loads((artifact / "manifest.json").read_text("utf-8"))

    @pytest.mark.parametrize("target", qtool_targets.names())
    def test_every_kind_of_artifact(self, invoke: Invoke, tiny_artifact: Artifacts, target: str) -> None:
        result = invoke("inspect", tiny_artifact(target))
        assert result.exit_code == 0
        assert f"target    {target}" in result.stdout


class TestVerify:
    def test_a_whole_artifact(self, invoke: Invoke, artifact: Path) -> None:
        result = invoke("verify", artifact)
        assert (result.exit_code, result.stderr) == (0, "")
        statuses = [line.split(":")[0].split() for line in result.stdout.splitlines()]
        assert statuses == [["passed", name] for name in ("manifest", "files", "graph", "runtime")]

    def test_json(self, invoke: Invoke, artifact: Path) -> None:
        document = json.loads(invoke("verify", artifact, "--json").stdout)
        assert document["passed"] is True
        assert {check["status"] for check in document["checks"]} == {"passed"}

    @pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
    def test_a_damaged_artifact_is_exit_7_and_the_file_is_named(
        self, invoke: Invoke, artifact: Path, tmp_path: Path, options: list[str]
    ) -> None:
        folder = shutil.copytree(artifact, tmp_path / "damaged")
        content = bytearray((folder / "model.onnx.data").read_bytes())
        content[1000] ^= 4
        (folder / "model.onnx.data").write_bytes(content)
        result = invoke("verify", folder, *options)
        assert result.exit_code == 7
        assert "error: " in result.stderr
        assert "model.onnx.data has the SHA-256" in result.stderr
        assert "hint: Build or copy the artifact again." in result.stderr
        if options:
            assert json.loads(result.stdout)["passed"] is False
        else:
            assert "FAILED   file: model.onnx.data" in result.stdout


class TestTargets:
    def test_lists_all(self, invoke: Invoke) -> None:
        profiles, evidence = (block.splitlines() for block in invoke("targets").stdout.rstrip().split("\n\n"))
        for lines in (profiles, evidence):
            assert [line.split()[0] for line in lines[1:]] == qtool_targets.names()
        assert "(legacy)" in next(line for line in profiles if line.startswith("directml-int4"))
        executed = {line.split()[0]: line for line in evidence}
        assert "nothing yet on cuda (every node compared with" in executed["cuda-fp16"]
        assert "onnxruntime-genai" in executed["x64-int4"]

    def test_json_of_all_is_what_the_library_loads(self, invoke: Invoke) -> None:
        documents = json.loads(invoke("targets", "--json").stdout)
        assert documents == [qtool_targets.load(name).to_dict() for name in qtool_targets.names()]

    @pytest.mark.parametrize("name", qtool_targets.names())
    def test_shows_one(self, invoke: Invoke, name: str) -> None:
        target = qtool_targets.load(name)
        text = invoke("targets", name).stdout
        assert f"target         {name}\n" in text
        assert f"{target.memory.budget_mb:,} MB" in text
        assert json.loads(invoke("targets", name, "--json").stdout) == target.to_dict()

    def test_an_unknown_one_is_exit_5(self, invoke: Invoke) -> None:
        result = invoke("targets", "x86-int4")
        assert result.exit_code == 5
        assert "error: unknown target 'x86-int4'; known: android-arm64-int4, " in result.stderr
        assert "hint: " in result.stderr
