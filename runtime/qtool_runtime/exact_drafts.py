"""Making answers with drafts those without, to the last bit, over kernels that round by the number of rows.

Kernels may have routines of their own for a single row, or for the rows that remain behind tiles of several,
and these sum up in another order: the last bits differ, and where activations are rounded to 8 bits, now and
then the next token. ONNX Runtime's attention has one for a single row on x86-64, its MatMulNBits in groups of
128 for the last of an odd number. Between runs over whole multiples of rows the bits are the same. So a run
is filled up to such a multiple, with tokens that nothing sees and that are forgotten; which multiple it takes
is found by trying. The kernels of qtool-kernels take none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import IncompatibleRuntimeError
from qtool_runtime.graph import LoadedGraph
from qtool_runtime.session import OnnxSession
from qtool_runtime.speculation import MAXIMUM_DRAFT

ROW_MULTIPLES = (1, 2, 4)
"""A run over two rows instead of one takes 5 to 9 % longer with 4-bit weights. On Arm, ONNX Runtime's kernels
would need eight, which takes away what drafts bring."""

PIECES = range(1, MAXIMUM_DRAFT + 2)
"""Tokens of each run of the trial: a token alone, and with drafts of every length."""

PREFIX = 64
"""Tokens before them, so that attention has something to sum up."""


def make_drafts_exact(graph: LoadedGraph) -> LoadedGraph:
    """Returns the graph with the smallest multiple of rows for which a trial finds the same bits in all runs.

    The trial reads the same tokens twice, in pieces that grow and in pieces that shrink, which takes about as
    long as to generate 20 tokens.

    Raises:
        IncompatibleRuntimeError: the bits differ with each of `ROW_MULTIPLES`, or the context has no room for
            the trial.
    """
    count = PREFIX + sum(PIECES)
    if graph.capacity < count + max(ROW_MULTIPLES):
        raise IncompatibleRuntimeError(
            f"exact_drafts needs a context of {count + max(ROW_MULTIPLES)} tokens or more, not"
            f" {graph.capacity}",
            hint="Load with a longer context, or without exact_drafts.",
        )
    tokens = np.random.default_rng(0).integers(0, graph.vocab_size, count)
    for multiple in ROW_MULTIPLES:
        candidate = graph.with_row_multiple(multiple)
        if np.array_equal(_logits(candidate, tokens, PIECES), _logits(candidate, tokens, PIECES[::-1])):
            return candidate
    raise IncompatibleRuntimeError(
        "exact_drafts: the kernels round otherwise for every number of tokens in a forward pass",
        hint="Install qtool-kernels, whose results do not depend on it, or load without exact_drafts.",
    )


def _logits(graph: LoadedGraph, tokens: NDArray[np.int64], pieces: Sequence[int]) -> NDArray[np.float32]:
    """Returns the logits behind the tokens after the prefix, which are read in pieces of these lengths."""
    session = OnnxSession(graph)
    session.forward(tokens[:PREFIX])
    cut = np.split(tokens[PREFIX:], np.cumsum(pieces)[:-1])
    return np.concatenate([session.forward(piece, len(piece)).copy() for piece in cut])
