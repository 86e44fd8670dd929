"""What a model and its generation loop need of an inference engine; `engines.py` knows which there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import GenerationError
from qtool_runtime.kernels import AUTO, Kernels
from qtool_runtime.kv_cache import CacheLayout, Snapshot
from qtool_runtime.threads import Threads


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is to run an artifact.

    Attributes:
        provider: where; None for where the artifact was built for.
        threads: CPU threads of the kernels.
        context: longest sequence, in tokens.
        kernels: "auto", "off" or one of the kernel pack's instruction sets; see `kernels.choose_kernels`.
        exact_drafts: whether a token's result must have the same bits alone and behind or before drafts.
    """

    provider: str | None
    threads: Threads
    context: int
    kernels: str = AUTO
    exact_drafts: bool = False


class Cancelled(GenerationError):
    """`Session.cancel` stopped a forward pass. The cache holds the passes that had ended."""


class DeadlinePassed(GenerationError):
    """The session's time was up before a forward pass. The cache holds the passes that had ended."""


class Session(Protocol):
    """A sequence of tokens that a model has read, ready to read more.

    Sessions over one model are independent; use one from one thread at a time (`cancel` excepted).

    Attributes:
        deadline: the value of `time.perf_counter()` from which on no forward pass begins; None for none.
    """

    deadline: float | None

    @property
    def length(self) -> int:
        """Tokens read so far."""

    @property
    def context(self) -> int:
        """Most tokens this session can hold."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""

    @property
    def row_limit(self) -> int:
        """Most rows of logits that one forward pass returns; 1 for engines that only return the last."""

    @property
    def seconds_ahead(self) -> float:
        """Seconds that the last forward pass took before it was asked for, together with others; mostly 0."""

    def forward(self, token_ids: Sequence[int] | NDArray[np.int64], rows: int = 1) -> NDArray[np.float32]:
        """Reads tokens, and returns what the model predicts after the last `rows` of them.

        Args:
            token_ids: the next tokens, at least one.
            rows: how many rows of logits to return, counted from the last token.

        Returns:
            Logits of shape (rows, vocab_size). The next call may overwrite them: copy them to keep them.

        Raises:
            ContextLimitError: the tokens do not fit; none has been read.
            Cancelled: `cancel` was called.
            DeadlinePassed: the time is up; passes that had ended are read.
            GenerationError: no token was given, `rows` is out of its range, or the session is closed.
        """

    def announce(self, token_id: int) -> None:
        """Says which token will be read next. Engines that read several sequences at once prepare for it."""

    def truncate(self, length: int) -> None:
        """Forgets all tokens after the first `length`.

        Raises:
            GenerationError: fewer tokens than that have been read.
        """

    def snapshot(self, start: int = 0, stop: int | None = None) -> Snapshot | None:
        """Returns a copy of the keys and values of tokens [start, stop); None if the engine cannot give them.

        Args:
            start: first token.
            stop: token after the last; None for all that were read.
        """

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Replaces what was read by the tokens of snapshots, one behind the other.

        Args:
            snapshots: of sessions over the same model, at least one token in all; they are copied.
        """

    def cancel(self) -> None:
        """Stops a forward pass that runs in another thread, and refuses further ones."""

    def close(self) -> None:
        """Frees the KV cache. Closing twice does nothing."""


class Engine(Protocol):
    """A model file, opened by an inference engine and ready to run.

    It holds no tokens; its sessions do, and keep the weights as long as one of them lives. Nothing above this
    protocol asks which engine it is: what differs between engines, sessions say (`row_limit`, `snapshot`).
    """

    @property
    def name(self) -> str:
        """What `load` calls the engine."""

    @property
    def provider(self) -> str:
        """Where it runs, such as "cpu"."""

    @property
    def threads(self) -> int:
        """CPU threads in use."""

    @property
    def kernels(self) -> Kernels:
        """What computes matrix products and attention."""

    @property
    def context(self) -> int:
        """Most tokens that a session can hold."""

    @property
    def cache_layout(self) -> CacheLayout | None:
        """The tensors of a `Snapshot`; None if its sessions give none."""

    def new_sessions(self, together: int) -> Callable[[], Session]:
        """Returns a maker of sessions that have read nothing yet.

        Args:
            together: how many of them will be in progress at once, more or less. An engine that can read
                several sequences in one forward pass does so for the sessions of one maker.
        """
