"""Qwen3: projections without a bias, queries and keys normalized head by head, a head size of its own.

Source: Qwen3 Technical Report (Yang et al. 2025), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.checkpoint import QwenConfig, Weight
from qtool.models.graph import GraphBuilder


def projections(
    builder: GraphBuilder, config: QwenConfig, weights: Mapping[str, Weight], prefix: str, hidden: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Appends query, key and value; see `decoder.Projections`."""

    def project(name: str) -> ir.Value:
        return builder.linear(f"{prefix}.{name}_proj", hidden, weights[f"{prefix}.{name}_proj.weight"])

    def normalize(name: str, x: ir.Value, heads: int) -> ir.Value:
        """RMSNorm over each head: (batch, sequence, heads * head_dim) with a scale of (head_dim,)."""
        weight = weights[f"{prefix}.{name}.weight"]
        by_head = builder.constant(f"shape.{heads}_heads", [0, 0, heads, config.head_dim])
        split = builder.op(f"{prefix}.{name}.split", "Reshape", [x, by_head])
        norm = builder.op(
            f"{prefix}.{name}",
            "RMSNormalization",
            [split, builder.weight(weight)],
            axis=-1,
            epsilon=config.rms_norm_eps,
        )
        flat = builder.constant("shape.flat", [0, 0, -1])
        return builder.op(f"{prefix}.{name}.merge", "Reshape", [norm, flat])

    query = normalize("q_norm", project("q"), config.num_attention_heads)
    key = normalize("k_norm", project("k"), config.num_key_value_heads)
    return query, key, project("v")
