"""The manifest tells the truth about the files beside it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest

import qtool
import qtool_targets
from qtool.artifact.describe import generation_defaults
from qtool.checkpoint import open_checkpoint
from qtool.errors import SourceError
from qtool.jobs import plan_jobs
from qtool.pipeline import run_jobs
from qtool_runtime import manifest
from qtool_runtime.genai_config import genai_config
from support.fixtures import Artifacts, Checkpoints

TARGETS = qtool_targets.names()
every_target = pytest.mark.parametrize("target", TARGETS)


@every_target
def test_files_are_listed_with_size_and_hash(tiny_artifact: Artifacts, target: str) -> None:
    folder = tiny_artifact(target, "qwen3")
    listed = {entry.path: (entry.size, entry.sha256) for entry in manifest.read(folder).files}
    found = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    assert listed == found
    assert set(found) == {
        "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json",
        "generation_config.json", "chat_template.jinja",
    }  # fmt: skip


@every_target
def test_operators_are_those_of_the_graph(tiny_artifact: Artifacts, target: str) -> None:
    folder = tiny_artifact(target, "qwen3", tied=False)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}
    counts = Counter((node.domain or "ai.onnx", node.op_type) for node in graph.graph.node)
    described = {
        (entry.domain, name): count
        for entry in manifest.read(folder).operators
        for name, count in entry.operators.items()
    }
    assert described == counts
    assert all(opsets[entry.domain] == entry.version for entry in manifest.read(folder).operators)


@every_target
@pytest.mark.parametrize("tied", [True, False])
def test_quantization_adds_up_to_the_matrices(tiny_artifact: Artifacts, target: str, tied: bool) -> None:
    folder = tiny_artifact(target, "qwen2", tied=tied)
    weights = qtool_targets.load(target).weights
    groups = manifest.read(folder).quantization
    embedding, head = weights.embedding_bits or weights.bits, weights.lm_head_bits or weights.bits
    expected = {("attention", weights.bits): 8, ("mlp", weights.bits): 6, ("embedding", embedding): 1}
    if not tied:
        expected["lm_head", head] = 1
    elif head != embedding:
        expected["embedding", head] = 1  # the same tensor again, in another form
    assert {(group.group, group.bits): len(group.tensors) for group in groups} == expected
    for group in groups:
        integers = group.bits <= 8
        assert group.algorithm == ("rtn" if integers else "none")
        assert group.group_size == (weights.group_size if integers else None)
        assert group.symmetric == (weights.symmetric if integers else None)
    data = (folder / "model.onnx.data").stat().st_size
    assert data * 0.5 < sum(group.bytes for group in groups) < data


@every_target
def test_cache_and_memory_are_counted_from_the_configuration(tiny_artifact: Artifacts, target: str) -> None:
    document = manifest.read(tiny_artifact(target, "qwen3"))
    size = 2 if qtool_targets.load(target).precision.kv_cache == "float16" else 4
    assert document.kv_cache.bytes_per_token == 2 * 2 * 2 * 32 * size  # key and value, layers, heads, size
    assert document.kv_cache.update == "in_place"
    assert document.context == 256  # the model's maximum is less than the target's default
    memory = document.memory
    assert memory.kv_cache == 256 * document.kv_cache.bytes_per_token
    on_cpu = qtool_targets.load(target).execution.provider == "cpu"
    assert memory.prefix_memory == (memory.kv_cache if on_cpu else 0)
    summed = memory.weights + memory.kv_cache + memory.prefix_memory + memory.activations + memory.runtime
    assert memory.peak == summed
    assert memory.budget == qtool_targets.load(target).memory.budget_mb * 10**6


def test_source_tools_and_target_are_recorded(tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts) -> None:
    document = manifest.read(tiny_artifact("x64-int4", "qwen2"))
    weights = tiny_checkpoint("qwen2").folder / "model.safetensors"
    assert document.source.files == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert (document.source.kind, document.source.id) == ("safetensors", "tiny-qwen2")
    assert document.tools == {
        "exporter": "native",
        **{name: version(name) for name in ("qtool-edge", "onnx-ir", "numpy")},
    }
    assert document.target == qtool_targets.load("x64-int4").to_dict()
    assert document.model.parameters == sum(
        values.size for values in tiny_checkpoint("qwen2").tensors.values()
    )


def test_the_checkpoint_is_hashed_once_for_several_targets(
    tmp_path: Path, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtool.checkpoint.files import SourceFile

    hashed: list[str] = []
    real = SourceFile.sha256
    monkeypatch.setattr(SourceFile, "sha256", lambda self: hashed.append(self.path.name) or real(self))
    run_jobs(plan_jobs(tiny_checkpoint().folder, ["x64-int4", "x64-int8", "cuda-fp16"], output=tmp_path))
    assert hashed == ["model.safetensors"]


def test_a_context_of_the_users_is_everywhere(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    artifact = qtool.build(tiny_checkpoint().folder, target="x64-int4", output=tmp_path / "a", context=100)
    document = manifest.read(artifact.path)
    assert document == artifact.manifest
    assert document.context == 100
    genai = json.loads((artifact.path / "genai_config.json").read_text())
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == 100
    graph = onnx.load(artifact.path / "model.onnx", load_external_data=False).graph
    (table,) = [tensor for tensor in graph.initializer if tensor.name == "rotary.cosine"]
    assert list(table.dims) == [100, 8]


@every_target
def test_genai_config_says_the_same_as_the_manifest(tiny_artifact: Artifacts, target: str) -> None:
    folder = tiny_artifact(target, "qwen3")
    document = manifest.read(folder)
    genai: dict[str, Any] = json.loads((folder / "genai_config.json").read_text())
    model, decoder = genai["model"], genai["model"]["decoder"]
    assert model["type"] == "qwen3"
    assert model["vocab_size"] == document.model.vocab_size
    assert tuple(model["eos_token_id"]) == document.generation.eos_token_ids
    assert decoder["head_size"] == document.kv_cache.head_dim
    assert decoder["num_key_value_heads"] == document.kv_cache.num_key_value_heads
    assert decoder["num_hidden_layers"] == document.kv_cache.layers
    assert decoder["inputs"]["past_key_names"] == document.graph.past_key
    assert decoder["outputs"]["present_value_names"] == document.graph.present_value
    assert genai["search"]["past_present_share_buffer"] is True
    names = {name for value in decoder["session_options"]["provider_options"] for name in value}
    assert names == ({"directml": {"dml"}, "cpu": set()}).get(
        document.graph.provider, {document.graph.provider}
    )


@pytest.mark.parametrize(
    ("group_size", "symmetric", "minimum"),
    [(32, False, "1.23"), (64, False, "1.27"), (64, True, "1.23")],
)
def test_a_later_onnxruntime_is_asked_for_where_earlier_ones_compute_something_else(
    tmp_path: Path, tiny_checkpoint: Checkpoints, group_size: int, symmetric: bool, minimum: str
) -> None:
    """Rows of the tiny embedding are two groups of 32, or one of 64: an odd number, with zero points."""
    target = qtool_targets.load("x64-int4")
    target = replace(target, weights=replace(target.weights, group_size=group_size, symmetric=symmetric))
    artifact = qtool.build(tiny_checkpoint().folder, target=target, output=tmp_path / "out")
    assert artifact.manifest.graph.minimum_onnxruntime == minimum
    later = replace(target, execution=replace(target.execution, minimum_onnxruntime="1.100.2"))
    again = qtool.build(tiny_checkpoint().folder, target=later, output=tmp_path / "out", force=True)
    assert again.manifest.graph.minimum_onnxruntime == "1.100.2"


def test_a_cache_that_is_concatenated_is_not_shared(tiny_artifact: Artifacts) -> None:
    """As graphs of other exporters have it; they take positions too."""
    document = manifest.read(tiny_artifact("x64-int4", "qwen2"))
    graph = replace(document.graph, inputs=(*document.graph.inputs, "position_ids"))
    cache = replace(document.kv_cache, update="concatenate")
    genai = json.loads(genai_config(document.model, graph, cache, document.generation, 64))
    assert genai["search"]["past_present_share_buffer"] is False
    assert genai["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"


class TestSamplingDefaults:
    @pytest.fixture
    def defaults(self, tiny_checkpoint: Checkpoints) -> Any:
        config = open_checkpoint(str(tiny_checkpoint("qwen2").folder)).config
        return lambda **document: generation_defaults(
            config, {"generation_config.json": json.dumps(document).encode()}
        )

    def test_come_from_the_model(self, defaults: Any) -> None:
        found = defaults(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
        assert (found.do_sample, found.temperature, found.top_k) == (True, 0.7, 20)
        assert (found.top_p, found.repetition_penalty) == (0.8, 1.05)

    def test_are_greedy_without_any(self, defaults: Any) -> None:
        found = defaults(top_k=None)
        assert (found.do_sample, found.temperature, found.top_k) == (False, 1.0, 0)

    @pytest.mark.parametrize(
        "document",
        [
            {"temperature": -1},
            {"temperature": "hot"},
            {"temperature": True},
            {"top_k": -3},
            {"top_k": 1e999},
            {"top_k": [20]},
            {"top_p": 0},
            {"top_p": 7},
            {"repetition_penalty": 0},
        ],
        ids=str,
    )
    def test_that_nobody_can_sample_with_are_refused(self, defaults: Any, document: dict[str, Any]) -> None:
        with pytest.raises(SourceError, match=r"generation_config\.json has sampling defaults"):
            defaults(do_sample=True, **document)
