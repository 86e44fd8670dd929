"""Calibrated matrices: what a layer's graph computes, that builds agree, and what is refused."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

import qtool
import qtool_targets
from qtool.artifact.verify import verify
from qtool.calibration.layer_runner import LayerRunner
from qtool.calibration.text import read_calibration_text
from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.layout import layer_shapes
from qtool.errors import MissingExtraError, QtoolError, SourceError
from qtool.jobs import plan_jobs
from qtool.models import layer_graphs
from qtool.pipeline import run_jobs
from qtool_runtime import manifest
from support.fixtures import Artifacts, Checkpoints
from support.kernels import require_int8_kv_cache
from support.raw_session import RawSession, distance

architectures = pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
TOKENS = np.random.default_rng(5).integers(0, 300, (3, 40))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def inner_values(folder: Path, names: list[str], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Runs a whole artifact over one window, and returns values from within its graph."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    path = folder.parent / "inner.onnx"
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    cache = manifest.read(folder).kv_cache
    past = np.zeros((1, cache.num_key_value_heads, 0, cache.head_dim), np.float32)
    feeds = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
    feeds |= {value.name: past for value in session.get_inputs() if value.name.startswith("past")}
    return dict(zip(names, (value[0] for value in session.run(names, feeds)), strict=True))


@architectures
def test_a_layer_computes_what_it_does_in_the_whole_graph(
    architecture: str, tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts
) -> None:
    """Layer 0: its Hessians, and the hidden states that layer 1 begins with."""
    checkpoint = open_checkpoint(str(tiny_checkpoint(architecture).folder))
    names = ["input_layernorm", "attention:0", "post_attention_layernorm:0", "mlp.product"]
    read = [f"model.layers.0.{name}" for name in names]
    residual = "model.layers.1.input_layernorm:3"
    folder = tiny_artifact("x64-fp32", architecture)
    whole = [inner_values(folder, [*read, residual], window) for window in TOKENS]

    weights = {
        name: checkpoint.weights[f"model.layers.0.{name}"].read_all()
        for name in layer_shapes(checkpoint.config)
    }
    hidden = checkpoint.weights["model.embed_tokens.weight"].read_all()[TOKENS]
    with ThreadPoolExecutor(2) as pool:
        runner = LayerRunner(checkpoint, TOKENS.shape[1], pool, 2)
        for name, step in zip(read, runner.steps, strict=True):
            x = np.concatenate([values[name] for values in whole])
            assert distance(runner.hessian(step, weights, hidden), x.T @ x) < 1e-5
        found = runner.next_hidden(weights, hidden)
    assert distance(found, [values[residual] for values in whole]) < 1e-5


@architectures
def test_a_layers_graphs_name_every_matrix_once(architecture: str, tiny_checkpoint: Checkpoints) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(architecture).folder))
    *steps, last = layer_graphs(checkpoint.config, checkpoint.weights, 64)
    linears = [name for step in steps for name in step.linears]
    assert linears == [name for name in layer_shapes(checkpoint.config) if name.endswith("_proj.weight")]
    assert last.linears == ()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the text that ships: enough for a small model."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(read_calibration_text(None).text[:9000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def balanced(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model."""
    output = tmp_path_factory.mktemp("balanced") / "out"
    return build(output, text, threads=2)


def build(
    output: Path, text: Path, *, target: str = "x64-int4", recipe: str = "balanced", **options: Any
) -> Path:
    return qtool.build(target=target, recipe=recipe, calibration=text, output=output, **options).path


def test_the_bytes_depend_on_neither_threads_nor_folder(balanced: Path, text: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        assert digests(build(tmp_path / str(threads), text, threads=threads)) == digests(balanced)


def test_the_manifest_says_what_was_done(balanced: Path, text: Path) -> None:
    document = manifest.read(balanced)
    assert {group.algorithm for group in document.quantization} == {"gptq"}
    assert document.calibration is not None
    assert document.calibration.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert 2048 <= document.calibration.tokens < 9000
    assert document.tools["onnxruntime"] == onnxruntime.__version__
    assert verify(balanced) is not None
    assert not list(balanced.glob(".*"))
    (job,) = plan_jobs(None, ["x64-int4"], recipe="balanced")
    assert job.calibration == read_calibration_text(None)
    (fast,) = plan_jobs(None, ["x64-int4"])
    stored = sum(group.bytes for group in document.quantization)
    assert job.plan.calibrated == job.plan.disk - job.plan.artifact == stored
    assert job.plan.artifact == fast.plan.artifact
    assert fast.plan.disk == fast.plan.artifact


def test_the_model_is_closer_to_its_source(balanced: Path, tmp_path: Path) -> None:
    """On text that is not in the calibration text."""
    other = "Turn on the lamp in the hall, please. What is 12 + 30? Set a timer for two minutes. " * 3
    floats = qtool.build(target="x64-fp32", output=tmp_path / "fp32").path
    fast = qtool.build(target="x64-int4", output=tmp_path / "fast").path
    tokens = tokens_of(floats, other)
    exact, rounded, calibrated = (log_probabilities(folder, tokens) for folder in (floats, fast, balanced))

    def divergence(found: np.ndarray) -> float:
        return float((np.exp(exact) * (exact - found)).sum(axis=-1).mean())

    assert divergence(calibrated) < 0.8 * divergence(rounded)


def tokens_of(folder: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


def log_probabilities(folder: Path, tokens: list[int]) -> np.ndarray:
    logits = RawSession(folder, capacity=len(tokens)).forward(tokens, rows=len(tokens)).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_chosen_formats_do_not_depend_on_threads(text: Path, tmp_path: Path) -> None:
    one, three = (build(tmp_path / str(count), text, recipe="best", threads=count) for count in (1, 3))
    assert digests(one) == digests(three)
    algorithms = {group.algorithm for group in manifest.read(one).quantization}
    assert algorithms == {"gptq", "rtn"}  # fewer than 8 bits, and 8


@pytest.mark.filterwarnings("ignore::qtool.calibration.mix.CalibrationWarning")
@pytest.mark.parametrize("tied", [True, False])
def test_float16_scales_and_symmetric_grids(
    tied: bool, text: Path, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """An embedding that is not the LM head too has nothing to be calibrated on."""
    source = tiny_checkpoint("qwen2", tied=tied).folder
    shipped = qtool_targets.load("web-int4")
    half = replace(shipped.precision, activations="float16", kv_cache="float16")
    folder = build(tmp_path / "out", text, target=replace(shipped, precision=half), model=source)
    kinds = {group.group: (group.symmetric, group.algorithm) for group in manifest.read(folder).quantization}
    head = {"embedding": (True, "gptq")} if tied else {"embedding": (True, "rtn"), "lm_head": (True, "gptq")}
    assert kinds == {"attention": (True, "gptq"), "mlp": (True, "gptq")} | head
    assert verify(folder) is not None


def test_weights_and_cache_are_calibrated_on_one_text(text: Path, tmp_path: Path) -> None:
    require_int8_kv_cache()
    folder = build(tmp_path / "out", text, kv_cache="int8")
    document = manifest.read(folder)
    assert {group.algorithm for group in document.quantization} == {"gptq"}
    assert document.kv_cache.dtype == "int8"
    assert verify(folder) is not None


def test_targets_built_together_are_those_built_alone(balanced: Path, text: Path, tmp_path: Path) -> None:
    """Those that are calibrated alike, once for all of them."""
    targets = ["x64-int4", "x64-int8", "cuda-int4", "arm64-int4", "directml-int4"]
    jobs = plan_jobs(None, targets, recipe="balanced", calibration=text, output=tmp_path)
    calls: list[tuple[str, int, int]] = []
    artifacts = run_jobs(jobs, threads=2, progress=lambda *call: calls.append(call))
    assert [done for stage, done, _ in calls if stage == "calibrate"].count(0) == 2
    assert digests(artifacts[0].path) == digests(balanced)
    assert artifacts[1].manifest.calibration is None
    for target, artifact in zip(targets[2:], artifacts[2:], strict=True):
        assert digests(artifact.path) == digests(build(tmp_path / f"{target}-alone", text, target=target))


class TestRefusals:
    def test_of_an_unknown_recipe(self) -> None:
        with pytest.raises(QtoolError, match="unknown recipe 'slow'; known: fast, balanced, best"):
            plan_jobs("no/model", ["x64-int4"], recipe="slow")

    def test_of_a_text_that_nothing_would_read(self, tmp_path: Path) -> None:
        with pytest.raises(QtoolError, match="would not be used: nothing is calibrated"):
            plan_jobs("no/model", ["x64-int8"], calibration=tmp_path / "none.txt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"Too short. " * 50, r"has \d+ tokens; it takes 2048 or more"),
            (b"\x80\x00\xff" * 9000, "is binary: its byte 1 is zero"),
        ],
        ids=["empty", "short", "binary"],
    )
    def test_of_a_bad_text(self, tmp_path: Path, content: bytes, message: str) -> None:
        text = tmp_path / "text"
        text.write_bytes(content)
        with pytest.raises(SourceError, match=message):
            qtool.build(target="x64-int4", recipe="balanced", calibration=text, output=tmp_path / "out")
        assert list(tmp_path.iterdir()) == [text]

    def test_of_a_build_without_onnxruntime(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match="a calibration runs the model"):
            qtool.build(target="x64-int4", recipe="balanced", output=tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
