"""The decoder that all dense Qwen models share; what differs is how queries, keys and values are made.

The graph's inputs and outputs are those that onnxruntime-genai expects of a decoder, so one artifact serves
both runtimes:

    input_ids        int64 (batch, sequence)
    attention_mask   int64 (batch, past + sequence); ones, then zeros after a shorter row of a batch
    past_key_values.N.key, .value    (batch, key_value_heads, past or capacity, head_dim)
    num_logits       int64 (1,), optional, default 1: rows of logits, counted from the last position
    logits           (batch, num_logits, vocab)
    present.N.key, .value            like past; may be the same buffer

`logits` is *declared* with one row, because onnxruntime-genai allocates it from the declared shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.checkpoint import QwenConfig, Weight
from qtool.models.graph import MICROSOFT, GraphBuilder

LOGITS_ROWS_INPUT = "num_logits"
PAST_KEY, PAST_VALUE = "past_key_values.%d.key", "past_key_values.%d.value"
PRESENT_KEY, PRESENT_VALUE = "present.%d.key", "present.%d.value"

_TO_THE_END = np.iinfo(np.int64).max
IR_VERSION = 10


@dataclass(frozen=True)
class ExportOptions:
    """What the target decides about the graph."""

    dtype: ir.DataType
    """Type of activations, float weights and the KV cache."""
    context: int
    """Longest sequence in tokens; the rotary tables have this many rows."""


Projections = Callable[
    [GraphBuilder, QwenConfig, Mapping[str, Weight], str, ir.Value], tuple[ir.Value, ir.Value, ir.Value]
]
"""(builder, config, weights, prefix of the layer's attention, hidden) -> query, key, value of the shapes
(batch, sequence, heads * head_dim)."""


@dataclass(frozen=True)
class Positions:
    """What every attention node needs to know about lengths and rotation."""

    sequence_lengths: ir.Value
    total_length: ir.Value
    cosine: ir.Value
    sine: ir.Value


class _LogitsRows:
    """The optional input `num_logits`, and the slice of the last rows that it asks for."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        count = builder.constant(LOGITS_ROWS_INPUT, [1])
        builder.graph.inputs.append(count)  # an initializer that is also an input is that input's default
        self._start = builder.op("logits_rows.start", "Neg", [count])
        self._end = builder.constant("logits_rows.end", [_TO_THE_END])
        self._axis = builder.constant("logits_rows.axis", [1])

    def take(self, name: str, x: ir.Value) -> ir.Value:
        return self._builder.op(name, "Slice", [x, self._start, self._end, self._axis])


@dataclass(frozen=True)
class Layer:
    """One decoder layer: attention, then the MLP, each around the residual stream."""

    config: QwenConfig
    weights: Mapping[str, Weight]
    index: int
    projections: Projections

    def append(
        self,
        builder: GraphBuilder,
        positions: Positions,
        update: ir.Value | None,
        skip: ir.Value,
        *,
        rows: _LogitsRows | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """Appends the layer.

        Args:
            builder: the graph.
            positions: of the tokens.
            update: what the block before has to add to the residual stream, if there is one.
            skip: the residual stream, (batch, sequence, hidden_size).
            rows: the rows that the layers after this one go on with; None for all.

        Returns:
            The MLP's update and the residual stream to add it to.
        """
        prefix, config, weights = f"model.layers.{self.index}", self.config, self.weights
        hidden, skip = _normalize(builder, config, weights[f"{prefix}.input_layernorm.weight"], update, skip)
        qkv = self.projections(builder, config, weights, f"{prefix}.self_attn", hidden)
        update = _attention(builder, config, self.index, qkv=qkv, positions=positions)
        if rows is not None:
            update, skip = rows.take(f"{prefix}.rows", update), rows.take(f"{prefix}.skip_rows", skip)
        update = builder.linear(
            f"{prefix}.self_attn.o_proj", update, weights[f"{prefix}.self_attn.o_proj.weight"]
        )
        norm = weights[f"{prefix}.post_attention_layernorm.weight"]
        hidden, skip = _normalize(builder, config, norm, update, skip)
        return _mlp(builder, weights, f"{prefix}.mlp", hidden), skip


def export(
    config: QwenConfig, weights: Mapping[str, Weight], options: ExportOptions, projections: Projections
) -> ir.Model:
    """Writes the graph; no weight is read.

    Args:
        config: sizes of the network.
        weights: by Hugging Face names.
        options: types and context.
        projections: the architecture's way from hidden states to queries, keys and values.
    """
    builder = GraphBuilder(config.model_type, options.dtype)
    input_ids = builder.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    mask = builder.input("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
    positions = positions_of(builder, mask, config, options.context)
    rows = _LogitsRows(builder)

    # The residual stream: `skip` is what has been added up so far, `update` the last block's contribution.
    # Each normalization adds the two, so that the sum is computed once and shared.
    embedding = builder.weight(weights["model.embed_tokens.weight"])
    skip = builder.op("embed_tokens", "Gather", [embedding, input_ids])
    update: ir.Value | None = None
    for index in range(config.num_hidden_layers):
        # Nothing after the last attention looks at other positions: go on with the rows asked for.
        last = rows if index == config.num_hidden_layers - 1 else None
        layer = Layer(config, weights, index, projections)
        update, skip = layer.append(builder, positions, update, skip, rows=last)
    hidden, _ = _normalize(builder, config, weights["model.norm.weight"], update, skip)
    head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    logits = builder.linear("lm_head", hidden, head)
    builder.graph.outputs.insert(0, logits)
    logits.name, logits.type = "logits", ir.TensorType(options.dtype)
    logits.shape = ir.Shape(["batch_size", 1, config.vocab_size])
    return ir.Model(builder.graph, ir_version=IR_VERSION, producer_name="qtool")


def positions_of(builder: GraphBuilder, mask: ir.Value, config: QwenConfig, context: int) -> Positions:
    """Appends what the attention of every layer needs to know, from an attention mask."""
    one = builder.constant("positions.one", [1])
    lengths = builder.op("positions.lengths", "ReduceSum", [mask, one], keepdims=0)
    last = builder.op("positions.last", "Sub", [lengths, one])
    shape = builder.op("positions.mask_shape", "Shape", [mask])
    total = builder.op("positions.total", "Gather", [shape, builder.constant("positions.axis", 1)])
    int32 = int(ir.DataType.INT32)
    cosine, sine = rotary_tables(config.head_dim, config.rope_theta, context)
    return Positions(
        sequence_lengths=builder.op("positions.last_int32", "Cast", [last], to=int32),
        total_length=builder.op("positions.total_int32", "Cast", [total], to=int32),
        cosine=builder.array("rotary.cosine", cosine),
        sine=builder.array("rotary.sine", sine),
    )


def rotary_tables(head_dim: int, theta: float, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines of the rotary position embedding, float32 (context, head_dim / 2).

    Source: RoFormer (Su et al. 2021), section 3.4, in the half-rotation layout of the Hugging Face models.
    """
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = np.arange(context, dtype=np.float64)[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _normalize(
    builder: GraphBuilder, config: QwenConfig, weight: Weight, update: ir.Value | None, skip: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Returns RMSNorm(update + skip) and update + skip."""
    name = weight.name.removesuffix(".weight")
    scale, epsilon = builder.weight(weight), config.rms_norm_eps
    if update is None:
        return builder.op(name, "RMSNormalization", [skip, scale], axis=-1, epsilon=epsilon), skip
    # Outputs 1 and 2 (mean and inverse deviation) exist for training only.
    outputs = builder.multi(
        name, "SkipSimplifiedLayerNormalization", [update, skip, scale], 4, domain=MICROSOFT, epsilon=epsilon
    )
    outputs[1].name = outputs[2].name = ""
    return outputs[0], outputs[3]


def _attention(
    builder: GraphBuilder,
    config: QwenConfig,
    layer: int,
    *,
    qkv: tuple[ir.Value, ir.Value, ir.Value],
    positions: Positions,
) -> ir.Value:
    """Appends causal grouped-query attention with rotation; the KV cache is updated in place."""
    past_shape: list[int | str] = [
        "batch_size",
        config.num_key_value_heads,
        "past_sequence_length",
        config.head_dim,
    ]
    present_shape: list[int | str] = [*past_shape[:2], "total_sequence_length", config.head_dim]
    past = [builder.input(name % layer, builder.dtype, past_shape) for name in (PAST_KEY, PAST_VALUE)]
    attended, *present = builder.multi(
        f"model.layers.{layer}.attention",
        "GroupQueryAttention",
        [*qkv, *past, positions.sequence_lengths, positions.total_length, positions.cosine, positions.sine],
        3,
        domain=MICROSOFT,
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        do_rotary=1,
        scale=config.head_dim**-0.5,
    )
    for value, name in zip(present, (PRESENT_KEY, PRESENT_VALUE), strict=True):
        builder.output(value, name % layer, builder.dtype, present_shape)
    return attended


def _mlp(builder: GraphBuilder, weights: Mapping[str, Weight], prefix: str, hidden: ir.Value) -> ir.Value:
    """Appends down(silu(gate(hidden)) * up(hidden))."""
    gate = builder.linear(f"{prefix}.gate_proj", hidden, weights[f"{prefix}.gate_proj.weight"])
    up = builder.linear(f"{prefix}.up_proj", hidden, weights[f"{prefix}.up_proj.weight"])
    # QuickGelu is x * sigmoid(alpha * x): with alpha 1 it is SiLU, in one node.
    activated = builder.op(f"{prefix}.silu", "QuickGelu", [gate], domain=MICROSOFT, alpha=1.0)
    product = builder.op(f"{prefix}.product", "Mul", [activated, up])
    return builder.linear(f"{prefix}.down_proj", product, weights[f"{prefix}.down_proj.weight"])
