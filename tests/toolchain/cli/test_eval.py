"""`qtool eval`, and the options of `qtool build` that measure."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from qtool_runtime import manifest
from support.fixtures import Artifacts, Checkpoints

from .conftest import Invoke


@pytest.fixture
def source(tiny_checkpoint: Checkpoints) -> Path:
    return tiny_checkpoint("qwen3").folder


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


@pytest.fixture
def reference(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-fp32", "qwen3")


def test_prints_a_table_with_the_source_last(
    invoke: Invoke, tiny_artifact: Artifacts, artifact: Path, source: Path
) -> None:
    int8 = tiny_artifact("x64-int8", "qwen3")
    result = invoke("eval", artifact, int8, "--against", source, "--tokens", 100)
    assert result.exit_code == 0, result.stderr
    title, _, *rows = result.stdout.splitlines()
    assert title == ("against tiny-qwen3 in float32, 100 tokens of qtool's own text in windows of 256")
    assert rows[0].split() == [
        "artifact",
        "size",
        "KL",
        "mean",
        "s.e.",
        "median",
        "p99",
        "top-1",
        "perplexity",
    ]
    assert [row.split()[0] for row in rows[1:]] == ["x64-int4", "x64-int8", "the"]
    assert float(rows[1].split()[3]) > float(rows[2].split()[3]) > 0
    assert "evaluate: 100%\n" in result.stderr
    assert "peak memory " in result.stderr


def test_json_and_html_are_the_same_report(
    invoke: Invoke, artifact: Path, reference: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    result = invoke("eval", artifact, "--against", reference, "--tokens", 100, "--json", "--html", page)
    report = json.loads(result.stdout)
    assert report["tokens"] == 100
    (found,) = report["artifacts"]
    assert found["artifact"] == str(artifact)
    assert found["kl"].keys() == {"mean", "standard_error", "median", "p99"}
    assert f"{found['kl']['mean']:.4g}" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--text", "missing.txt"], 3, "cannot read 'missing.txt'"),
        (["--tokens", "50"], 2, "50 is not in the range x>=64"),
        (["--provider", "npu"], 8, "the provider 'npu' is unknown"),
        (["--provider", "cuda"], 8, "needs CUDAExecutionProvider"),
        (["--html", "missing/report.html"], 11, "the report missing/report.html cannot be written"),
        (["--tokens", "100000"], 3, "is too short: it has"),
    ],
)
def test_refusals(
    arguments: list[str], code: int, message: str, invoke: Invoke, artifact: Path, reference: Path
) -> None:
    result = invoke("eval", artifact, "--against", reference, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_kernels_that_are_not_there_are_refused_before_any_work(
    invoke: Invoke, artifact: Path, source: Path
) -> None:
    result = invoke("eval", artifact, "--against", source, "--kernels", "none")
    assert result.exit_code in (9, 10)  # none of that name, or no package of kernels
    assert "kernels" in result.stderr
    assert "export" not in result.stderr


def test_a_text_that_is_no_text(invoke: Invoke, artifact: Path, reference: Path) -> None:
    result = invoke("eval", artifact, "--against", reference, "--text", artifact / "model.onnx")
    assert result.exit_code == 3
    assert "the text 'model.onnx' is " in result.stderr


def test_against_nothing_is_for_the_embedded_model(invoke: Invoke, artifact: Path) -> None:
    result = invoke("eval", artifact)
    assert result.exit_code == 3
    assert "cannot be compared with nano: its vocabulary has 320 tokens" in result.stderr
    assert "--against" in result.stderr


def test_a_build_can_measure(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["build", source, "-t", "x64-int8", "-o", output, "--evaluation-tokens", 100]
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    quality = manifest.read(output).quality
    assert quality is not None
    figures = f"KL {quality.kl_mean:.4g} ± {quality.kl_standard_error:.1g}, top-1 "
    assert result.stdout.splitlines()[1].startswith(f"{output}  {figures}")
    assert figures in invoke("inspect", output).stdout
    report = json.loads(invoke(*command, "--force", "--json").stdout)
    assert report["quality"] == asdict(quality)


def test_a_missed_gate_is_exit_14_and_nothing_written(invoke: Invoke, source: Path, tmp_path: Path) -> None:
    command = ["build", source, "-t", "x64-int4", "-o", tmp_path / "out", "--evaluation-tokens", 100]
    result = invoke(*command, "--max-kl", "0.00001", "--min-top1", "0.999")
    assert (result.exit_code, result.stdout) == (14, "")
    assert "the gate is 1e-05; top-1 agreement is " in result.stderr
    assert "hint: Try the target x64-int8 (8 bits, " in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert invoke(*command, "--max-kl", "100").exit_code == 0


@pytest.mark.parametrize("option", ["--max-kl=0", "--max-kl=-1", "--min-top1=1.5", "--max-size=0"])
def test_gates_out_of_range_are_wrong_usage(
    option: str, invoke: Invoke, source: Path, tmp_path: Path
) -> None:
    assert invoke("build", source, "-t", "x64-int4", "-o", tmp_path / "out", option).exit_code == 2


def test_targets_show_their_gates(invoke: Invoke, tmp_path: Path) -> None:
    assert "gates          none\n" in invoke("targets", "x64-int4").stdout
    file = tmp_path / "strict.toml"
    lines = [
        'name = "strict"',
        'description = "held"',
        *("[execution]", 'provider = "cpu"', 'minimum_onnxruntime = "1.23"'),
        *("[weights]", "bits = 4"),
        *("[precision]", 'activations = "float32"', 'kv_cache = "float32"'),
        *("[memory]", "context = 256", "budget_mb = 900"),
        *("[gates]", "max_kl = 0.1", "min_top1 = 0.8", "max_size_mb = 400"),
    ]
    file.write_text("\n".join(lines))
    shown = "gates          KL at most 0.1, top-1 at least 80.0%, size at most 400 MB\n"
    assert shown in invoke("targets", file).stdout
