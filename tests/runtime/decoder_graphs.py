"""Tiny decoders written node by node, and an artifact folder around one.

The runtime promises to drive two kinds of graph: the compiler's (GroupQueryAttention, past and present in one
buffer) and an exporter's (attention spelled out, past concatenated). Both are here with the same weights, so
that their logits can be compared in values without the compiler or torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qtool_runtime import manifest as contract
from qtool_runtime.compatibility import check_compatibility
from qtool_runtime.engine import EngineOptions
from qtool_runtime.genai_config import FILE_NAME as GENAI_FILE
from qtool_runtime.genai_config import genai_config
from qtool_runtime.graph import LoadedGraph, open_graph
from qtool_runtime.kernels import own_kernels
from qtool_runtime.threads import Threads

CACHE_SCALE = 4 / 127
"""Keys and values of these decoders have a standard deviation of about 1."""
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, ROTARY_POSITIONS = 4, 2, 16, 64, 4096


@dataclass(frozen=True)
class TinyDecoder:
    """What varies between the graphs of these tests."""

    update: str = "in_place"
    layers: int = 2
    vocab_size: int = 300
    context: int = 128
    seed: int = 0
    logits_rows: bool = True
    """Whether the graph has the `num_logits` input. Without it, it returns logits for every position."""
    int8_cache: bool = False
    """Cached keys and values are int8, with one scale a channel."""
    half: bool = False
    """float16 keys, values and logits; the arithmetic around the attention stays float32."""
    poison: int | None = None
    """A token whose logits are NaN."""
    scale: float = 8.0
    """Factor of the logits; 0 makes them all the same."""
    noise: float = 0.0
    """Standard deviation of random numbers that each run adds to its logits."""


class _Graph:
    """Collects nodes and initializers; `add` returns the name of the node's first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(
        self, operator: str, *inputs: str, output: str | list[str] = "", domain: str = "", **attributes: Any
    ) -> str:
        outputs = output if isinstance(output, list) else [output or f"{operator}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs[0]


def build_graph(tiny: TinyDecoder) -> onnx.ModelProto:
    """Writes the decoder that `tiny` describes."""
    graph, random = _Graph(), np.random.default_rng(tiny.seed)

    def weights(name: str, *shape: int) -> str:
        return graph.constant(name, random.normal(0, shape[0] ** -0.5, shape).astype(np.float32))

    embedding = random.normal(0, 1, (tiny.vocab_size, HIDDEN)).astype(np.float32)
    if tiny.poison is not None:
        embedding[tiny.poison] = np.nan
    angles = np.outer(np.arange(ROTARY_POSITIONS), 100.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    kind = np.float16 if tiny.half else np.float32
    graph.constant("cos", np.cos(angles).astype(kind))
    graph.constant("sin", np.sin(angles).astype(kind))
    graph.constant("kv_scale", np.full((1, KV_HEADS, 1, HEAD_DIM), CACHE_SCALE, np.float32))
    attention = _attention_in_place if tiny.update == "in_place" else _attention_concatenate

    hidden = graph.add("Gather", graph.constant("embedding", embedding), "input_ids")
    for layer in range(tiny.layers):
        projected = [
            graph.add("MatMul", hidden, weights(f"{name}.{layer}", HIDDEN, heads * HEAD_DIM))
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        ]
        attended = attention(tiny, graph, layer, [_cast(graph, name, tiny.half) for name in projected])
        attended = graph.add("Cast", attended, to=TensorProto.FLOAT)
        output = graph.add("MatMul", attended, weights(f"o.{layer}", HIDDEN, HIDDEN))
        hidden = graph.add("Tanh", graph.add("Add", hidden, output))
    if tiny.logits_rows:
        start = graph.add("Neg", graph.constant("num_logits", np.array([1], np.int64)))
        end = graph.constant("end", np.array([np.iinfo(np.int64).max]))
        hidden = graph.add("Slice", hidden, start, end, graph.constant("axis", np.array([1])))
    logits = graph.add("MatMul", hidden, weights("lm_head", HIDDEN, tiny.vocab_size))
    scale = graph.add("Mul", logits, graph.constant("scale", np.float32(tiny.scale)))
    if tiny.noise:
        scale = graph.add("Add", scale, graph.add("RandomNormalLike", scale, scale=tiny.noise))
    graph.add("Cast", scale, output="logits", to=_element_type(tiny))
    return _finish(graph, tiny)


def _cast(graph: _Graph, name: str, half: bool) -> str:
    return graph.add("Cast", name, to=TensorProto.FLOAT16) if half else name


def _attention_in_place(tiny: TinyDecoder, graph: _Graph, layer: int, projected: list[str]) -> str:
    if layer == 0:
        one = graph.constant("one", np.array([1], np.int64))
        length = graph.add("Sub", graph.add("ReduceSum", "attention_mask", one, keepdims=0), one)
        graph.add("Cast", length, output="seqlens_k", to=TensorProto.INT32)
        total = graph.add(
            "Gather", graph.add("Shape", "attention_mask"), graph.constant("index", np.int64(1))
        )
        graph.add("Cast", total, output="total", to=TensorProto.INT32)
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    scales, attributes = [], {}
    if tiny.int8_cache:
        scales = ["", "", "", "kv_scale", "kv_scale"]
        attributes = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    outputs = [f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"]
    return graph.add(
        "GroupQueryAttention", *projected, *past, "seqlens_k", "total", "cos", "sin", *scales,
        output=outputs, domain="com.microsoft", num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1,
        **attributes,
    )  # fmt: skip


def _attention_concatenate(tiny: TinyDecoder, graph: _Graph, layer: int, projected: list[str]) -> str:
    if layer == 0:
        graph.constant("heads", np.array([0, 0, -1, HEAD_DIM], np.int64))
        graph.constant("joined", np.array([0, 0, HIDDEN], np.int64))
        graph.constant("groups", np.array([1, 1, HEADS // KV_HEADS, 1, 1], np.int64))
        graph.constant("two", np.array([2], np.int64))
        graph.constant("repeated", np.array([0, HEADS, -1, HEAD_DIM], np.int64))
        graph.constant("root", np.float32(HEAD_DIM**-0.5))
        _causal_bias(graph)
    split = [
        graph.add("Transpose", graph.add("Reshape", part, "heads"), perm=[0, 2, 1, 3]) for part in projected
    ]
    query, key = _rotate(graph, split[0]), _rotate(graph, split[1])
    cached = []
    for part, new in (("key", key), ("value", split[2])):
        past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
        whole = graph.add("Concat", past, new, output=present, axis=2)
        tiled = graph.add("Tile", graph.add("Unsqueeze", whole, "two"), "groups")
        cached.append(graph.add("Reshape", tiled, "repeated"))
    scores = graph.add("MatMul", query, graph.add("Transpose", cached[0], perm=[0, 1, 3, 2]))
    scores = graph.add("Add", graph.add("Mul", scores, "root"), "bias")
    attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), cached[1])
    return graph.add("Reshape", graph.add("Transpose", attended, perm=[0, 2, 1, 3]), "joined")


def _causal_bias(graph: _Graph) -> None:
    """Writes "bias" of shape (1, 1, new, total): 0 where a key is not after its query, else -infinity."""
    zero, one = graph.constant("0", np.int64(0)), graph.constant("1", np.int64(1))
    total = graph.add("Gather", graph.add("Shape", "attention_mask"), one)
    keys = graph.add("Range", zero, total, one)
    queries = graph.add("Unsqueeze", "position_ids", graph.constant("axes", np.array([1, 3], np.int64)))
    graph.add(
        "Where", graph.add("LessOrEqual", keys, queries),
        graph.constant("seen", np.float32(0)), graph.constant("hidden", np.float32(-np.inf)), output="bias",
    )  # fmt: skip


def _rotate(graph: _Graph, name: str) -> str:
    """Rotary embedding of (1, heads, new, HEAD_DIM), halves rotated as GroupQueryAttention does it."""
    if not any(node.output[0] == "cosine" for node in graph.nodes):
        for table, output in (("cos", "cosine"), ("sin", "sine")):
            rows = graph.add("Gather", table, "position_ids")
            graph.add(
                "Unsqueeze", rows, graph.constant(f"{output}_axis", np.array([1], np.int64)), output=output
            )
    first = f"{name}_first"
    graph.add("Split", name, output=[first, f"{name}_second"], axis=-1, num_outputs=2)
    second = f"{name}_second"
    left = graph.add("Sub", graph.add("Mul", first, "cosine"), graph.add("Mul", second, "sine"))
    right = graph.add("Add", graph.add("Mul", second, "cosine"), graph.add("Mul", first, "sine"))
    return graph.add("Concat", left, right, axis=-1)


def _element_type(tiny: TinyDecoder) -> int:
    return TensorProto.FLOAT16 if tiny.half else TensorProto.FLOAT


def _finish(graph: _Graph, tiny: TinyDecoder) -> onnx.ModelProto:
    def integers(name: str, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, shape)

    batch: Any = "batch" if tiny.update == "in_place" else 1

    def cached(name: str, length: str) -> onnx.ValueInfoProto:
        kind = TensorProto.INT8 if tiny.int8_cache else _element_type(tiny)
        return helper.make_tensor_value_info(name, kind, [batch, KV_HEADS, length, HEAD_DIM])

    names = [f"{layer}.{part}" for layer in range(tiny.layers) for part in ("key", "value")]
    inputs = [integers("input_ids", batch, "sequence"), integers("attention_mask", batch, "total_sequence")]
    if tiny.update == "concatenate":
        inputs.append(integers("position_ids", 1, "sequence"))
    inputs += [cached(f"past_key_values.{name}", "past") for name in names]
    if tiny.logits_rows:
        inputs.append(integers("num_logits", 1))  # also an initializer: it can be left out
    rows: Any = 1 if tiny.logits_rows else "sequence"
    outputs = [helper.make_tensor_value_info("logits", _element_type(tiny), [batch, rows, tiny.vocab_size])]
    outputs += [cached(f"present.{name}", "present") for name in names]
    proto = helper.make_graph(graph.nodes, "tiny", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=10)


def build_manifest(tiny: TinyDecoder, model: onnx.ModelProto, /, **changes: Any) -> contract.Manifest:
    """The manifest of the decoder, without files; `changes` replace whole fields."""
    dtype = "int8" if tiny.int8_cache else "float16" if tiny.half else "float32"
    bytes_per_token = tiny.layers * 2 * KV_HEADS * HEAD_DIM * np.dtype(dtype).itemsize
    document = contract.Manifest(
        format_version=contract.FORMAT_VERSION, name="tiny", context=tiny.context,
        model=contract.ModelInfo(
            "qwen2", tiny.vocab_size, HIDDEN, HIDDEN, tiny.layers, HEADS, KV_HEADS, HEAD_DIM, 1, False
        ),
        source=contract.Source("none", "tiny", None, {}), target={}, tools={}, files=(),
        operators=(contract.OperatorSet("ai.onnx", 21, {}), contract.OperatorSet("com.microsoft", 1, {})),
        graph=contract.Graph(
            file="model.onnx", provider="cpu", minimum_onnxruntime="1.20",
            inputs=tuple(value.name for value in model.graph.input),
            outputs=tuple(value.name for value in model.graph.output),
            past_key="past_key_values.%d.key", past_value="past_key_values.%d.value",
            present_key="present.%d.key", present_value="present.%d.value",
            logits_rows_input="num_logits" if tiny.logits_rows else None,
        ),
        kv_cache=contract.KvCache(tiny.update, dtype, tiny.layers, KV_HEADS, HEAD_DIM, bytes_per_token),
        calibration=None,
        memory=contract.MemoryPlan(0, 0, 1 << 20, 0, 0, 0, 0), quantization=(),
        generation=contract.Generation(None, (), None, False, 1.0, 0, 1.0, 1.0),
        spent_bits=None, baked_prompt=None, quality=None,
    )  # fmt: skip
    return replace(document, **changes)


def write_artifact(
    folder: Path, tiny: TinyDecoder, extra: dict[str, bytes] | None = None, **changes: Any
) -> Path:
    """Writes a whole artifact: graph, genai_config.json, `extra` files (tokenizer, template) and manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = build_graph(tiny)
    plain = build_manifest(tiny, graph, **changes)
    genai = genai_config(plain.model, plain.graph, plain.kv_cache, plain.generation, plain.context)
    contents = {"model.onnx": graph.SerializeToString(), GENAI_FILE: genai.encode(), **(extra or {})}
    entries = []
    for name, data in sorted(contents.items()):
        (folder / name).write_bytes(data)
        entries.append(contract.FileEntry(name, len(data), hashlib.sha256(data).hexdigest()))
    document = replace(plain, **{"files": tuple(entries), **changes})
    (folder / contract.FILE_NAME).write_text(document.to_json(), "utf-8")
    return folder


def open_tiny(folder: Path, tiny: TinyDecoder) -> LoadedGraph:
    """Writes the decoder that `tiny` describes, and opens it as `load` does."""
    manifest = contract.read(write_artifact(folder, tiny))
    options = EngineOptions(None, Threads(1, 0), manifest.context)
    return open_graph(folder, manifest, check_compatibility(manifest), own_kernels("a test"), options)
