"""What it costs to store a matrix in few bits, measured for each matrix of a model.

One matrix at a time is rounded while all others stay in float32, and the model's predictions are compared
with those of the float model: the KL divergence is what the matrix costs. All these models run together, one
decoder layer after the other, so that a layer is read once and only one is in memory: what flows through
them are the hidden states of the float model and, for every matrix so far, those of the model with this
matrix rounded.

A matrix is measured in one format. In others it costs as much more or less as the squares of its rounding
errors have another sum: to second order, KL divergence is quadratic in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qtool.artifact.interrupts import deferred_interrupts
from qtool.calibration.hidden import TABLE_ROWS_AT_ONCE, gather, normalize
from qtool.calibration.layer_runner import LayerRunner
from qtool.calibration.text import PROBED_TOKENS, PROBED_WINDOWS
from qtool.checkpoint import Checkpoint, Weight
from qtool.checkpoint.layout import EMBEDDING, FINAL_NORM, LM_HEAD, layer_shapes
from qtool.quantize import rtn
from qtool.quantize.choices import Losses
from qtool.quantize.schemes import Scheme

FloatArray = NDArray[np.float32]

_EXACT = ""
"""Name of the float model."""
_AT_ONCE = 16
"""Models whose hidden states go through a layer together."""
_LIKELIEST = 128
"""Predictions are compared over the tokens that are among so many likeliest ones at any position."""
_EVERY_ROW = 16
"""Errors in other formats are computed of every so many rows."""
_ACTIVATIONS = {32: 0.009, 64: 0.016, 128: 0.027}
"""What it costs that kernels round activations to 8 bits in groups of the same size, relative to rounding the
weights to 4 bits in groups of 32 (tests/bench/NOTES.md)."""
_READERS = {
    "q_proj": 0.5,
    "k_proj": 0.67,
    "v_proj": 1.15,
    "o_proj": 0.55,
    "gate_proj": 0.37,
    "up_proj": 0.45,
    "down_proj": 1.1,
}
"""How many times as much that is for what these matrices read; 1 for the LM head."""


def measure_losses(
    checkpoint: Checkpoint,
    options: Mapping[str, Sequence[Scheme]],
    windows: NDArray[np.int64],
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> Losses:
    """Measures what each format of each matrix costs, in nats of KL divergence.

    The result does not depend on the number of threads (see `layers.quantize_layers`).

    Args:
        checkpoint: the model.
        options: the formats of each matrix that is to be measured; integers.
        windows: token ids of the calibration text, (windows, tokens).
        threads: tasks at a time.
        progress: told (layers done, in all).

    Raises:
        SourceError: a weight cannot be read.
    """
    tokens = windows[np.linspace(0, len(windows) - 1, PROBED_WINDOWS).astype(int), :PROBED_TOKENS]
    with threadpool_limits(1, "blas"), deferred_interrupts() as act, ThreadPoolExecutor(threads) as pool:
        runner = LayerRunner(checkpoint, tokens.shape[1], pool, threads)

        def each_layer(done: int) -> None:
            progress(done, checkpoint.config.num_hidden_layers)
            act()

        hidden = _hidden_states(checkpoint, options, tokens, runner, each_layer)
        divergences = _divergences(checkpoint, options, hidden, pool)
        tasks = [(_weight(checkpoint, name), schemes) for name, schemes in options.items()]
        errors = pool.map(lambda task: _errors(*task), tasks)
        return {
            name: _losses(divergences[name], errors_of_one, _activations(name))
            for name, errors_of_one in zip(options, errors, strict=True)
        }


def _hidden_states(
    checkpoint: Checkpoint,
    options: Mapping[str, Sequence[Scheme]],
    tokens: NDArray[np.int64],
    runner: LayerRunner,
    progress: Callable[[int], None],
) -> dict[str, FloatArray]:
    """Computes the last hidden states of the float model and of those with one matrix rounded, by its name.

    Each is float32 (windows, tokens, hidden_size). An LM head changes nothing here.
    """
    config, weights = checkpoint.config, checkpoint.weights
    hidden = {_EXACT: gather(weights[EMBEDDING], tokens)}
    if EMBEDDING in options:
        hidden[EMBEDDING] = gather(weights[EMBEDDING], tokens, _rounding(options[EMBEDDING]))
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        layer = {name: weights[prefix + name].read_all() for name in layer_shapes(config)}
        changed = {}
        for name, matrix in layer.items():
            if prefix + name in options:
                rounded = _rounding(options[prefix + name])(matrix)
                changed[prefix + name] = runner.next_hidden(layer | {name: rounded}, hidden[_EXACT])
        names = list(hidden)
        for start in range(0, len(names), _AT_ONCE):
            batch = names[start : start + _AT_ONCE]
            outputs = runner.next_hidden(layer, np.concatenate([hidden[name] for name in batch]))
            hidden.update(zip(batch, np.split(outputs, len(batch)), strict=True))
        hidden |= changed
        progress(index + 1)
    return hidden


def _divergences(
    checkpoint: Checkpoint,
    options: Mapping[str, Sequence[Scheme]],
    hidden: Mapping[str, FloatArray],
    pool: ThreadPoolExecutor,
) -> dict[str, float]:
    """Compares predictions with those of the float model, over the tokens that it finds likely."""
    config, scale = checkpoint.config, checkpoint.weights[FINAL_NORM].read_all()
    weight = _weight(checkpoint, LM_HEAD)
    # A tied table that is stored once is rounded for both of its uses.
    head = EMBEDDING if config.tie_word_embeddings and LM_HEAD not in options else LM_HEAD

    def rows(name: str) -> FloatArray:
        return normalize(hidden[name].reshape(-1, config.hidden_size), scale, config.rms_norm_eps)

    ids = _likely_tokens(weight, rows(_EXACT), pool)
    table = gather(weight, ids)
    tables = {head: gather(weight, ids, _rounding(options[head]))} if head in options else {}
    exact = rows(_EXACT) @ table.T

    def divergence(name: str) -> float:
        seen = rows(name if name in hidden else _EXACT)
        return _divergence(exact, seen @ tables.get(name, table).T)

    return dict(zip(options, pool.map(divergence, options), strict=True))


def _weight(checkpoint: Checkpoint, name: str) -> Weight:
    """Returns a tensor; the LM head of a tied model is its embedding."""
    tied = name == LM_HEAD and checkpoint.config.tie_word_embeddings
    return checkpoint.weights[EMBEDDING if tied else name]


def _likely_tokens(table: Weight, rows: FloatArray, pool: ThreadPoolExecutor) -> NDArray[np.int64]:
    """Returns the ids of all tokens that are among the likeliest at some position, ascending."""
    starts = range(0, table.shape[0], TABLE_ROWS_AT_ONCE)

    def logits(start: int) -> FloatArray:
        return rows @ table.read(start, min(start + TABLE_ROWS_AT_ONCE, table.shape[0])).T

    whole = np.empty((len(rows), table.shape[0]), np.float32)
    for start, piece in zip(starts, pool.map(logits, starts), strict=True):
        whole[:, start : start + piece.shape[1]] = piece
    count = min(_LIKELIEST, whole.shape[1])
    return np.unique([np.argpartition(row, -count)[-count:] for row in whole])


def _divergence(exact: FloatArray, found: FloatArray) -> float:
    """Returns the mean KL divergence of rows of logits."""
    expected, other = (_log_probabilities(logits.astype(np.float64)) for logits in (exact, found))
    return float((np.exp(expected) * (expected - other)).sum(axis=1).mean())


def _log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _probe(schemes: Sequence[Scheme]) -> Scheme:
    """Returns the format that a matrix is measured in: 4 bits in the largest groups.

    Larger errors are measured more exactly; still larger ones would no longer be in proportion.
    """
    return min(schemes, key=lambda scheme: (abs(scheme.bits - 4), -scheme.group_size, scheme.symmetric))


def _rounding(schemes: Sequence[Scheme]) -> Callable[[FloatArray], FloatArray]:
    return lambda rows: _round(rows, _probe(schemes))


def _round(rows: FloatArray, scheme: Scheme) -> FloatArray:
    return rtn.dequantize(rtn.quantize(rows, scheme), scheme)


def _errors(weight: Weight, schemes: Sequence[Scheme]) -> dict[Scheme, float]:
    """Sums the squares of the rounding errors of some rows."""
    errors = dict.fromkeys(schemes, 0.0)
    for start in range(0, weight.shape[0], TABLE_ROWS_AT_ONCE):
        rows = weight.read(start, min(start + TABLE_ROWS_AT_ONCE, weight.shape[0]))[::_EVERY_ROW]
        for scheme in schemes:
            errors[scheme] += float(np.square(rows - _round(rows, scheme)).sum(dtype=np.float64))
    return errors


def _activations(name: str) -> dict[int, float]:
    """Returns what rounding a matrix's input costs, by the size of groups; see `_ACTIVATIONS`."""
    factor = next((factor for reader, factor in _READERS.items() if f".{reader}." in name), 1.0)
    return {size: factor * cost for size, cost in _ACTIVATIONS.items()}


def _losses(
    divergence: float, errors: Mapping[Scheme, float], activations: Mapping[int, float]
) -> dict[Scheme, float]:
    """Returns what each format costs, from what the measured one does, and from `_activations`."""
    measured = errors[_probe(list(errors))]
    if measured == 0:  # the weights lie on that grid: nothing was measured, but their errors can be compared
        divergence = measured = 1.0
    usual = divergence * min(error for scheme, error in errors.items() if scheme.bits == 4) / measured
    return {
        scheme: divergence * error / measured + usual * activations[scheme.group_size]
        for scheme, error in errors.items()
    }
