"""Ways from a checkpoint to an ONNX graph whose weights are still lazy."""

from __future__ import annotations

import onnx_ir as ir

from qtool import models
from qtool.checkpoint import Checkpoint
from qtool_targets import Target


def export(checkpoint: Checkpoint, target: Target, context: int, exporter: str) -> ir.Model:
    """Writes the graph for a target.

    Args:
        checkpoint: the source.
        target: decides types.
        context: longest sequence in tokens.
        exporter: "native" (qtool's own graphs) or "optimum" (extra `optimum`).
    """
    if exporter == "optimum":
        from qtool.exporters import optimum

        return optimum.export(checkpoint, target)
    dtype = ir.DataType.FLOAT16 if target.precision.activations == "float16" else ir.DataType.FLOAT
    return models.export(checkpoint.config, checkpoint.weights, models.ExportOptions(dtype, context))
