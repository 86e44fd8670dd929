"""Network architectures, one file each, named after the `model_type` of the checkpoints they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qtool.checkpoint import QwenConfig, Weight
from qtool.errors import UnsupportedModelError
from qtool.models import decoder, layer, qwen2, qwen3
from qtool.models.decoder import ExportOptions, Projections
from qtool.models.layer import LayerGraph

__all__ = ["ExportOptions", "LayerGraph", "export", "layer_graphs"]

_PROJECTIONS: dict[str, Projections] = {"qwen2": qwen2.projections, "qwen3": qwen3.projections}


def export(config: QwenConfig, weights: Mapping[str, Weight], options: ExportOptions) -> ir.Model:
    """Writes the graph of a model; no weight is read.

    Raises:
        UnsupportedModelError: there is no exporter for the model's architecture.
    """
    return decoder.export(config, weights, options, _projections(config))


def layer_graphs(config: QwenConfig, weights: Mapping[str, Weight], context: int) -> Sequence[LayerGraph]:
    """Writes the graphs that one layer of a model is calibrated with (see `models.layer`).

    Raises:
        UnsupportedModelError: there is no exporter for the model's architecture.
    """
    return layer.layer_graphs(config, weights, context, _projections(config))


def _projections(config: QwenConfig) -> Projections:
    if config.model_type not in _PROJECTIONS:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} has no exporter; known: {', '.join(_PROJECTIONS)}"
        )
    return _PROJECTIONS[config.model_type]
