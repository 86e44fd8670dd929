"""Runs one decoder layer at a time over the calibration text, with weights that are given for each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtool.calibration.text import WINDOWS_AT_ONCE
from qtool.checkpoint import Checkpoint
from qtool.models import LayerGraph, layer_graphs
from qtool.models.decoder import PAST_KEY, PAST_VALUE
from qtool.models.layer import HESSIAN, HIDDEN, NEXT_HIDDEN
from qtool_runtime.compatibility import import_onnxruntime

FloatArray = NDArray[np.float32]


class Step(NamedTuple):
    """One value within a layer that linear layers read."""

    linears: tuple[str, ...]
    """Their weights, named as within the layer."""
    session: Any


class LayerRunner:
    """Sessions for the parts of a layer; the same ones serve all layers.

    Every run is computed by one thread and sums are made in the order of the windows, so results do not
    depend on the number of threads. They do depend on onnxruntime's kernels for this processor.

    Args:
        checkpoint: the model.
        length: tokens in a window.
        pool: computes the runs.
        threads: runs at a time.
    """

    def __init__(self, checkpoint: Checkpoint, length: int, pool: ThreadPoolExecutor, threads: int) -> None:
        config = checkpoint.config
        *steps, last = layer_graphs(config, checkpoint.weights, length)
        self.steps: Sequence[Step] = [Step(graph.linears, _session(graph)) for graph in steps]
        self._last = _session(last)
        self._past_shape = (config.num_key_value_heads, 0, config.head_dim)
        self._pool = pool
        self._threads = threads

    def hessian(self, step: Step, weights: Mapping[str, FloatArray], hidden: FloatArray) -> FloatArray:
        """Returns X^T X over all tokens, for what the step's linear layers read.

        Args:
            step: one of `steps`.
            weights: the layer's tensors, named as within it; those before the step are quantized already.
            hidden: what the layer reads, float32 (windows, tokens, hidden_size).

        Returns:
            float32 (features, features).
        """
        results = self._run(step.session, HESSIAN, weights, hidden)
        total = next(results)
        for result in results:
            total += result
        return total

    def next_hidden(self, weights: Mapping[str, FloatArray], hidden: FloatArray) -> FloatArray:
        """Returns what the layer gives to the next one, of the same shape as `hidden`."""
        following = np.empty_like(hidden)
        for index, windows in enumerate(self._run(self._last, NEXT_HIDDEN, weights, hidden)):
            start = index * WINDOWS_AT_ONCE
            following[start : start + len(windows)] = windows
        return following

    def _run(
        self, session: Any, output: str, weights: Mapping[str, FloatArray], hidden: FloatArray
    ) -> Iterator[FloatArray]:
        """Yields an output for every few windows, in order, while the next ones are computed."""
        inputs = {value.name for value in session.get_inputs()}

        def run(start: int) -> FloatArray:
            windows = hidden[start : start + WINDOWS_AT_ONCE]
            past = np.zeros((len(windows), *self._past_shape), np.float32)
            feeds = {
                **weights,
                HIDDEN: windows,
                "attention_mask": np.ones(windows.shape[:2], np.int64),
                PAST_KEY % 0: past,
                PAST_VALUE % 0: past,
            }
            (result,) = session.run([output], {name: feeds[name] for name in inputs})
            return np.asarray(result)

        starts = range(0, len(hidden), WINDOWS_AT_ONCE)
        for first in range(0, len(starts), self._threads):  # so that no more results wait than are computed
            yield from self._pool.map(run, starts[first : first + self._threads])


def _session(graph: LayerGraph) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False  # every session would keep its peak
    content = ir.to_proto(graph.model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
