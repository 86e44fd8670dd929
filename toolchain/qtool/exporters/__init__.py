"""Ways from a checkpoint to an ONNX graph whose weights are still lazy."""

from __future__ import annotations

from contextlib import ExitStack

import onnx_ir as ir

from qtool import models
from qtool.checkpoint import Checkpoint
from qtool_targets import Target


def export(checkpoint: Checkpoint, target: Target, context: int, exporter: str, stack: ExitStack) -> ir.Model:
    """Writes the graph for a target.

    Args:
        checkpoint: the source.
        target: decides types.
        context: longest sequence in tokens.
        exporter: "native" (qtool's own graphs) or "optimum" (extra `optimum`).
        stack: keeps what the graph's lazy weights refer to (temporary files) until the build is over.
    """
    if exporter == "optimum":
        from qtool.exporters import optimum

        return optimum.export(checkpoint, target, stack)
    dtype = ir.DataType.FLOAT16 if target.precision.activations == "float16" else ir.DataType.FLOAT
    return models.export(checkpoint.config, checkpoint.weights, models.ExportOptions(dtype, context))
