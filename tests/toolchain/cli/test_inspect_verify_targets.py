"""`qtool inspect`, `qtool verify` and `qtool targets`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qtool_targets
from qtool.emulate import comparison
from support.emulation import runtime_root
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


class TestEmulation:
    """What can be seen without an emulator; see also tests/integration/test_emulated.py."""

    @pytest.fixture
    def no_tools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

    @pytest.mark.usefixtures("no_tools")
    def test_without_qemu_it_says_what_to_install(self, invoke: Invoke, artifact: Path) -> None:
        result = invoke("verify", artifact, "--emulate", "arm64")
        assert result.exit_code == 15
        assert "error: qemu for 64-bit Arm programs is not installed" in result.stderr
        assert "hint: Run: apt-get install qemu-user-static" in result.stderr

    @pytest.mark.usefixtures("no_tools")
    def test_a_damaged_artifact_is_not_run(self, invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(artifact, tmp_path / "damaged")
        (folder / "generation_config.json").unlink()
        result = invoke("verify", folder, "--emulate", "arm64")
        assert result.exit_code == 7
        assert "generation_config.json" in result.stderr

    @pytest.mark.usefixtures("no_tools")
    def test_an_artifact_for_a_gpu_is_refused(self, invoke: Invoke, tiny_artifact: Artifacts) -> None:
        result = invoke("verify", tiny_artifact("cuda-int4"), "--emulate", "arm64")
        assert result.exit_code == 8
        assert "is for the provider 'cuda'" in result.stderr
        assert "arm64-int4" in result.stderr

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--processor", "max"),
            ("--prompt", "Hello"),
            ("--tokens", "4"),
            ("--threads", "1"),
            ("--timeout", "60"),
        ],
    )
    def test_its_options_do_nothing_alone_and_are_refused(
        self, invoke: Invoke, artifact: Path, option: str, value: str
    ) -> None:
        result = invoke("verify", artifact, option, value)
        assert result.exit_code == 2
        assert f"{option} goes with --emulate arm64" in result.stderr

    def test_an_unknown_processor_is_refused(self, invoke: Invoke, artifact: Path) -> None:
        result = invoke("verify", artifact, "--emulate", "arm64", "--processor", "cortex-m0")
        assert result.exit_code == 2
        assert "cortex-a76" in result.stderr

    @pytest.mark.emulated
    def test_emulated_processors_are_further_checks(self, invoke: Invoke, artifact: Path) -> None:
        runtime_root()
        arguments = ["verify", artifact, "--emulate", "arm64", "--processor", "max", "-n", 4]
        result = invoke(*arguments)
        assert result.exit_code == 0
        last = result.stdout.splitlines()[-1]
        assert last.startswith("passed   emulated max: 4 greedy tokens as on this processor, KL ")
        assert "running on max" in result.stderr
        document = json.loads(invoke(*arguments, "--json").stdout)
        assert document["passed"] is True
        assert [check["name"] for check in document["checks"]][-1] == "emulated max"
        (emulation,) = document["emulations"]
        assert emulation["comparison"]["same_tokens"] == 4

    @pytest.mark.emulated
    @pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
    def test_another_answer_is_exit_15(
        self, invoke: Invoke, artifact: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
    ) -> None:
        """The real figures, and a threshold that nothing can meet."""
        runtime_root()
        monkeypatch.setattr(comparison, "MOST_DIVERGENCE", -1.0)
        arguments = ["--emulate", "arm64", "--processor", "max", "-n", 2]
        result = invoke("verify", artifact, *arguments, *options)
        assert result.exit_code == 15
        assert "failed 1 of 5 checks: max: its probabilities are others: KL divergence " in result.stderr
        if options:
            assert json.loads(result.stdout)["passed"] is False
        else:
            assert result.stdout.splitlines()[-1].startswith("FAILED   emulated max: max: its probabilities")

    @pytest.mark.emulated
    def test_too_little_time_is_exit_15(self, invoke: Invoke, artifact: Path) -> None:
        runtime_root()
        arguments = ["--emulate", "arm64", "--processor", "max", "--timeout", 0.2]
        result = invoke("verify", artifact, *arguments)
        assert result.exit_code == 15
        assert "error: max was not done after 0.2 seconds" in result.stderr


class TestTargets:
    def test_lists_all(self, invoke: Invoke) -> None:
        profiles, evidence = (block.splitlines() for block in invoke("targets").stdout.rstrip().split("\n\n"))
        for lines in (profiles, evidence):
            assert [line.split()[0] for line in lines[1:]] == qtool_targets.names()
        assert "(legacy)" in next(line for line in profiles if line.startswith("directml-int4"))
        executed = {line.split()[0]: line for line in evidence}
        assert "nothing yet on cuda (every node compared with" in executed["cuda-fp16"]
        assert "onnxruntime-genai" in executed["x64-int4"]
        assert "emulated aarch64 Linux" in executed["arm64-int4"]

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
        for line in (*target.tested_on, *target.checked):
            assert f" {line}\n" in text

    def test_an_unknown_one_is_exit_5(self, invoke: Invoke) -> None:
        result = invoke("targets", "x86-int4")
        assert result.exit_code == 5
        assert "error: unknown target 'x86-int4'; known: android-arm64-int4, " in result.stderr
        assert "hint: " in result.stderr
