"""Qwen2 and Qwen2.5 (also Coder and Math): projections with a bias.

Source: Qwen2 Technical Report (Yang et al. 2024), section 2.
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
        full = f"{prefix}.{name}_proj"
        return builder.linear(full, hidden, weights[f"{full}.weight"], weights[f"{full}.bias"])

    return project("q"), project("k"), project("v")
