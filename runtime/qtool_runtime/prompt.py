"""The tokens that an answer continues, or several answers: then they are read once, for all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.engine import Session
from qtool_runtime.kv_cache import Snapshot
from qtool_runtime.prefix_memory import PrefixMemory

LEAST_READ = 2
"""Tokens of a prompt that are read even if they are known: the last one for its logits, and one beside it."""


class Prompt:
    """Token ids of a prompt, and what the model made of them as long as an answer still needs that.

    The first answer to start reads the prompt, less what the memory knows of it; the others copy its keys and
    values. A copy is kept until the last has started. Answers may start in different threads.

    Keys and values from the memory are those that a forward pass computed, so an answer is the same with and
    without it, bit for bit, where the same kernels have run. They have for what was read as a prompt before:
    kernels for one token round otherwise than those for several, and so at least `LEAST_READ` are read anew.
    The tokens of an earlier answer were read one by one: a prompt that contains it continues from that, which
    may differ from reading it again by rounding (1 % of the largest logit with 4-bit weights, whose kernels
    round activations to 8 bits), but not with qtool-kernels.

    Args:
        token_ids: shape (count,), at least one.
        memory: what sessions over this model have read.
        answers: how many answers will continue it.
        remember: whether the memory may keep the prompt and its answers.
    """

    def __init__(
        self, token_ids: NDArray[np.int64], memory: PrefixMemory, *, answers: int = 1, remember: bool = True
    ) -> None:
        self.token_ids = token_ids
        self._memory = memory
        self._to_come = answers
        self._remember = remember
        self._read: tuple[Snapshot, NDArray[np.float32]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.token_ids)

    def read_into(self, session: Session) -> tuple[NDArray[np.float32], int]:
        """Makes an empty session one that has read the prompt.

        Returns:
            What the model predicts after the last token: logits of shape (vocab_size,), which the session's
            next forward pass may overwrite; and how many tokens were known, so that they were not read.

        Raises:
            ContextLimitError: the prompt does not fit.
            Cancelled: the session was cancelled.
            DeadlinePassed: the session's time was up.
        """
        with self._lock:
            self._to_come -= 1
            if self._read is not None:
                read, logits = self._read
                session.restore([read])
                known = len(self)
            else:
                logits, known = self._forward(session)
                snapshot = session.snapshot() if self._to_come > 0 else None
                if snapshot is not None:
                    self._read = (snapshot, logits.copy())
            if self._to_come <= 0:
                self._read = None
            return logits, known

    def remember(self, session: Session, token_ids: Sequence[int]) -> None:
        """Lets the memory keep what a session has read: the first tokens of prompt and answer."""
        if self._remember:
            self._memory.remember(token_ids[: session.length], session.snapshot)

    def instead(self, token_ids: NDArray[np.int64]) -> Prompt:
        """Returns another prompt for one answer, which is remembered as this one is."""
        return Prompt(token_ids, self._memory, remember=self._remember)

    def _forward(self, session: Session) -> tuple[NDArray[np.float32], int]:
        """Restores what the memory knows, and reads the rest."""
        known = self._memory.find(self.token_ids[:-LEAST_READ].tolist())
        if known:
            session.restore(known)
        restored = session.length
        try:
            return session.forward(self.token_ids[restored:])[-1], restored
        finally:  # a cancelled prompt too
            self.remember(session, self.token_ids.tolist())
