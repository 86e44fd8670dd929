"""`qtool build`."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest

import qtool_targets
from qtool_runtime import manifest
from support.fixtures import Checkpoints
from support.kernels import require_int8_kv_cache

from .conftest import Invoke


@pytest.fixture
def source(tiny_checkpoint: Checkpoints) -> Path:
    return tiny_checkpoint("qwen3").folder


def test_writes_an_artifact_and_says_where(
    invoke: Invoke, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("build", source, "--target", "x64-int4")
    assert result.exit_code == 0, result.stderr
    size = sum(entry.size for entry in manifest.read("tiny-qwen3-x64-int4").files)
    assert result.stdout.startswith(f"tiny-qwen3-x64-int4  {size / 1e6:.1f} MB, planned peak on the device ")
    assert result.stdout.count("\n") == 1  # progress is on stderr
    assert result.stderr.startswith("export\n")
    assert "quantize: 100%\n" in result.stderr
    assert "qtool run tiny-qwen3-x64-int4" in result.stderr


def test_json_holds_path_size_and_memory(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = json.loads(invoke("build", source, "-t", "x64-int8", "-o", output, "--json").stdout)
    document = manifest.read(output)
    keys = {
        *("path", "size", "seconds", "target", "context", "recipe"),
        *("memory", "planned_size", "quality", "from_cache"),
    }
    assert report.keys() == keys
    assert report["from_cache"] is False
    assert report["quality"] is None
    assert report["path"] == str(output)
    assert report["size"] == sum(entry.size for entry in document.files)
    assert (report["target"], report["context"]) == ("x64-int8", 256)
    assert report["memory"] == asdict(document.memory)
    assert 0 < report["seconds"] < 60


def test_all_builds_every_target_below_the_output(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    result = invoke("build", source, "-t", "all", "-o", tmp_path / "all", "--json")
    assert result.exit_code == 0, result.stderr
    reports = json.loads(result.stdout)
    assert [report["target"] for report in reports] == qtool_targets.names()
    for report in reports:
        assert manifest.read(report["path"]).target["name"] == report["target"]
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        f"tiny-qwen3-{name}" for name in qtool_targets.names()
    }


def test_targets_for_which_a_recipe_changes_nothing_are_named(invoke: Invoke, source: Path) -> None:
    result = invoke("build", source, "-t", "all", "--recipe", "best", "--target-bpw", "4.8", "--plan")
    assert result.exit_code == 0, result.stderr
    assert (
        "best changes nothing for cuda-fp16, directml-fp16, x64-fp32: as with the recipe fast"
        in result.stderr
    )
    assert "changes nothing" not in invoke("build", source, "-t", "all", "--plan").stderr


def test_a_target_file_of_the_users(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    text = (resources.files(qtool_targets) / "x64-int4.toml").read_text("utf-8")
    file.write_text(text.replace('"x64-int4"', '"board"').replace("bits = 4", "bits = 8"))
    assert invoke("build", source, "-t", file, "-o", tmp_path / "out").exit_code == 0
    file.unlink()  # an artifact never needs its target file again
    document = manifest.read(tmp_path / "out")
    assert document.target["name"] == "board"
    assert {group.bits for group in document.quantization} == {8}


def test_an_int8_cache_is_planned_built_and_shown(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    require_int8_kv_cache()
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven\n" * 50)
    command = ["build", source, "-t", "x64-int4", "-o", tmp_path / "out", "--kv-cache", "int8"]
    command += ["--calibration", text]
    plan = json.loads(invoke(*command, "--plan", "--json").stdout)
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "\ncalibrate\npackage\n" in result.stderr
    facts = dict(line.split("  ", 1) for line in invoke("inspect", tmp_path / "out").stdout.splitlines()[:12])
    cache = f"int8, {plan['kv_bytes_per_token']:,} bytes a token, updated in place"
    assert facts["KV cache"].strip() == cache
    assert facts["calibrated"].startswith("on ")
    float32 = json.loads(invoke("build", source, "-t", "x64-int4", "--plan", "--json").stdout)
    assert float32["kv_bytes_per_token"] == 4 * plan["kv_bytes_per_token"]


@pytest.mark.parametrize(
    ("target", "command"), [("x64-int4", "qtool run "), ("web-int4", "qtool package ")], ids=["cpu", "web"]
)
def test_says_how_to_run_it(target: str, command: str, invoke: Invoke, source: Path, tmp_path: Path) -> None:
    result = invoke("build", source, "-t", target, "-o", tmp_path / "out")
    assert f"run it: {command}{tmp_path / 'out'} " in result.stderr


class TestPlan:
    def test_writes_nothing(self, invoke: Invoke, source: Path, tmp_path: Path) -> None:
        result = invoke("build", source, "-t", "x64-int4", "-o", tmp_path / "out", "--plan")
        assert result.exit_code == 0
        assert list(tmp_path.iterdir()) == []
        facts = dict(line.split("  ", 1) for line in result.stdout.splitlines())
        assert facts["model"].strip() == "tiny-qwen3"
        assert facts["context"].strip() == "256 tokens"
        assert facts["fits"].strip() == "yes"
        assert result.stderr == ""

    def test_of_all_targets_is_a_table_or_a_list(self, invoke: Invoke, source: Path) -> None:
        lines = invoke("build", source, "-t", "all", "--plan").stdout.splitlines()
        assert lines[0].split()[:2] == ["target", "context"]
        assert [line.split()[0] for line in lines[1:]] == qtool_targets.names()
        plans = json.loads(invoke("build", source, "-t", "all", "--plan", "--json").stdout)
        assert [plan["target"] for plan in plans] == qtool_targets.names()

    def test_says_when_a_model_does_not_fit(self, invoke: Invoke, source: Path, tmp_path: Path) -> None:
        plan = json.loads(invoke("build", source, "-t", tight(tmp_path), "--plan", "--json").stdout)
        assert plan["fits"] is False
        assert plan["device"]["peak"] > plan["device"]["budget"] == 20_000_000

    @pytest.mark.parametrize(("most", "verdict"), [("0.01", "0.01 MB, too large"), ("1GB", "1,000 MB")])
    def test_says_what_a_gate_of_size_allows(
        self, invoke: Invoke, source: Path, most: str, verdict: str
    ) -> None:
        lines = invoke("build", source, "-t", "x64-int4", "--plan", "--max-size", most).stdout.splitlines()
        (line,) = [line for line in lines if line.startswith("artifact ")]
        assert line.endswith(f" MB of at most {verdict}")

    def test_takes_a_context(self, invoke: Invoke, source: Path) -> None:
        plan = json.loads(
            invoke("build", source, "-t", "x64-int4", "--plan", "--json", "--context", 100).stdout
        )
        assert plan["context"] == 100
        assert plan["device"]["kv_cache"] == 100 * plan["kv_bytes_per_token"]


def tight(folder: Path) -> Path:
    """A target with too small a budget."""
    file = folder / "tight.toml"
    text = (resources.files(qtool_targets) / "x64-int4.toml").read_text("utf-8")
    file.write_text(text.replace('"x64-int4"', '"tight"').replace("budget_mb = 8000", "budget_mb = 20"))
    return file


def test_over_the_budget_is_exit_6_and_nothing_written(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    target = tight(tmp_path)
    result = invoke("build", source, "-t", target, "-o", tmp_path / "out")
    assert result.exit_code == 6
    assert "error: target tight: the device would need" in result.stderr
    assert "--ignore-budget" in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == [target]
    forced = invoke("build", source, "-t", target, "-o", tmp_path / "out", "--ignore-budget")
    assert forced.exit_code == 0


def test_an_existing_output_is_exit_11_until_forced(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    command = ["build", source, "-t", "x64-int4", "-o", tmp_path / "out"]
    assert invoke(*command).exit_code == 0
    first = (tmp_path / "out" / "manifest.json").stat().st_ino
    again = invoke(*command)
    assert again.exit_code == 11
    assert f"error: the output {tmp_path / 'out'} exists already" in again.stderr
    assert (tmp_path / "out" / "manifest.json").stat().st_ino == first
    assert invoke(*command, "--force").exit_code == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_ino != first
