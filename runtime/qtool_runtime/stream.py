"""The object that a generation hands to the application: pieces of text as they come, and what came of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType

from qtool_runtime.generate import GenerationResult
from qtool_runtime.session import Cancelled, Session
from qtool_runtime.text import StopStrings, StreamDecoder


class TextStream(Iterator[str]):
    """Text of an answer, piece by piece. Nothing runs until the first piece is asked for.

    Iterate over it from one thread; `cancel` may be called from any. Leaving it half-way frees its KV cache
    when the stream is closed or collected.

    Args:
        session: the tokens in progress; the stream closes it at its end.
        token_ids: the generation loop over that session.
        decoder: turns ids into text.
        stops: ends the text.
        result: what the loop fills in.
    """

    def __init__(
        self,
        session: Session,
        token_ids: Iterator[int],
        decoder: StreamDecoder,
        stops: StopStrings,
        result: GenerationResult,
    ) -> None:
        self._session = session
        self._result = result
        self._text: list[str] = []
        self._pieces = _pieces(session, token_ids, decoder, stops, result)

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        """Returns the next piece; never empty, and never half a character.

        Raises:
            GenerationError: the generation failed.
        """
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    def read(self) -> str:
        """Runs to the end and returns the whole text."""
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "".join(self._text)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids so far, without the one that ended the answer; with those of a stop string."""
        return tuple(self._result.token_ids)

    @property
    def stop_reason(self) -> str | None:
        """Why the answer ended (see `GenerationResult`), or None while it goes on."""
        return self._result.stop_reason

    @property
    def stats(self) -> GenerationResult:
        """Counts and times."""
        return self._result

    def cancel(self) -> None:
        """Ends the generation from any thread: a running forward pass stops, and so does the iteration."""
        self._session.cancel()

    def close(self) -> None:
        """Ends the generation, from the iterating thread, and frees its KV cache."""
        self._pieces.close()
        if self._result.stop_reason is None:  # closed before its start
            self._result.stop_reason = "cancelled"
        self._session.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pieces(
    session: Session,
    token_ids: Iterator[int],
    decoder: StreamDecoder,
    stops: StopStrings,
    result: GenerationResult,
) -> Generator[str, None, None]:
    """Ids to pieces. Apart from `TextStream`, so that a forgotten stream is freed at once (no cycle)."""
    try:
        for token in token_ids:
            if piece := stops.push(decoder.push(token)):
                yield piece
            if stops.found:
                break
        else:
            if piece := stops.push(decoder.finish()) + stops.finish():
                yield piece
        if stops.found:
            result.stop_reason = "stop"
    except Cancelled:
        result.stop_reason = "cancelled"
    except Exception:
        result.stop_reason = "error"
        raise
    finally:
        result.stop_reason = result.stop_reason or "cancelled"
        session.close()
