"""GPTQ through a whole model, with one decoder layer in memory at a time.

The calibration text flows through the layers as hidden states. Within a layer, what its linear layers read is
measured in their order, each with those before it quantized already; then the quantized layer computes the
hidden states that the next one is calibrated on, so that later matrices make up for the errors of earlier
ones. The LM head is calibrated on the last hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qtool.artifact.interrupts import deferred_interrupts
from qtool.calibration.hidden import gather, normalize
from qtool.calibration.layer_runner import LayerRunner
from qtool.checkpoint import Checkpoint
from qtool.checkpoint.layout import EMBEDDING, FINAL_NORM, LM_HEAD, layer_shapes
from qtool.errors import SourceError
from qtool.quantize import gptq, rtn
from qtool.quantize.formats import Formats, multiplied_matrices
from qtool.quantize.rtn import Quantized
from qtool.quantize.schemes import Scheme
from qtool.quantize.storage import Calibrated, CalibratedStorage
from qtool.storage import float_type, rows_for
from qtool_targets import Target

FloatArray = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""(bytes of the artifact computed, in total)"""

_ROWS_AT_ONCE = 512
"""Rows quantized together: a block of their columns stays in a core's cache."""


def quantize_layers(
    checkpoint: Checkpoint,
    target: Target,
    formats: Formats,
    windows: NDArray[np.int64],
    *,
    folder: Path,
    threads: int,
    progress: Progress,
) -> Calibrated:
    """Quantizes the matrices of a model that would lose by rounding to nearest.

    Nothing depends on the number of threads: BLAS is held to one, each task is computed by one thread, and
    results are put together in a fixed order. Bytes do depend on the kernels of numpy and onnxruntime for
    this processor.

    Args:
        checkpoint: the model.
        target: what the artifact is for.
        formats: how each matrix is stored.
        windows: token ids of the calibration text, (windows, tokens).
        folder: where the integers are kept until they are written to the artifact.
        threads: tasks at a time.
        progress: told after each matrix.

    Raises:
        SourceError: the model computes values that are not finite, or a weight cannot be read.
    """
    config = checkpoint.config
    with threadpool_limits(1, "blas"), deferred_interrupts() as act, ThreadPoolExecutor(threads) as pool:
        runner = LayerRunner(checkpoint, windows.shape[1], pool, threads)
        matrices = _Matrices(checkpoint, target, formats, folder=folder, pool=pool, progress=progress)
        hidden = gather(checkpoint.weights[EMBEDDING], windows)
        for index in range(config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            weights = {name: checkpoint.weights[prefix + name].read_all() for name in layer_shapes(config)}
            for step in runner.steps:
                names = [prefix + name for name in step.linears if matrices.calibrates(prefix + name)]
                if names:
                    hessian = runner.hessian(step, weights, hidden)
                    for name, values in matrices.quantize(names, hessian).items():
                        weights[name.removeprefix(prefix)] = values
                act()
            hidden = runner.next_hidden(weights, hidden)
        head = EMBEDDING if config.tie_word_embeddings else LM_HEAD
        if matrices.calibrates(head):
            scale = checkpoint.weights[FINAL_NORM].read_all()
            rows = normalize(hidden.reshape(-1, config.hidden_size), scale, config.rms_norm_eps)
            matrices.quantize([head], rows.T @ rows)
    return matrices.calibrated


class _Matrices:
    """The matrices of one model that are calibrated."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        formats: Formats,
        *,
        folder: Path,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self._pool = pool
        self._progress = progress
        self._schemes: dict[str, Scheme] = {}
        self._storages: dict[str, CalibratedStorage] = {}
        for name, scheme in multiplied_matrices(checkpoint.config, formats):
            if scheme.loses_by_rounding:
                calibrated = replace(scheme, algorithm=gptq.NAME)
                weight = checkpoint.weights[name]
                self._schemes[name] = scheme
                self._storages[name] = CalibratedStorage(weight, calibrated, float_type(target), folder)
        self._bytes = {
            name: sum(part.nbytes for part in storage.parts) for name, storage in self._storages.items()
        }
        self._done = 0

    @property
    def calibrated(self) -> Calibrated:
        """The integers, by name and scheme as the target has it."""
        return {(name, self._schemes[name]): storage for name, storage in self._storages.items()}

    def calibrates(self, name: str) -> bool:
        """Tells whether a matrix is calibrated."""
        return name in self._storages

    def quantize(self, names: Sequence[str], hessian: FloatArray) -> dict[str, FloatArray]:
        """Quantizes matrices that read the same input, keeps the integers, and returns what they stand for.

        A LM head is not returned: nothing reads on from it, and it may be larger than all else.
        """
        if not np.isfinite(hessian).all():
            raise SourceError(
                f"the model computes values that are not finite on the calibration text: before {names[0]}",
                hint="The weights are damaged.",
            )
        factor = gptq.inverse_factor(hessian, self._pool.map)
        return {name: self._quantize(name, factor) for name in names}

    def _quantize(self, name: str, factor: FloatArray) -> FloatArray:
        storage, scheme = self._storages[name], self._schemes[name]
        weight, scale_type = storage.weight, storage.scale_type

        def quantize(start: int) -> Quantized:
            rows = rows_for(weight, start, min(start + _ROWS_AT_ONCE, weight.shape[0]), scale_type)
            return gptq.quantize(rows, factor, scheme, scale_type.numpy())

        values = []
        for quantized in self._pool.map(quantize, range(0, weight.shape[0], _ROWS_AT_ONCE)):
            storage.append(quantized)
            if name not in (EMBEDDING, LM_HEAD):
                values.append(rtn.dequantize(quantized, scheme))
        self._done += self._bytes[name]
        self._progress(self._done, sum(self._bytes.values()))
        return np.concatenate(values) if values else np.empty((0, weight.shape[1]), np.float32)
