"""The `optimum` exporter: the graph is Hugging Face Optimum's, everything after it is qtool's.

A second opinion on the native exporter: the arithmetic comes from transformers' own network and torch's own
ONNX exporter, with attention in basic operators and a KV cache that grows by concatenation. Weights, passes,
quantization, packaging and runtime are shared, so where two artifacts differ, their graphs do.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from qtool.checkpoint import Checkpoint, Weight
from qtool.errors import MissingExtraError, QtoolError
from qtool.models.graph import MICROSOFT, add_initializer
from qtool.passes.normalize_linear import NormalizeLinear
from qtool.storage import FloatStorage, StoredTensor
from qtool_targets import Target

_PACKAGES = ("optimum", "torch", "transformers")


def export(checkpoint: Checkpoint, target: Target) -> ir.Model:
    """Writes the graph with Optimum; no weight is read.

    Args:
        checkpoint: the source, of any kind.
        target: decides the type of activations.

    Returns:
        A graph with the inputs input_ids, attention_mask, position_ids and past_key_values.N.key, .value, and
        the outputs logits (batch, sequence, vocab) and present.N.key, .value; linear layers have the form of
        `passes.linear`.

    Raises:
        MissingExtraError: the extra `optimum` is not installed.
        QtoolError: the installed Optimum writes another graph than this module understands.
    """
    dtype = ir.DataType.FLOAT16 if target.precision.activations == "float16" else ir.DataType.FLOAT
    try:
        from qtool.exporters.optimum_trace import trace
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES:
            raise
        raise MissingExtraError(
            f"the exporter 'optimum' needs the package {error.name!r}, which is not installed",
            hint="Run: pip install 'qtool-edge[optimum]'",
        ) from error
    model = ir.from_proto(onnx.load_model_from_string(trace(checkpoint.config, dtype)))
    _insert_weights(model.graph, checkpoint.weights, dtype)
    model.graph.opset_imports[MICROSOFT] = 1
    NormalizeLinear()(model)
    _check_matrices(model.graph)
    return model


def _insert_weights(graph: ir.Graph, weights: Mapping[str, Weight], dtype: ir.DataType) -> None:
    """Replaces the inputs that stand for weights by the checkpoint's own tensors.

    Raises:
        QtoolError: the two do not agree on names and shapes.
    """
    inputs = {value.name: value for value in graph.inputs}
    missing = [name for name in weights if name not in inputs]
    if missing:
        raise _unexpected(f"lacks {len(missing)} of the checkpoint's tensors, such as {missing[0]}")
    for name, weight in weights.items():
        value = inputs[name]
        if value.shape != weight.shape:
            raise _unexpected(f"has the tensor {name} as {value.shape}, the checkpoint as {weight.shape}")
        stored = add_initializer(graph, StoredTensor(name, FloatStorage(weight, dtype)))
        value.replace_all_uses_with(stored)
        graph.inputs.remove(value)
    decoder = ("input_ids", "attention_mask", "position_ids", "past_key_values.")
    unknown = [str(value.name) for value in graph.inputs if not str(value.name).startswith(decoder)]
    if unknown:
        raise _unexpected(f"has tensors that the checkpoint has not: {', '.join(unknown[:5])}")


def _check_matrices(graph: ir.Graph) -> None:
    """Refuses a graph with a weight matrix in a form that would silently escape quantization.

    Raises:
        QtoolError: a matrix is read by something else than a linear layer or a lookup.
    """
    for value in graph.initializers.values():
        if not isinstance(value.const_value, StoredTensor) or len(value.const_value.shape) != 2:
            continue
        for node, index in value.uses():
            if (node.op_type, index) not in (("FusedMatMul", 1), ("Gather", 0)):
                raise _unexpected(f"reads the matrix {value.name} in the operator {node.op_type}")


def _unexpected(what: str) -> QtoolError:
    return QtoolError(
        f"the graph that Optimum wrote {what}",
        hint="Install the versions that qtool is tested with (optimum-onnx 0.1.0), or use --exporter native.",
    )
