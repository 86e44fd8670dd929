"""Objects that one thread at a time may use."""

from __future__ import annotations

import threading
from types import TracebackType

from qtool_runtime.errors import GenerationError


class SoleUse:
    """A context in which one thread uses an object; another one is refused instead of kept waiting.

    Two threads that read one answer would each get half of it: an error says so, and the first goes on.

    Args:
        what: the object, for the error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise GenerationError(
                f"another thread is using this {self._what}",
                hint="Use it from one thread at a time; cancel() may be called from any.",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
