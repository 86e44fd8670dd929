"""Ways from a checkpoint to an ONNX graph whose weights are still lazy."""

from __future__ import annotations

import onnx_ir as ir

from qtool import models
from qtool.checkpoint import Checkpoint
from qtool.storage import float_type
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
    options = models.ExportOptions(float_type(target), context)
    return models.export(checkpoint.config, checkpoint.weights, options)
