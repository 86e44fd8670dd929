"""The tokens that an answer continues, or several answers: then they are read once, for all of them."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.engine import Session
from qtool_runtime.kv_cache import Snapshot


class Prompt:
    """Token ids of a prompt, and what the model made of them as long as an answer still needs that.

    The first answer to start reads the prompt; the others copy its keys and values. A copy is kept until the
    last has started. Answers may start in different threads.

    Args:
        token_ids: shape (count,), at least one.
        answers: how many answers will continue it.
    """

    def __init__(self, token_ids: NDArray[np.int64], answers: int = 1) -> None:
        self.token_ids = token_ids
        self._to_come = answers
        self._read: tuple[Snapshot, NDArray[np.float32]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.token_ids)

    def read_into(self, session: Session) -> NDArray[np.float32]:
        """Makes an empty session one that has read the prompt.

        Returns:
            What the model predicts after the last token: logits of shape (vocab_size,). The session's next
            forward pass may overwrite them.

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
            else:
                logits = session.forward(self.token_ids)[-1]
                snapshot = session.snapshot() if self._to_come > 0 else None
                if snapshot is not None:
                    self._read = (snapshot, logits.copy())
            if self._to_come <= 0:
                self._read = None
            return logits
