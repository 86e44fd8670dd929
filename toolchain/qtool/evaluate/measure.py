"""Runs models side by side over the windows of a text.

Every model reads a few tokens, their logits are compared, and only then the next few are read: the logits of
a whole text, or of a window, are never in memory at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from qtool.evaluate.divergence import Ids, Logits, Tally, compare
from qtool_runtime.engine import Session

WINDOW = 512
"""Tokens that see each other. Each window starts with an empty cache."""

LOGITS_BYTES = 32 << 20
"""Most bytes of one model's logits that are in memory at the same time."""

Progress = Callable[[int, int], None]
"""(tokens done, tokens in all)"""


class Reader(Protocol):
    """Something that predicts the next token at every position of a window.

    Attributes:
        name: what errors call it.
    """

    name: str

    def read(self, window: Ids, rows: int) -> Iterator[Logits]:
        """Yields logits for all positions of a window, in order.

        Args:
            window: token ids of shape (tokens,); nothing was read before them.
            rows: positions to yield at a time; the last may be fewer.

        Yields:
            Logits of shape (positions, vocabulary), which may be overwritten when the next are asked for.
        """


class SessionReader:
    """Reads windows with a session of qtool's runtime.

    Args:
        session: of a loaded artifact.
        name: what errors call it.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name

    def read(self, window: Ids, rows: int) -> Iterator[Logits]:
        """See `Reader`."""
        self._session.truncate(0)
        for start in range(0, len(window), rows):
            tokens = window[start : start + rows]
            yield self._session.forward(tokens, rows=len(tokens))


def measure(
    reference: Reader,
    models: Sequence[Reader],
    tokens: Ids,
    *,
    vocab_size: int,
    window: int = WINDOW,
    progress: Progress = lambda done, total: None,
) -> list[Tally]:
    """Compares models with a reference over a text.

    Args:
        reference: what the models should predict like.
        models: each is compared with the reference.
        tokens: the text; one more than there are predictions, as the last token is only predicted.
        vocab_size: numbers in a row of logits.
        window: tokens that see each other.
        progress: told after every few tokens.

    Returns:
        A tally of the reference, compared with itself, then one of each model.

    Raises:
        ArtifactError: a model predicts something that is no number.
    """
    count = len(tokens) - 1
    rows = max(1, LOGITS_BYTES // (vocab_size * np.dtype(np.float32).itemsize))
    tallies = [Tally(reader.name) for reader in (reference, *models)]
    done = 0
    for start in range(0, count, window):
        stop = min(start + window, count)
        readers = (reader.read(tokens[start:stop], rows) for reader in (reference, *models))
        for expected, *others in zip(*readers, strict=True):
            targets = tokens[done + 1 : done + 1 + len(expected)]
            compare(expected, others, targets, tallies)
            done += len(expected)
            progress(done, count)
    return tallies
