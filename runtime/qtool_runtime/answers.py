"""Several answers that are generated together."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, overload

from qtool_runtime.answer import AnswerText, Event
from qtool_runtime.asynchronous import steps_in_thread

if TYPE_CHECKING:
    from qtool_runtime.stream import TextStream


class Answers(Sequence["TextStream"]):
    """Streams that are advanced in turn, a token each: one forward pass then serves all of them.

    Each is a stream of its own, and may also be read alone, in any order, or left.

    Args:
        streams: the answers.
        at_once: how many of them to have in progress; the next one starts when one has ended.
    """

    def __init__(self, streams: Sequence[TextStream], at_once: int) -> None:
        self._streams = tuple(streams)
        self._at_once = at_once
        self._waiting = deque(range(len(self._streams)))
        self._active: list[int] = []

    def __len__(self) -> int:
        return len(self._streams)

    @overload
    def __getitem__(self, index: int) -> TextStream: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TextStream, ...]: ...
    def __getitem__(self, index: int | slice) -> TextStream | tuple[TextStream, ...]:
        return self._streams[index]

    def step(self) -> bool:
        """Generates one more token of each answer in progress; returns whether any went on.

        Raises:
            GenerationError: a generation failed. The others can go on.
        """
        while self._waiting and len(self._active) < self._at_once:
            self._active.append(self._waiting.popleft())
        for index in tuple(self._active):
            alive = False
            try:
                alive = self._streams[index].step()
            finally:
                if not alive:
                    self._active.remove(index)
        return bool(self._active or self._waiting)

    def events(self) -> Iterator[tuple[int, Event]]:
        """Yields what comes next, with the number of the answer: see `TextStream.events`.

        Raises:
            GenerationError: a generation failed. The others can go on.
        """
        alive = True
        while alive:
            alive = self.step()
            yield from self._pending()

    async def events_async(self) -> AsyncIterator[tuple[int, Event]]:
        """As `events`, without blocking the event loop; see `TextStream.events_async`."""
        async for _ in steps_in_thread(self.step, self.cancel, self.close):
            for event in self._pending():
                yield event

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Yields pieces of the answers' text as they come, with the number of the answer."""
        for index, event in self.events():
            if isinstance(event, AnswerText):
                yield index, event.text

    def read(self) -> list[str]:
        """Runs all answers to their ends, and returns their texts."""
        for _ in self.events():
            pass
        return [stream.text for stream in self._streams]

    def cancel(self) -> None:
        """Ends all generations, from any thread; see `TextStream.cancel`."""
        for stream in self._streams:
            stream.cancel()

    def close(self) -> None:
        """Ends all generations, from the iterating thread, and frees their KV caches."""
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pending(self) -> Iterator[tuple[int, Event]]:
        for index, stream in enumerate(self._streams):
            for event in stream.pending():
                yield index, event
