"""Cached keys and values become int8 with one scale for each channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtool.models.graph import add_initializer

_PAST_INPUTS, _PRESENT_OUTPUTS, _SCALE_INPUTS = (3, 4), (1, 2), (12, 13)
"""Of GroupQueryAttention: keys and values."""


class QuantizeKvCache(ir.passes.InPlacePass):
    """Requires GroupQueryAttention with float keys and values; ensures int8 ones, with their scales.

    The operator quantizes what it appends, round(x / scale) within -128..127, and attends to the quantized
    values only, those of the current tokens included: so the result does not depend on how a text is cut into
    runs.

    Args:
        scales: float32 (key_value_heads, head_dim) by the name of the graph's output, "present.0.key".
    """

    def __init__(self, scales: Mapping[str, NDArray[np.float32]]) -> None:
        self._scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantizes the cache of every layer."""
        nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        for node in nodes:
            node.resize_inputs(max(_SCALE_INPUTS) + 1)
            for past, present, scale in zip(_PAST_INPUTS, _PRESENT_OUTPUTS, _SCALE_INPUTS, strict=True):
                output = node.outputs[present]
                for value in (node.inputs[past], output):
                    if value is not None:
                        value.type = ir.TensorType(ir.DataType.INT8)
                values = self._scales[output.name or ""][None, :, None, :]
                tensor = ir.tensor(values, name=f"{output.name}.scale")
                node.replace_input_with(scale, add_initializer(model.graph, tensor))
            node.attributes["k_quant_type"] = ir.AttrString("k_quant_type", "PER_CHANNEL")
            node.attributes["v_quant_type"] = ir.AttrString("v_quant_type", "PER_CHANNEL")
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        return ir.passes.PassResult(model, bool(nodes))
