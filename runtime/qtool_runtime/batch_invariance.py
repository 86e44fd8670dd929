"""Making a token's result independent of how many others are computed in the same forward pass.

Kernels may have routines of their own for a single row, or for the rows that remain behind tiles of several,
and these sum up in another order: the last bits differ, and where activations are rounded to 8 bits, now and
then the next token. ONNX Runtime's attention has one for a single row on x86-64, its MatMulNBits in groups of
128 for the last of an odd number. Between runs over whole multiples of rows the bits are the same. So a run
is filled up to such a multiple, with tokens that nothing sees and that are forgotten; which multiple it takes
is found by trying.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import IncompatibleRuntimeError
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.session import OnnxSession

ROW_MULTIPLES = (1, 2, 4, 8)
"""Widths of the tiles that kernels are written for. A run over two rows instead of one takes 5 to 9 % longer
with 4-bit weights."""

PIECES = (1, 2, 3, 5, 1, 4)
"""Tokens of each run of the trial: single ones, and what leaves a remainder to any tile."""

PREFIX = 64
"""Tokens before them, so that attention has something to sum up."""


def make_batch_invariant(graph: LoadedGraph) -> LoadedGraph:
    """Returns the graph with the smallest multiple of rows for which a trial gives the same bits in all ways.

    The trial reads 80 tokens in one run, and again in several, which takes about as long as to generate 20.

    Raises:
        IncompatibleRuntimeError: the kernels give other bits with each of `ROW_MULTIPLES`, or the context has
            no room for the trial.
    """
    count = PREFIX + sum(PIECES)
    largest = max(ROW_MULTIPLES)
    if graph.capacity < count + largest:
        raise IncompatibleRuntimeError(
            f"batch_invariant needs a context of {count + largest} tokens or more, not {graph.capacity}",
            hint="Load with a longer context.",
        )
    tokens = np.random.default_rng(0).integers(0, graph.vocab_size, count)
    for multiple in ROW_MULTIPLES:
        candidate = graph.with_row_multiple(multiple)
        together = _logits(candidate, tokens, [count - PREFIX])
        if np.array_equal(together, _logits(candidate, tokens, PIECES)):
            return candidate
    raise IncompatibleRuntimeError(
        "these kernels round a token's result otherwise for every number of tokens in a forward pass",
        hint="Install qtool-kernels, whose results do not depend on it, or load without batch_invariant.",
    )


def _logits(graph: LoadedGraph, tokens: NDArray[np.int64], pieces: Sequence[int]) -> NDArray[np.float32]:
    """Returns the logits behind the tokens after the prefix, which are read in pieces of these lengths."""
    session = OnnxSession(graph)
    session.forward(tokens[:PREFIX])
    cut = np.split(tokens[PREFIX:], np.cumsum(pieces)[:-1])
    return np.concatenate([session.forward(piece, len(piece)).copy() for piece in cut])
