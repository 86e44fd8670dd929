"""The `optimum` exporter's artifacts keep the contract: valid ONNX, a true manifest, reproducible bytes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import onnx
import pytest

import qtool
import qtool_targets
from qtool.jobs import plan_jobs
from qtool_runtime import manifest
from qtool_runtime.integrity import find_problems
from support.fixtures import Artifacts, Checkpoints

pytest.importorskip("optimum.exporters.onnx", reason="the exporter needs the extra 'optimum'")

every_target = pytest.mark.parametrize("target", qtool_targets.names())


@every_target
def test_the_graph_is_valid(target: str, optimum_artifact: Artifacts) -> None:
    folder = optimum_artifact(target, "qwen3")
    onnx.checker.check_model(str(folder / "model.onnx"))
    assert find_problems(folder, manifest.read(folder), hashes=True) == []


@every_target
def test_every_matrix_has_the_targets_form(target: str, optimum_artifact: Artifacts) -> None:
    weights = qtool_targets.load(target).weights
    groups = {group.group: group for group in manifest.read(optimum_artifact(target, "qwen3")).quantization}
    assert set(groups) == {"attention", "mlp", "embedding"}  # a tied LM head is the embedding
    assert groups["attention"].bits == groups["mlp"].bits == weights.bits
    assert (len(groups["attention"].tensors), len(groups["mlp"].tensors)) == (8, 6)


def test_manifest(optimum_artifact: Artifacts) -> None:
    folder = optimum_artifact("x64-int4", "qwen3")
    document = manifest.read(folder)
    packages = ("qtool-edge", "onnx-ir", "numpy", "optimum", "optimum-onnx", "torch", "transformers")
    assert document.tools == {"exporter": "optimum"} | {name: version(name) for name in packages}
    assert document.kv_cache.update == "concatenate"
    assert document.graph.logits_rows_input is None
    caches = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    past = tuple(f"past_key_values.{cache}" for cache in caches)
    assert document.graph.inputs == ("input_ids", "attention_mask", "position_ids", *past)
    assert document.graph.outputs == ("logits", *(f"present.{cache}" for cache in caches))
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    operators = Counter((node.domain or "ai.onnx", node.op_type) for node in graph.node)
    listed = {
        (domain.domain, name): count
        for domain in document.operators
        for name, count in domain.operators.items()
    }
    assert listed == operators
    assert {"Softmax", "MatMulNBits", "GatherBlockQuantized"} <= {name for _, name in listed}
    genai = json.loads((folder / "genai_config.json").read_text("utf-8"))
    assert genai["search"]["past_present_share_buffer"] is False
    assert genai["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"


def test_logits_of_every_position_are_declared(optimum_artifact: Artifacts) -> None:
    graph = onnx.load(optimum_artifact("x64-fp32") / "model.onnx", load_external_data=False).graph
    shape = [axis.dim_param or axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch_size", "sequence_length", 320]
    assert not any(node.doc_string or node.metadata_props for node in graph.node)


def test_onnxruntime_genai_runs_it(optimum_artifact: Artifacts, tiny_artifact: Artifacts) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    genai = pytest.importorskip("onnxruntime_genai", reason="the extra 'genai' is not installed")
    answers = []
    for artifact in (tiny_artifact, optimum_artifact):
        model = genai.Model(str(artifact("x64-fp32")))
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=24, do_sample=False)
        generator = genai.Generator(model, options)
        generator.append_tokens([5, 6, 7])
        while not generator.is_done():
            generator.generate_next_token()
        answers.append([int(token) for token in generator.get_sequence(0)])
    assert answers[0] == answers[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_in_a_new_process(source: Path, output: Path, seed: str) -> dict[str, Any]:
    """Runs the command line, and returns what it prints: stdout has to be one JSON document."""
    command = ["build", str(source), "--target", "x64-int4", "--exporter", "optimum", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "qtool", *command, "--output", str(output)],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        check=True,
        text=True,
    )
    assert "Warning" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_builds_have_the_same_bytes(
    optimum_artifact: Artifacts, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    source = tiny_checkpoint("qwen3").folder
    found = build_in_a_new_process(source, tmp_path / "other", seed="7")
    assert found["path"] == str(tmp_path / "other")
    files = contents(tmp_path / "other")
    assert files == contents(optimum_artifact("x64-int4", "qwen3"))
    for name, content in files.items():
        assert str(source).encode() not in content and b"qtool-optimum-" not in content, name


def test_a_build_asks_no_network(
    tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtool.exporters import optimum_trace

    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError(f"a connection was asked for: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    optimum_trace.trace.cache_clear()
    source = tiny_checkpoint("qwen2").folder
    qtool.build(source, target="x64-int4", exporter="optimum", output=tmp_path / "artifact")


@pytest.mark.parametrize("target", ["x64-int4", "x64-fp32", "cuda-fp16"])
def test_the_plan_is_close(target: str, optimum_artifact: Artifacts, tiny_checkpoint: Checkpoints) -> None:
    folder = optimum_artifact(target, "qwen3")
    (job,) = plan_jobs(tiny_checkpoint("qwen3").folder, [target], exporter="optimum")
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert abs(job.plan.artifact - size) < 0.1 * size
    memory = manifest.read(folder).memory
    assert abs(job.plan.device.peak - memory.peak) < 0.01 * memory.peak
    (native,) = plan_jobs(tiny_checkpoint("qwen3").folder, [target])
    assert job.plan.device.kv_cache == 2 * native.plan.device.kv_cache
