"""Network architectures, one file each, named after the `model_type` of the checkpoints they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from qtool.checkpoint import QwenConfig, Weight
from qtool.errors import UnsupportedModelError
from qtool.models import qwen2, qwen3
from qtool.models.decoder import ExportOptions

__all__ = ["ExportOptions", "export"]

_ARCHITECTURES: dict[str, Callable[[QwenConfig, Mapping[str, Weight], ExportOptions], ir.Model]] = {
    "qwen2": qwen2.export,
    "qwen3": qwen3.export,
}


def export(config: QwenConfig, weights: Mapping[str, Weight], options: ExportOptions) -> ir.Model:
    """Writes the graph of a model; no weight is read.

    Raises:
        UnsupportedModelError: there is no exporter for the model's architecture.
    """
    if config.model_type not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} has no exporter; known: {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[config.model_type](config, weights, options)
