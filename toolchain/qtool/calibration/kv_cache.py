"""Scales of an int8 KV cache: the compiled graph reads a text with its float cache, and we look at the cache.

Keys have channels that are large on every token (the key biases of Qwen2 are far from zero), so each channel
has a scale of its own; with one scale for a whole tensor, the difference to a float cache is some twenty
times as large (tests/bench/NOTES.md). That keys vary by channel: KIVI (Liu et al. 2024), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.artifact.interrupts import deferred_interrupts
from qtool.checkpoint import QwenConfig
from qtool.errors import MissingExtraError, SourceError
from qtool.models.decoder import PAST_KEY, PAST_VALUE, PRESENT_KEY, PRESENT_VALUE
from qtool_runtime.compatibility import check_version, import_onnxruntime

MINIMUM_ONNXRUNTIME = "1.27"
"""The first version whose CPU kernel computes attention over an int8 cache."""

_HEADROOM = 1.15
"""What is larger than anything in the calibration text is cut off beyond this factor. Of 1, 1.15, 1.3 and
1.5, it was the best on another text (tests/bench/NOTES.md)."""

_SMALLEST = 1e-5
"""Range of a channel that is always 0: a scale must not be."""


def check_onnxruntime(*, int8_kv_cache: bool) -> None:
    """Refuses to begin where the calibration could not run.

    Args:
        int8_kv_cache: whether the artifact will have one, which not every version can compute.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        IncompatibleRuntimeError: it is too old.
    """
    try:
        onnxruntime = import_onnxruntime()
    except MissingExtraError as error:
        raise MissingExtraError(
            f"a calibration runs the model, but {error.message}",
            hint=error.hint,
        ) from error
    if int8_kv_cache:
        check_version(str(onnxruntime.__version__), MINIMUM_ONNXRUNTIME)


def measure_scales(
    graph: Path, config: QwenConfig, context: int, windows: Sequence[NDArray[np.int64]], threads: int
) -> dict[str, NDArray[np.float32]]:
    """Returns a scale for each channel of each cached tensor.

    Every window runs in a single thread, and a maximum does not depend on the order of windows: so the
    scales do not depend on `threads`. They do depend on onnxruntime's kernels for this processor.

    Args:
        graph: a model file with a float cache.
        config: sizes of the network.
        context: longest sequence that the artifact is planned for, in tokens.
        windows: token ids, int64 (count,) each.
        threads: windows that are read at a time.

    Returns:
        float32 (key_value_heads, head_dim) by the name of the graph's output, such as "present.0.key".

    Raises:
        SourceError: a key or value is not finite.
    """
    session = _open(graph)
    ranges: dict[str, NDArray[np.float64]] = {}
    with deferred_interrupts() as act, ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_measure, session, config, context, window) for window in windows]
        try:
            for future in futures:
                for name, largest in future.result().items():
                    ranges[name] = np.maximum(largest, ranges.get(name, _SMALLEST))
                act()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name, largest in ranges.items():
        if not np.isfinite(largest).all():
            raise SourceError(
                f"the model computes values that are not finite on the calibration text: {name}",
                hint="The weights are damaged, or the target's float16 activations overflow.",
            )
    return {name: (largest * (_HEADROOM / 127)).astype(np.float32) for name, largest in ranges.items()}


def _open(graph: Path) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it would keep memory for each length of a window
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _measure(
    session: Any, config: QwenConfig, context: int, window: NDArray[np.int64]
) -> Mapping[str, NDArray[np.float64]]:
    """Reads one window with an empty cache, and returns the largest magnitude of each channel."""
    count = len(window)
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": window[None],
        "attention_mask": np.ones((1, count), np.int64),
    }
    layers = range(config.num_hidden_layers)
    types = {value.name: value.type for value in session.get_inputs()}
    for name in [pattern % layer for layer in layers for pattern in (PAST_KEY, PAST_VALUE)]:
        dtype = np.float16 if types[name] == "tensor(float16)" else np.float32
        feeds[name] = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), dtype)
    keys, values = [PRESENT_KEY % layer for layer in layers], [PRESENT_VALUE % layer for layer in layers]
    present = dict(zip(keys + values, session.run(keys + values, feeds), strict=True))
    return {name: largest_at_any_position(present[name][0], config.rope_theta, context) for name in keys} | {
        name: np.abs(present[name][0]).max(axis=1).astype(np.float64) for name in values
    }


def largest_at_any_position(keys: NDArray[Any], theta: float, context: int) -> NDArray[np.float64]:
    """Returns the largest magnitude that each channel of these keys would have anywhere in the context.

    The rotary embedding turns channel i and channel i + head_dim / 2 into each other, by an angle that grows
    with the position. A short text shows the first angles only; the lengths of the pairs and where they
    start are enough to know the others.

    Args:
        keys: rotated keys of the positions 0, 1, 2, … of shape (heads, tokens, head_dim).
        theta: base of the rotary frequencies.
        context: positions to consider.

    Returns:
        Magnitudes of shape (heads, head_dim).
    """
    tokens, head_dim = keys.shape[1:]
    first, second = np.split(keys.astype(np.float64), 2, axis=-1)
    frequency = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turn = frequency * (context - 1)
    start = np.arctan2(second, first) - np.arange(tokens)[:, None] * frequency
    length = np.hypot(first, second)

    def largest(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        """The largest |length * cos(a)| for a from `angle` to `angle + turn`, over all tokens."""
        whole = np.ceil(angle / np.pi) * np.pi <= angle + turn
        ends = np.maximum(np.abs(np.cos(angle)), np.abs(np.cos(angle + turn)))
        found: NDArray[np.float64] = (length * np.where(whole, 1.0, ends)).max(axis=1)
        return found

    return np.concatenate([largest(start), largest(start - np.pi / 2)], axis=-1)
